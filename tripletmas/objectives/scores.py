"""The score matrix of a run, and what is read off it: average, forgetting, transfer, plasticity, intransigence.

score[t, i] is the score after learning task t, on task i: (T, T) float64, nan where not measured. That is all above the
diagonal, but on the `task` gallery of a run what is right above it: a task scored before it was learned. Every function
of a matrix looks at the last measured row, so that an unfinished run has numbers too; a nan in what a number is made of
makes the number nan. No function changes its input.

On the `seen` gallery a task's score also falls because the gallery grows with every task, not by forgetting alone; on
the `task` gallery only forgetting moves it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scores:
    """The score matrices of one run.

    Args:
        task_names: the tasks in the order they are learned.
        matrices: gallery ("seen", "task") -> metric ("recall@1", ...) -> (T, T) float64; filled by `record`.
        baseline: gallery -> metric -> (T,) float64, the scores of the untrained model, which forward transfer needs;
            filled by `record_baseline`, empty where they were not measured.
    """

    task_names: tuple[str, ...]
    matrices: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    baseline: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def record(self, gallery: str, metric: str, after_task: int, on_task: int, value: float) -> None:
        """Set the score on one task after learning another; measuring again overwrites."""
        num_tasks = len(self.task_names)
        if not (0 <= after_task < num_tasks and 0 <= on_task < num_tasks):
            raise ValueError(f"tasks are numbered 0 to {num_tasks - 1}, got after_task={after_task}, on_task={on_task}")
        matrices = self.matrices.setdefault(gallery, {})
        if metric not in matrices:
            matrices[metric] = torch.full((num_tasks, num_tasks), torch.nan, dtype=torch.float64)
        matrices[metric][after_task, on_task] = value

    def enter(self, after_task: int, values: Mapping[str, Mapping[str, Sequence[float | None]]]) -> None:
        """Set the scores on all tasks so far: gallery -> metric -> one value a task; None is nan."""
        for gallery, metrics in values.items():
            for metric, per_task in metrics.items():
                for on_task, value in enumerate(per_task):
                    self.record(gallery, metric, after_task, on_task, math.nan if value is None else value)

    def take(self, record: Mapping[str, Any]) -> None:
        """Enter what a record of a run says: of kind "task" after that task, of kind "ahead" on one not yet learned.

        One of kind "ahead" and task 0 is of the untrained model, on all tasks that there were.
        One on a task that has no name here says nothing.
        """
        number = record.get("task", 0)
        if record["kind"] == "task":
            self.enter(number, record.get("scores", {}))
            return
        if number >= len(self.task_names):
            return  # whoever reads the records alone knows no task that is not done
        for gallery, metrics in record["scores"].items():
            for metric, found in metrics.items():
                values = [math.nan if each is None else each for each in found]
                for task, value in enumerate(values[: len(self.task_names)]):
                    if number:
                        self.record(gallery, metric, number - 1, number, value)
                    else:
                        self.record_baseline(gallery, metric, task, value)

    def record_baseline(self, gallery: str, metric: str, task: int, value: float) -> None:
        """Set the score of the untrained model on one task; measuring again overwrites."""
        num_tasks = len(self.task_names)
        if not 0 <= task < num_tasks:
            raise ValueError(f"tasks are numbered 0 to {num_tasks - 1}, got task={task}")
        rows = self.baseline.setdefault(gallery, {})
        if metric not in rows:
            rows[metric] = torch.full((num_tasks,), torch.nan, dtype=torch.float64)
        rows[metric][task] = value

    def matrix(self, metric: str = "recall@1", gallery: str = "seen") -> Tensor:
        """The (T, T) matrix of one metric on one gallery.

        Raises:
            ValueError: if nothing was recorded under these names.
        """
        if gallery not in self.matrices:
            raise ValueError(f"no scores on the gallery {gallery!r}; there are {sorted(self.matrices)}")
        if metric not in self.matrices[gallery]:
            raise ValueError(f"no scores of the metric {metric!r}; there are {sorted(self.matrices[gallery])}")
        return self.matrices[gallery][metric]

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write: nan is None."""
        return {
            "task_names": list(self.task_names),
            "matrices": {
                gallery: {metric: [_to_list(row) for row in matrix] for metric, matrix in matrices.items()}
                for gallery, matrices in self.matrices.items()
            },
            "baseline": {
                gallery: {metric: _to_list(row) for metric, row in rows.items()}
                for gallery, rows in self.baseline.items()
            },
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Scores:
        """The scores that `to_json` wrote.

        Raises:
            ValueError: if a matrix does not have one row and one column for each task, or a baseline not one score.
        """
        scores = Scores(tuple(content["task_names"]))
        size = len(scores.task_names)
        for gallery, matrices in content["matrices"].items():
            for metric, rows in matrices.items():
                if [len(row) for row in rows] != [size] * size:
                    raise ValueError(f"{gallery} {metric}: expected {size} rows of {size} scores")
                values = torch.stack([_from_list(row) for row in rows]) if rows else torch.empty(0, 0).double()
                scores.matrices.setdefault(gallery, {})[metric] = values
        for gallery, baselines in content.get("baseline", {}).items():
            for metric, row in baselines.items():
                if len(row) != size:
                    raise ValueError(f"{gallery} {metric}: expected {size} scores of the untrained model")
                scores.baseline.setdefault(gallery, {})[metric] = _from_list(row)
        return scores


def last_row(matrix: Tensor) -> Tensor:
    """The scores after the last measured task, on each task learned by then: (number of those tasks,).

    A row counts as measured if it holds any score at or left of the diagonal. Empty where nothing was measured.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a score matrix must have shape (T, T), got {tuple(matrix.shape)}")
    measured = (~matrix.isnan()).tril().any(dim=1).nonzero()
    if not len(measured):
        return matrix.new_empty(0, dtype=torch.float64)
    last = int(measured[-1])
    return matrix[last, : last + 1].double()


def average(matrix: Tensor) -> float:
    """The mean score over all tasks learned, after the last of them (ACC of GEM); nan where nothing was measured."""
    return float(last_row(matrix).mean())


def forgetting_per_task(matrix: Tensor) -> Tensor:
    """How far each earlier task fell: its best score after an earlier task, minus its score after the last one.

    forgetting_i = max_{i <= l < last} score[l, i] - score[last, i]. The last row is not among those the maximum is
    taken over, so a task that got better has a negative forgetting. Rows that were not measured do not count.

    Returns: (T - 1,); nan for tasks that no later task has followed yet.
    Source: Chaudhry et al., Riemannian Walk, ECCV 2018, section 3.2.
    """
    final = last_row(matrix)
    last = len(final) - 1
    result = torch.full((max(len(matrix) - 1, 0),), torch.nan, dtype=torch.float64)
    for i in range(last):
        earlier = matrix[i:last, i].double()
        earlier = earlier[~earlier.isnan()]
        if len(earlier):
            result[i] = earlier.max() - final[i]
    return result


def forgetting(matrix: Tensor) -> float:
    """The mean of `forgetting_per_task` over all tasks but the last learned; can be negative.

    nan after a single task: nothing could be forgotten yet, which is not the same as forgetting 0.

    >>> forgetting(torch.tensor([[0.9, torch.nan], [0.5, 0.8]], dtype=torch.float64))
    0.4
    """
    return float(forgetting_per_task(matrix)[: max(len(last_row(matrix)) - 1, 0)].mean())


def backward_transfer(matrix: Tensor) -> float:
    """mean_i (score[last, i] - score[i, i]) over all tasks but the last learned; negative where tasks were forgotten.

    Unlike forgetting it compares with the score right after the task, not with the best. nan after a single task.

    Source: Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017 (BWT).
    """
    final = last_row(matrix)[:-1]
    return float((final - matrix.diagonal()[: len(final)].double()).mean())


def forward_transfer(matrix: Tensor, baseline: Tensor) -> float:
    """mean_i (score[i - 1, i] - baseline[i]) over i >= 1: what was gained on a task before it was learned.

    Goes up to the task after the last measured row. nan for a single task.

    Args:
        matrix: with the entries right above the diagonal measured.
        baseline: (T,), the scores of the untrained model; the first is not used.

    Raises:
        ValueError: if one of these entries was not measured.
    Source: Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017 (FWT).
    """
    if baseline.shape != matrix.shape[:1]:
        raise ValueError(f"baseline must hold one score for each of {len(matrix)} tasks, got {tuple(baseline.shape)}")
    ahead = matrix.diagonal(1)[: len(last_row(matrix))].double()
    if ahead.isnan().any():
        task = int(ahead.isnan().nonzero()[0]) + 1
        raise ValueError(f"forward transfer needs the score on task {task} after task {task - 1}, which is nan")
    return float((ahead - baseline[1 : len(ahead) + 1].double()).mean())


def plasticity(matrix: Tensor) -> float:
    """The mean score on each task right after learning it; a penalty so strong that nothing is forgotten lowers it."""
    return float(matrix.diagonal()[: len(last_row(matrix))].double().mean())


def intransigence(matrix: Tensor, joint: Tensor) -> float:
    """mean_k (joint[k, k] - score[k, k]) over the tasks learned: what the method failed to learn; lower is better.

    Goes up to the last measured row of `matrix`. Negative where tasks were learned better than with all data at once.
    nan where nothing was measured.

    Args:
        joint: (T, T), the matrix of a run on the same stream that learned each task together with all earlier ones.

    Raises:
        ValueError: if the joint run is of another length, or lacks the score on one of these tasks.
    Source: Chaudhry et al., Riemannian Walk, ECCV 2018, section 3.2: I_k = a*_k - a_kk; the mean over k is ours.

    >>> intransigence(torch.tensor([[0.5]]), torch.tensor([[0.75]]))
    0.25
    """
    if joint.shape != matrix.shape:
        raise ValueError(f"the joint run must have a matrix of shape {tuple(matrix.shape)}, got {tuple(joint.shape)}")
    learned = len(last_row(matrix))
    reference = joint.diagonal()[:learned].double()
    if reference.isnan().any():
        task = int(reference.isnan().nonzero()[0])
        raise ValueError(f"intransigence needs the joint run's score on task {task} after task {task}, which is nan")
    return float((reference - matrix.diagonal()[:learned].double()).mean())


class PairedDifference(NamedTuple):
    """The differences between two methods over the seeds that both have.

    Attributes:
        mean: of the differences, the first method minus the second; nan without a common seed.
        deviation: their sample standard deviation (ddof=1); nan for fewer than two seeds.
        better, same, worse: on how many seeds the first method is.
        left_out: how many seeds only one of them has, or has as nan.
    """

    mean: float
    deviation: float
    better: int
    same: int
    worse: int
    left_out: int


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], *, lower_is_better: bool = False
) -> PairedDifference:
    """mean_s (ours[s] - theirs[s]) over the common seeds s, its spread, and how often ours is better.

    Runs of one seed share the stream's data, the first weights and the first task, so that the difference varies less
    than either number. Differences below 1e-9 are rounding, and count as "same".

    Args:
        ours, theirs: seed -> number.
        lower_is_better: for forgetting and the like; turns the counts around, not the sign of the difference.

    >>> paired_difference({0: 0.75, 1: 0.5, 2: 0.9}, {0: 0.25, 1: 0.5})
    PairedDifference(mean=0.25, deviation=0.3535533905932738, better=1, same=1, worse=0, left_out=1)
    """
    common = [seed for seed in ours if seed in theirs and not math.isnan(ours[seed] - theirs[seed])]
    differences = [ours[seed] - theirs[seed] for seed in common]
    above, below = (sum(sign * difference > 1e-9 for difference in differences) for sign in (1, -1))
    better, worse = (below, above) if lower_is_better else (above, below)
    return PairedDifference(
        mean=fmean(differences) if differences else math.nan,
        deviation=stdev(differences) if len(differences) > 1 else math.nan,
        better=better,
        same=len(differences) - above - below,
        worse=worse,
        left_out=len(ours.keys() | theirs.keys()) - len(common),
    )


def summarize(matrix: Tensor, baseline: Tensor | None = None) -> dict[str, float]:
    """The numbers of one run: average, forgetting, backward_transfer, plasticity; with a baseline forward_transfer."""
    numbers = {
        "average": average(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "plasticity": plasticity(matrix),
    }
    return numbers if baseline is None else {**numbers, "forward_transfer": forward_transfer(matrix, baseline)}


def _to_list(row: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in row.tolist()]


def _from_list(row: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in row], dtype=torch.float64)
