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
from tripletmas.report.compare import Comparison, Method, Paired
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
    for block in (_results(comparison), _per_task(comparison), *_more(comparison)):
        # As a table's own title it would wrap at the table's width.
        parts += [Text(escape(block.title), style="bold"), terminal_table(block.head, block.rows)]
    return Group(*parts, *(Text(f"{note}.") for note in _notes(comparison)))


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown tables, for a README; tasks beyond ten have no column, the page shows them."""
    results, tasks = _results(comparison), comparison.task_names if len(comparison.task_names) <= 10 else ()
    scores = [[spread.text() for spread in method.per_task[: len(tasks)]] for method in comparison.methods]
    rows = [row + of_tasks for row, of_tasks in zip(results.rows, scores, strict=True)]
    lines = _markdown([*results.head, *short_names(tasks)], rows)
    for block in _more(comparison):
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


def _block(title: str, *columns: tuple[str, list[str]]) -> Block:
    return Block(
        title, [name for name, _ in columns], [list(row) for row in zip(*(c for _, c in columns), strict=True)]
    )


def _results(comparison: Comparison) -> Block:
    methods = comparison.methods
    return _block(
        comparison.kind.primary.title,
        _names(methods),
        ("average", [method.average.text() for method in methods]),
        ("forgetting", [_bracketed(method, method.forgetting.text()) for method in methods]),
        ("backward transfer", [_bracketed(method, method.backward_transfer.text(signed=True)) for method in methods]),
        ("learning", [method.learning.text() for method in methods]),
        ("seconds", [method.seconds.text(1) for method in methods]),
    )


def _bracketed(method: Method, text: str) -> str:
    """In brackets where it says nothing."""
    return f"({text})" if method.void else text


def _per_task(comparison: Comparison) -> Block:
    names = [f"{i + 1}  {name}" for i, name in enumerate(short_names(comparison.task_names, 24))]
    scores = [(method.label, [spread.text() for spread in method.per_task]) for method in comparison.methods]
    return _block("of which, after the last task", ("on task", names), *scores)


def _more(comparison: Comparison) -> list[Block]:
    """What was measured beyond the results, each where there is something."""
    blocks = (_galleries(comparison), _beyond(comparison), _paired(comparison))
    return [block for block in blocks if block.rows]


def _galleries(comparison: Comparison) -> Block:
    """The three galleries of everything seen; empty where not all runs have them."""
    none = Spread(())
    kept = [(kind, [m.galleries.get(kind, none).text() for m in comparison.methods]) for kind in comparison.galleries]
    title = GALLERIES.format(metric=comparison.kind.primary.searched_label)
    return _block(title, *([_names(comparison.methods), *kept] if kept else ()))


def _beyond(comparison: Comparison) -> Block:
    """Forward transfer, what was never learned, intransigence, each where a method has it; else empty."""
    methods, searched = comparison.methods, comparison.kind.primary.searched_label
    columns, titles = [], []
    for name, title, spreads, signed in (
        (
            "forward transfer",
            f"forward transfer ({searched}, own gallery)",
            [m.forward_transfer for m in methods],
            True,
        ),
        ("never learned", f"{searched} of what was never learned", [m.unseen for m in methods], False),
        ("intransigence", f"intransigence (against {comparison.joint})", [m.intransigence for m in methods], True),
    ):
        if any(spread.measured for spread in spreads):
            columns.append((name, [spread.text(signed=signed) for spread in spreads]))
            titles.append(title)
    return _block(", ".join(titles), *([_names(methods), *columns] if columns else ()))


def _paired(comparison: Comparison) -> Block:
    pairs, counts = comparison.paired, "better /\nsame / worse"
    return _block(
        f"paired differences to {comparison.methods[0].label}, seed by seed",
        _names(pairs),
        ("average", [difference_text(pair.average) for pair in pairs]),
        (counts, [counts_text(pair.average) for pair in pairs]),
        ("forgetting", [difference_text(pair.forgetting) for pair in pairs]),
        (counts, [counts_text(pair.forgetting) for pair in pairs]),
        ("seeds", [str(pair.seeds) for pair in pairs]),
    )


def _names(rows: Sequence[Method] | Sequence[Paired]) -> tuple[str, list[str]]:
    return "method", [row.label for row in rows]


def _notes(comparison: Comparison) -> list[str]:
    return [
        *(f"{method.label}: {method.note}" for method in comparison.methods if method.note),
        *left_out(comparison),
    ]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    return [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]
