"""A comparison as tables: for the terminal, 80 columns wide, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.text import Text

from tripletmas.objectives.scores import PairedDifference
from tripletmas.report import texts
from tripletmas.report.best import (
    BEST,
    BEYOND,
    LEVEL_WITH_BEST,
    RESULTS,
    Column,
    explained,
    gallery_column,
    marks,
    task_column,
)
from tripletmas.report.compare import Comparison, Method
from tripletmas.report.numbers import begun, number, short_names
from tripletmas.report.significance import PairedTest
from tripletmas.report.terminal import terminal_table

GALLERIES = "{metric} on galleries of all tasks seen, by how they are kept"


@dataclass(frozen=True)
class Block:
    """A table with a heading; a line break in the head is where a narrow column breaks it.

    Attributes:
        marks: (row, column) -> how the cell is marked, as of `best.marks`.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)


def comparison_table(comparison: Comparison) -> RenderableType:
    """The comparison for the terminal: `rich.print(comparison_table(...))`.

    A table with a row for each method, below it one with a row for each task, so that 80 columns are enough; then
    what was measured beyond them.
    """
    parts: list[RenderableType] = []
    for block in (results(comparison), per_task(comparison), *more(comparison)):
        # As a table's own title it would wrap at the table's width.
        parts += [Text(block.title, style="bold"), terminal_table(block.head, block.rows, block.marks)]
    return Group(*parts, *(Text(note) for note in notes(comparison)))


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown tables, for a README; tasks beyond ten have no column, the page shows them."""
    found = with_tasks(comparison)
    lines = _markdown(found)
    for block in more(comparison):
        lines += ["", begun(block.title), "", *_markdown(block)]
    return "\n".join([*lines, *(f"\n{note}" for note in notes(comparison))]) + "\n"


def with_tasks(comparison: Comparison) -> Block:
    """The results, and the score of each task after the last one; tasks beyond ten have no column."""
    tasks = comparison.task_names if len(comparison.task_names) <= 10 else ()
    columns = [task_column(name, i) for i, name in enumerate(short_names(tasks))]
    return _block_of(comparison, comparison.kind.primary.title, (*RESULTS, *columns))


def difference_text(difference: PairedDifference) -> str:
    """ "+0.047 ± 0.012", or a dash without a common seed."""
    mean = number(difference.mean, signed=True)
    return mean if math.isnan(difference.deviation) else f"{mean} ± {number(difference.deviation)}"


def counts_text(difference: PairedDifference) -> str:
    """ "2 / 0 / 1": the seeds on which the method is better, the same, worse."""
    return f"{difference.better} / {difference.same} / {difference.worse}"


def interval_text(test: PairedTest) -> str:
    """ "-0.02 to +0.11", the 95 % interval of the mean difference; a dash for a single seed."""
    ends = [number(end, signed=True) for end in (test.low, test.high)]
    return "–" if math.isnan(test.low) else " to ".join(ends)


def p_text(test: PairedTest) -> str:
    """ "0.031", "< 0.001"; a dash for a single seed."""
    return "–" if math.isnan(test.p) else "< 0.001" if test.p < 0.001 else number(test.p)


def effect_text(test: PairedTest) -> str:
    """ "+1.4", in standard deviations of the differences."""
    return "–" if math.isnan(test.effect) else f"{test.effect:+.1f}" if abs(test.effect) < 100 else "large"


def left_out(comparison: Comparison) -> list[str]:
    """A sentence for each method some of whose seeds have no partner."""
    first = comparison.methods[0].label
    return [
        f"{pair.label}: seeds left out of the differences, since only it or {first} has them: {pair.average.left_out}."
        for pair in comparison.paired
        if pair.average.left_out
    ]


def results(comparison: Comparison) -> Block:
    """What the comparison is about, a row for each method."""
    return _block_of(comparison, comparison.kind.primary.title, RESULTS)


def cell_text(method: Method, column: Column, mark: str = "") -> str:
    """A number as shown: in brackets where it says nothing, with ≈ where it is level with the best."""
    text = column.of(method).text(column.digits, signed=column.signed)
    text = f"({text})" if column.lost and method.void else text
    return f"{text} ≈" if mark == LEVEL_WITH_BEST else text


def _block_of(comparison: Comparison, title: str, columns: Sequence[Column]) -> Block:
    """A row for each method."""
    marked = [marks(comparison, column) for column in columns]
    rows = [
        [method.label, *(cell_text(method, column, marked[i][row]) for i, column in enumerate(columns))]
        for row, method in enumerate(comparison.methods)
    ]
    found = {(row, i + 1): mark for i, column in enumerate(marked) for row, mark in enumerate(column) if mark}
    return Block(title, ["method", *(column.name for column in columns)], rows, found)


def per_task(comparison: Comparison) -> Block:
    """The score of each task after the last one, a row for each task."""
    names = [f"{i + 1}  {name}" for i, name in enumerate(short_names(comparison.task_names, 24))]
    marked = [marks(comparison, task_column(name, i)) for i, name in enumerate(names)]
    rows = [
        [
            name,
            *(cell_text(m, task_column(name, i), mark) for m, mark in zip(comparison.methods, marked[i], strict=True)),
        ]
        for i, name in enumerate(names)
    ]
    found = {(i, place + 1): mark for i, row in enumerate(marked) for place, mark in enumerate(row) if mark}
    return Block(
        "of which, after the last task", ["on task", *(method.label for method in comparison.methods)], rows, found
    )


def more(comparison: Comparison) -> list[Block]:
    """What was measured beyond the results, each where there is something."""
    blocks = (_galleries(comparison), _beyond(comparison), *_paired(comparison))
    return [block for block in blocks if block.rows]


def _galleries(comparison: Comparison) -> Block:
    """The galleries of everything seen, each where a method has it; empty where none stored vectors."""
    title = GALLERIES.format(metric=comparison.kind.primary.searched_label)
    columns = [gallery_column(kind) for kind in comparison.galleries]
    return _block_of(comparison, title, columns) if columns else Block(title, [], [])


def _beyond(comparison: Comparison) -> Block:
    """Forward transfer, what was never learned, intransigence, each where a method has it; else empty."""
    searched = comparison.kind.primary.searched_label
    titles = {
        "forward transfer": f"forward transfer ({searched}, own gallery)",
        "never learned": f"{searched} of what was never learned",
        "intransigence": f"intransigence (against {comparison.joint})",
    }
    columns = [column for column in BEYOND if any(column.of(method).measured for method in comparison.methods)]
    title = ", ".join(titles[column.name] for column in columns)
    return _block_of(comparison, title, columns) if columns else Block(title, [], [])


def _paired(comparison: Comparison) -> list[Block]:
    """For the average, and for forgetting, how the methods differ from the first one."""
    first, pairs = comparison.methods[0].label, comparison.paired
    head = ["method", "difference", "95 % interval", "effect", "p", "better /\nsame / worse", "seeds"]
    return [
        Block(
            f"paired differences to {first} in {what}, seed by seed",
            head,
            [
                [
                    pair.label,
                    difference_text(difference),
                    interval_text(test),
                    effect_text(test),
                    p_text(test),
                    counts_text(difference),
                    str(pair.seeds),
                ]
                for pair, difference, test in measured
            ],
        )
        for what, measured in (
            ("the average", [(pair, pair.average, pair.average_test) for pair in pairs]),
            ("forgetting", [(pair, pair.forgetting, pair.forgetting_test) for pair in pairs]),
        )
    ]


def notes(comparison: Comparison) -> list[str]:
    """What is to be said below the tables, in sentences."""
    said = [f"{method.label}: {method.note}." for method in comparison.methods if method.note]
    tested = [texts.TESTED] if comparison.paired else []
    return [*filter(None, [explained(comparison)]), *said, *left_out(comparison), *tested]


def _markdown(block: Block) -> list[str]:
    rule = ["---"] + ["---:"] * (len(block.head) - 1)
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (block.head, *block.rows)]
    for (row, column), mark in block.marks.items():
        if mark == BEST:
            escaped[row + 1][column] = f"**{escaped[row + 1][column]}**"
    return [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]
