"""The score matrix of a run, and what is read off it: average, forgetting, backward and forward transfer.

score[t, i] is the score after learning task t, on task i: (T, T) float64, nan where not measured, which above the
diagonal is everywhere unless tasks were scored before they were learned. Every function of a matrix looks at the last
measured row, so that an unfinished run has numbers too; a nan in what a number is made of makes the number nan. No
function changes its input.

On the `seen` gallery a task's score also falls because the gallery grows with every task, not by forgetting alone; on
the `task` gallery only forgetting moves it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scores:
    """The score matrices of one run.

    Args:
        task_names: the tasks in the order they are learned.
        matrices: gallery ("seen", "task") -> metric ("recall@1", ...) -> (T, T) float64; filled by `record`.
    """

    task_names: tuple[str, ...]
    matrices: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def record(self, gallery: str, metric: str, after_task: int, on_task: int, value: float) -> None:
        """Set the score on one task after learning another; measuring again overwrites."""
        num_tasks = len(self.task_names)
        if not (0 <= after_task < num_tasks and 0 <= on_task < num_tasks):
            raise ValueError(f"tasks are numbered 0 to {num_tasks - 1}, got after_task={after_task}, on_task={on_task}")
        matrices = self.matrices.setdefault(gallery, {})
        if metric not in matrices:
            matrices[metric] = torch.full((num_tasks, num_tasks), torch.nan, dtype=torch.float64)
        matrices[metric][after_task, on_task] = value

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
                gallery: {metric: _to_lists(matrix) for metric, matrix in matrices.items()}
                for gallery, matrices in self.matrices.items()
            },
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Scores:
        """The scores that `to_json` wrote.

        Raises:
            ValueError: if a matrix does not have one row and one column for each task.
        """
        scores = Scores(tuple(content["task_names"]))
        num_tasks = len(scores.task_names)
        for gallery, matrices in content["matrices"].items():
            for metric, rows in matrices.items():
                if len(rows) != num_tasks or any(len(row) != num_tasks for row in rows):
                    raise ValueError(f"{gallery} {metric}: expected {num_tasks} rows of {num_tasks} scores")
                values = [[math.nan if value is None else value for value in row] for row in rows]
                matrix = torch.tensor(values, dtype=torch.float64).reshape(num_tasks, num_tasks)
                scores.matrices.setdefault(gallery, {})[metric] = matrix
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


def summarize(matrix: Tensor) -> dict[str, float]:
    """The numbers of one run in one dict: average, forgetting, backward_transfer, plasticity."""
    return {
        "average": average(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "plasticity": plasticity(matrix),
    }


def _to_lists(matrix: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in matrix.tolist()]
