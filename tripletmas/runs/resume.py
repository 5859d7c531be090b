"""What a run directory says of the tasks that are done, to go on from there."""

from __future__ import annotations

import logging

from tripletmas.data.tasks import Stream, Task, fingerprint
from tripletmas.objectives.objective import Objective
from tripletmas.objectives.scores import Scores
from tripletmas.runs.checkpoint import REMEDY, Checkpoint
from tripletmas.runs.directory import RunDirectory
from tripletmas.strategies.base import Strategy

logger = logging.getLogger(__name__)


def check_place(run: RunDirectory, start: Checkpoint, stream: Stream, epochs: int) -> None:
    """Raises ValueError if a checkpoint lies outside the run, or the records are not those that belong to it."""
    if start.task > len(stream) or start.epoch > epochs:
        raise ValueError(
            f"the latest checkpoint in {run.path} was written {start.place}, but the run has {len(stream)} tasks of "
            f"{epochs} epochs: {REMEDY}"
        )
    run.check_records(start)


def say_if_done(run: RunDirectory, start: Checkpoint, stream: Stream) -> None:
    """Log that there is nothing to do, where all tasks are learned."""
    if start.task == len(stream):
        logger.info("%s: all %d tasks are learned, there is nothing to do", run.path, len(stream))


def earlier_scores(run: RunDirectory, stream: Stream, size: int | None = None) -> Scores:
    """The scores of the tasks that are done; tasks that were added to the stream since may follow.

    Args:
        size: as told by the first bytes of the records; None for all.
    """
    names = tuple(task.name for task in stream)
    scores = Scores(names)
    for record in run.records(size=size):
        if record["kind"] == "ahead":
            scores.take(record)
        if record["kind"] not in ("epoch", "task"):
            continue
        now = repr(names[record["task"]]) if record["task"] < len(names) else "no such task"
        if repr(record["name"]) != now:
            raise ValueError(
                f"task {record['task']} of the run in {run.path} was {record['name']!r}, but the data now give {now}: "
                "tasks may be added at the end, where new ones come if their names sort last, not changed"
            )
        if record["kind"] == "task" and record.get("data") != fingerprint(stream[record["task"]]):
            raise ValueError(
                f"the data of task {record['name']!r} have changed since the run in {run.path} learned it: a sample "
                "that was a query may now be trained on. New data come as new tasks; train anew for changed ones"
            )
        if record["kind"] == "task":
            scores.take(record)
    return scores


def keep_scores(run: RunDirectory, scores: Scores) -> None:
    """Keep the scores of a run that is done, unless they are there; what stood in their place is told."""
    content = scores.to_json()
    try:
        if (found := run.scores()) == content:
            return
        told = "said something else than metrics.jsonl" if found and found["matrices"] else None
    except ValueError:
        told = "was damaged"
    if told:
        logger.warning("%s/scores.json %s, and is written anew", run.path, told)
    run.keep_scores(content)


def changed_tasks(run: RunDirectory, stream: Stream) -> list[str]:
    """The tasks whose data have changed since the run learned them."""
    done = [record for record in run.records("task") if record["task"] < len(stream)]
    return [record["name"] for record in done if record.get("data") != fingerprint(stream[record["task"]])]


def check_identities(run: RunDirectory, objective: Objective, stream: Stream) -> None:
    """Raises ValueError if a task is no longer what it was when the run learned it, by what its objective noted."""
    for record in run.records("task"):
        if record["task"] < len(stream):
            objective.check_identity(stream[record["task"]], record, str(run.path))


def check_unseen(run: RunDirectory, unseen: Task | None) -> None:
    """Raises ValueError if other classes are left out of all tasks than those that the run scored so far."""
    now = fingerprint(unseen) if unseen else None
    for record in run.records("task"):
        if record.get("unseen_data") != now:
            advice = "data.unseen takes the last in order, which new classes shift: name the groups, or start a new run"
            if unseen is not None and unseen.query.within is not None:
                advice = "they are the facts that test images show and no training image does; start a new run"
            raise ValueError(
                f"the classes that are in no task are not those of the run in {run.path} when it learned task "
                f"{record['name']!r}: {advice}"
            )


def mend_importance(strategy: Strategy, run: RunDirectory, number: int) -> None:
    """Have the importance after a task as the checkpoint has it, where a process died that added to it."""
    for position, protection in enumerate(strategy.protections):
        files = run.importance(position)
        if run.is_behind(files.file(number)):
            files.write(number, protection.importance)
