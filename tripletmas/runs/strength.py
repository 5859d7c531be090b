"""A strength for the next task, chosen on the data of that task alone.

Start with a strength so high that little is learned, and halve it until the model learns the new task nearly as well
as without it: the strongest protection that leaves enough room. The score is that on the new task alone; no old data
is looked at, but where a combined strategy trains on some (replay). There, "finetune" is what the other parts do.

Source: De Lange et al., A Continual Learning Survey, TPAMI 2021, the framework of section 4 (maximal plasticity search,
then stability decay). There the accepted trial is the new model; here the task is learned once more with the strength
that was found, on all its data.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from tripletmas.basics.weights import load_state, snapshot, state_of
from tripletmas.data.tasks import Stream, Task
from tripletmas.runs.task import Learner, train_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchConfig:
    """How a strength is searched for each task after the first.

    Args:
        start: the strength that is tried first; null is 32 times the default of the strategy, 960 for gram.
        drop: p: accepted is the first strength whose score on the new task's validation data is at least (1 - p)
            times that of finetune.
        share: of each class of the new task, held out as validation data while strengths are tried.
        most: so many strengths are tried at most; then the task is learned without protection, and a warning says so.
    """

    start: float | None = None
    drop: float = 0.2
    share: float = 0.2
    most: int = 12

    def __post_init__(self):
        if self.start is not None and self.start <= 0:
            raise ValueError(f"search start must be > 0, got {self.start}")
        if not 0 < self.drop < 1 or not 0 < self.share < 1:
            raise ValueError(f"search drop and share must lie between 0 and 1, got {self.drop} and {self.share}")
        if self.most < 1:
            raise ValueError(f"search most must be >= 1, got {self.most}")


def find_strength(learner: Learner, task: Task, earlier: Stream, search: SearchConfig) -> dict[str, Any]:
    """Try strengths on a task; the learner is left as it was.

    Returns: a record: "finetune", the score with strength 0; "floor", what was asked for; "trials", a list of
        "strength" and "score", nan where training diverged; "strength", the accepted one.

    Raises:
        ValueError: if finetune itself does not learn the task, so that there is nothing to compare with; if a class is
            too small to hold some of it out.
    """
    if search.start is None:
        raise ValueError("search start must be given")
    trial_task, chance = learner.objective.held_out(task, search.share, learner.config.seed)
    start = _State(learner)
    finetune = _trial(learner, start, trial_task, earlier, 0.0)
    if finetune <= chance + 0.05 * (1 - chance):
        raise ValueError(
            f"finetune reaches {finetune:.3f} on validation data of task {task.name!r}, where guessing gives "
            f"{chance:.3f}: it does not learn the task, so no strength can be judged by it; train longer "
            "(--training.epochs), or with another --training.lr"
        )
    floor = (1 - search.drop) * finetune
    if floor <= chance:
        logger.warning(
            "task %s: the strength has to leave %.3f, which guessing reaches too (%.3f): lower --search.drop",
            task.name,
            floor,
            chance,
        )
    trials: list[dict[str, float]] = []
    for halvings in range(search.most):
        strength = search.start / 2**halvings
        try:
            score = _trial(learner, start, trial_task, earlier, strength)
        except FloatingPointError:  # too strong for this optimizer: that is what lower ones are tried for
            score = math.nan
        trials.append({"strength": strength, "score": score})
        logger.info("task %s: strength %.4g reaches %.3f, asked for %.3f", task.name, strength, score, floor)
        if score >= floor:
            break
    else:
        strength = 0.0
        logger.warning(
            "task %s: no strength down to %.3g reaches %.3f, so it is learned without protection",
            task.name,
            trials[-1]["strength"],
            floor,
        )
    start.restore(learner)
    learner.strategy.set_strength(strength)
    return {
        "metric": f"{learner.objective.validated} on validation data of the new task",
        "finetune": finetune,
        "floor": floor,
        "chance": chance,
        "start": search.start,
        "trials": trials,
        "strength": strength,
    }


class _State:
    """A learner as it is between two tasks."""

    def __init__(self, learner: Learner):
        self.model = snapshot(state_of(learner.model))
        self.strategy = snapshot(learner.strategy.state_dict())
        self.objective = snapshot(state_of(learner.objective))

    def restore(self, learner: Learner) -> None:
        load_state(learner.model, self.model)
        learner.strategy.load_state_dict(snapshot(self.strategy))
        load_state(learner.objective, self.objective)


def _trial(learner: Learner, start: _State, task: Task, earlier: Stream, strength: float) -> float:
    """The score on the task's validation data after learning it with this strength."""
    start.restore(learner)
    learner.strategy.set_strength(strength)
    train_task(learner, task, earlier, what=f" strength {strength:.3g}" if strength else " finetune")
    return learner.objective.validate(learner.model, task)
