"""A comparison as tables: for the terminal, 80 columns wide, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tripletmas.objectives.scores import PairedDifference
from tripletmas.report.compare import Comparison
from tripletmas.report.numbers import Spread, begun, number, short_names

GALLERIES = "{metric} on galleries of all tasks seen, by how they are kept"


@dataclass(frozen=True)
class Block:
    """A table with a heading; a line break in the head is where a narrow column breaks it."""

    title: str
    head: list[str]
    rows: list[list[str]]


def comparison_table(comparison: Comparison) -> RenderableType:
    """The comparison for the terminal: `rich.print(comparison_table(...))`.

    A table with a row for each method, below it one with a row for each task, so that 80 columns are enough; then
    what was measured beyond them.
    """
    parts: list[RenderableType] = []
    for block in (
        _results(comparison),
        _per_task(comparison),
        _galleries(comparison),
        _beyond(comparison),
        _paired(comparison),
    ):
        if block.rows:
            # As a table's own title it would wrap at the table's width.
            parts += [Text(escape(block.title), style="bold"), terminal_table(block.head, block.rows)]
    return Group(*parts, *(Text(f"{note}.") for note in _notes(comparison)))


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown tables, for a README; tasks beyond ten have no column, the page shows them."""
    results, tasks = _results(comparison), comparison.task_names if len(comparison.task_names) <= 10 else ()
    head = [*results.head, *short_names(tasks)]
    scores = [[spread.text() for spread in method.per_task[: len(tasks)]] for method in comparison.methods]
    rows = [row + of_tasks for row, of_tasks in zip(results.rows, scores, strict=True)]
    lines = _markdown(head, rows)
    for block in (_galleries(comparison), _beyond(comparison), _paired(comparison)):
        if block.rows:
            lines += ["", begun(block.title), "", *_markdown(block.head, block.rows)]
    return "\n".join([*lines, *(f"\n{note}" for note in _notes(comparison))]) + "\n"


def terminal_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table in the project's terminal style: the first column to the left, numbers to the right."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(head):
        longest = max((len(row[i]) for row in rows), default=0)
        # The label of a method breaks only where it is very long.
        table.add_column(escape(name), justify="right" if i else "left", no_wrap=i == 0 and longest <= 24)
    for row in rows:
        # Without the space a narrow column breaks "0.912 ±0.004" before the sign only.
        table.add_row(*(escape(cell.replace("± ", "±")) for cell in row))
    return table


def difference_text(difference: PairedDifference) -> str:
    """ "+0.047 ± 0.012", or a dash without a common seed."""
    mean = number(difference.mean, signed=True)
    return mean if math.isnan(difference.deviation) else f"{mean} ± {number(difference.deviation)}"


def counts_text(difference: PairedDifference) -> str:
    """ "2 / 0 / 1": the seeds on which the method is better, the same, worse."""
    return f"{difference.better} / {difference.same} / {difference.worse}"


def left_out(comparison: Comparison) -> list[str]:
    """A sentence for each method some of whose seeds have no partner."""
    first = comparison.methods[0].label
    return [
        f"{pair.label}: seeds left out of the differences, since only it or {first} has them: {pair.average.left_out}"
        for pair in comparison.paired
        if pair.average.left_out
    ]


def _results(comparison: Comparison) -> Block:
    rows = [
        [
            method.label,
            method.average.text(),
            method.forgetting.text(),
            method.backward_transfer.text(signed=True),
            method.learning.text(),
            method.seconds.text(1),
        ]
        for method in comparison.methods
    ]
    head = ["method", "average", "forgetting", "backward transfer", "learning", "seconds"]
    return Block(comparison.primary.title, head, rows)


def _per_task(comparison: Comparison) -> Block:
    rows = [
        [f"{i + 1}  {name}", *(method.per_task[i].text() for method in comparison.methods)]
        for i, name in enumerate(short_names(comparison.task_names, 24))
    ]
    return Block("of which, after the last task", ["on task", *(method.label for method in comparison.methods)], rows)


def _galleries(comparison: Comparison) -> Block:
    """The three galleries of everything seen; without rows where not all runs have them."""
    kinds = comparison.galleries
    rows = [[m.label, *(m.galleries.get(kind, Spread(())).text() for kind in kinds)] for m in comparison.methods]
    title = GALLERIES.format(metric=comparison.primary.searched_label)
    return Block(title, ["method", *kinds], rows if kinds else [])


def _beyond(comparison: Comparison) -> Block:
    """Forward transfer, what was never learned, intransigence, each where a method has it; else without rows."""
    columns, title = [], []
    if any(method.forward_transfer.measured for method in comparison.methods):
        columns.append(("forward transfer", [m.forward_transfer.text(signed=True) for m in comparison.methods]))
        title.append(f"forward transfer ({comparison.primary.searched_label}, own gallery)")
    if any(method.unseen.measured for method in comparison.methods):
        columns.append(("never learned", [m.unseen.text() for m in comparison.methods]))
        title.append(f"{comparison.primary.searched_label} of what was never learned")
    if comparison.joint is not None and len(comparison.methods) > 1:
        columns.append(("intransigence", [m.intransigence.text(signed=True) for m in comparison.methods]))
        title.append(f"intransigence (against {comparison.joint})")
    if not columns:
        return Block("", [], [])
    labels = [method.label for method in comparison.methods]
    rows = [list(row) for row in zip(labels, *(cells for _, cells in columns), strict=True)]
    return Block(", ".join(title), ["method", *(name for name, _ in columns)], rows)


def _paired(comparison: Comparison) -> Block:
    rows = [
        [
            pair.label,
            difference_text(pair.average),
            counts_text(pair.average),
            difference_text(pair.forgetting),
            counts_text(pair.forgetting),
            str(pair.seeds),
        ]
        for pair in comparison.paired
    ]
    counts = "better /\nsame / worse"
    title = f"paired differences to {comparison.methods[0].label}, seed by seed"
    return Block(title, ["method", "average", counts, "forgetting", counts, "seeds"], rows)


def _notes(comparison: Comparison) -> list[str]:
    return [
        *(f"{method.label}: {method.note}" for method in comparison.methods if method.note),
        *left_out(comparison),
    ]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    return [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]
