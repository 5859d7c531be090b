"""Which values of a comparison are best, and which cannot be told from the best by the seeds that there are.

Of each column the method with the best mean is marked, and whoever has the same number as shown. Of the others, those
that a paired t-test over common seeds does not tell apart from it are marked as level with it: with few seeds that is
many of them. Joint training keeps all data and is what others are measured against, not one of them; what was never
learned cannot be forgotten, and a duration is no score. Neither is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tripletmas.basics.sentences import listed
from tripletmas.report.numbers import Spread, number
from tripletmas.report.significance import LEVEL, PairedTest, is_noise, paired_test

if TYPE_CHECKING:
    from tripletmas.report.compare import Comparison, Method

BEST, LEVEL_WITH_BEST = "best", "level"


@dataclass(frozen=True)
class Column:
    """A number of each method.

    Attributes:
        name: as tables call it.
        signed: shown with its sign.
        lower: less of it is better; None where neither is, as of a duration.
        lost: says nothing of a method that learned nothing.
    """

    name: str
    of: Callable[[Method], Spread]
    signed: bool = False
    lower: bool | None = False
    lost: bool = False
    digits: int = 3


RESULTS = (
    Column("average", lambda method: method.average),
    Column("forgetting", lambda method: method.forgetting, lower=True, lost=True),
    Column("backward transfer", lambda method: method.backward_transfer, signed=True, lost=True),
    Column("learning", lambda method: method.learning),
    Column("seconds", lambda method: method.seconds, lower=None, digits=1),
)
BEYOND = (
    Column("forward transfer", lambda method: method.forward_transfer, signed=True),
    Column("never learned", lambda method: method.unseen),
    Column("intransigence", lambda method: method.intransigence, signed=True, lower=True),
)


def gallery_column(kind: str) -> Column:
    """The average on one kind of gallery of everything seen."""
    return Column(kind, lambda method: method.galleries.get(kind, Spread(())))


def task_column(name: str, task: int) -> Column:
    """The score of a task at the end."""
    return Column(name, lambda method: method.per_task[task])


def marks(comparison: Comparison, column: Column) -> list[str]:
    """For each method `BEST`, `LEVEL_WITH_BEST` or ""; where all have one number, none is marked."""
    rivals = _rivals(comparison.methods, column, comparison.joint)
    found = [""] * len(comparison.methods)
    if len(rivals) < 2 or column.lower is None:
        return found
    ahead = (min if column.lower else max)(rivals, key=lambda i: column.of(comparison.methods[i]).mean)
    best = comparison.methods[ahead]
    if len({_shown(comparison.methods[i], column) for i in rivals}) == 1:
        return found
    for i in rivals:
        own = comparison.methods[i]
        if _shown(own, column) == _shown(best, column):
            found[i] = BEST
        elif is_noise(_difference(own, best, column).p):
            found[i] = LEVEL_WITH_BEST
    return found


def verdict(comparison: Comparison) -> str:
    """Who ends highest, and whether by more than noise; "" where there are no two to be compared."""
    column = RESULTS[0]
    found = marks(comparison, column)
    best = [i for i, mark in enumerate(found) if mark == BEST]
    if not best:
        return ""
    methods, label = comparison.methods, comparison.kind.primary.label
    names = " and ".join(methods[i].label for i in best)
    aside = ", joint training left out" if comparison.joint else ""
    text = f"Highest at the end{aside}: {names}, with an average {label} of {_shown(methods[best[0]], column)}"
    if LEVEL_WITH_BEST in found:
        return f"{text}; over the seeds that there are, not told apart from it: {listed(_level(methods, found))}."
    others = [methods[i] for i in _rivals(methods, column, comparison.joint) if i not in best]
    return f"{text}; {_told(methods[best[0]], others, column)}."


def _level(methods: Sequence[Method], found: Sequence[str]) -> list[str]:
    return [method.label for method, mark in zip(methods, found, strict=True) if mark == LEVEL_WITH_BEST]


def _told(best: Method, others: Sequence[Method], column: Column) -> str:
    if all(_difference(each, best, column).p < LEVEL for each in others):
        return "above each of the others by more than the noise between seeds"
    return "whether that is more than noise, the seeds that there are do not tell"


def _difference(one: Method, other: Method, column: Column) -> PairedTest:
    return paired_test(*(each.by_seed(column.of(each)) for each in (one, other)))


def explained(comparison: Comparison) -> str:
    """What the marks of a comparison mean, and what they cannot; "" where there are none."""
    rivals = _rivals(comparison.methods, RESULTS[0], comparison.joint)
    if len(rivals) < 2:
        return ""
    reference = f" {comparison.joint} has all data and is not marked." if comparison.joint else ""
    if not any(method.average.deviation is not None for method in comparison.methods):
        return (
            "Bold: the best mean. Each method has one run, which does not tell how far another seed would be from it: "
            f"small differences may be noise; --seeds 0,1,2 tells.{reference}"
        )
    return (
        f"Bold: the best mean. ≈: not told apart from it by a paired t-test over common seeds (p ≥ {LEVEL:g}), "
        "so that the order may be noise. Methods that share fewer than two seeds with the best were not tested."
        f"{reference}"
    )


def _rivals(methods: Sequence[Method], column: Column, joint: str | None) -> list[int]:
    """Those that have the number, and whose number means something."""
    return [
        i
        for i, method in enumerate(methods)
        if column.of(method).measured and method.label != joint and not (column.lost and method.void)
    ]


def _shown(method: Method, column: Column) -> str:
    return number(column.of(method).mean, column.digits)
