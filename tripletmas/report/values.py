"""The values of plots as tables, for readers who want numbers, or see no pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tripletmas.report.numbers import averages, measured_part, number

_MOST = 1500  # cells: a longer table is left to the files that it comes from


@dataclass(frozen=True)
class Values:
    """A table: the head, and rows that begin with what they are about."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def of_matrix(matrix: Tensor, names: Sequence[str], first: str, *, mean: bool = False) -> Values | None:
    """A matrix over tasks (t, t): a row and a column for each task; None where it is too large for a table.

    Args:
        first: what a row is, such as "after learning task".
        mean: add the mean over the tasks learned by then.
    """
    size = len(matrix)
    if size * size > _MOST:
        return None
    named = numbered(names, size)
    above, width = measured_part(matrix)
    means = [[number(value)] for value in averages(matrix)] if mean else [[]] * size
    rows = [
        [named[i], *means[i], *("" if math.isnan(value) else number(value) for value in matrix[i, :width].tolist())]
        for i in range(above, size)
    ]
    return Values([first, *(["mean"] if mean else []), *named[:width]], rows)


def of_curves(curves: Mapping[str, Sequence[float]], names: Sequence[str], first: str = "after task") -> Values | None:
    """Values after each task, up to the last: a row for each task, a column for each curve."""
    size = max(map(len, curves.values()), default=0)
    if not size or size * len(curves) > _MOST:
        return None
    rows = [
        [
            name,
            *("" if i < size - len(values) else number(values[i - size + len(values)]) for values in curves.values()),
        ]
        for i, name in enumerate(numbered(names, size))
    ]
    return Values([first, *curves], rows)


def of_epochs(epochs: Sequence[Mapping[str, Any]], names: Sequence[str], loss: str) -> Values | None:
    """The loss, and the penalty where there is one, at each task's first and last epoch."""
    keys = {"loss": loss, **({"penalty": "penalty"} if any(map(_is_penalised, epochs)) else {})}
    by_task: dict[int, list[Mapping[str, Any]]] = {}
    for record in epochs:
        by_task.setdefault(int(record.get("task", 0)), []).append(record)
    if len(by_task) * len(keys) > _MOST:
        return None
    named = numbered(names, max(by_task) + 1)
    rows = [
        [named[task], str(len(own)), *(_cell(end.get(key)) for key in keys for end in (own[0], own[-1]))]
        for task, own in sorted(by_task.items())
    ]
    heads = (f"{title}, {when} epoch" for title in keys.values() for when in ("first", "last"))
    return Values(["task", "epochs", *heads], rows)


def numbered(names: Sequence[str], size: int) -> list[str]:
    """ "1  red,blue": the tasks by number and name; by number alone where a name is not known."""
    return [f"{i + 1}\N{EN SPACE}{names[i]}" if i < len(names) else str(i + 1) for i in range(size)]


def _is_penalised(record: Mapping[str, Any]) -> bool:
    return (record.get("penalty") or 0) > 0


def _cell(value: Any) -> str:
    return "–" if value is None else f"{float(value):.4g}"
