"""How the strength for each task was searched: a table, a plot and a sentence, from the records of kind "search".

A record has "task", "name", "finetune" and "floor" (scores on validation data of the new task), "trials" (a list of
"strength" and "score", in the order in which they were tried) and "strength", the accepted one: that of the last trial,
or 0 where none reached the floor; "chance", the score of guessing, "metric" and "search_seconds".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.console import RenderableType
from rich.table import Table

from tripletmas.report.numbers import lower_end, number, short_names
from tripletmas.report.read import Record
from tripletmas.report.style import Theme, label_line_ends, score_axis
from tripletmas.report.terminal import terminal_table

HEAD = ("task", "chance", "finetune", "floor", "trials", "score", "strength", "seconds")  # of `search_rows`

_MAX_COLOURS = 8  # more tasks than this are coloured by their order, and only the first and last are named


def search_table(records: Sequence[Record]) -> RenderableType:
    """What was chosen for each task, for the terminal: `rich.print(search_table(...))`."""
    table: Table = terminal_table(HEAD, search_rows(records))
    table.caption, table.caption_justify = search_text(records, terminal=True), "left"
    return table


def search_rows(records: Sequence[Record], *, limit: int = 14) -> list[list[str]]:
    """A row of cells for each task; the score is that of the accepted strength, a dash where none was accepted.

    Args:
        limit: the characters of a task's name that are shown; the default fits the table into 80 columns.
    """
    names = short_names([str(record.get("name", "")) for record in records], limit)
    return [
        [
            f"{record['task'] + 1}  {name}",
            *(number(record[key]) for key in ("chance", "finetune", "floor")),
            str(len(record["trials"])),
            number(record["trials"][-1]["score"]) if record["strength"] > 0 else "–",
            f"{record['strength']:.4g}" if record["strength"] > 0 else "none",
            number(record["search_seconds"], 1),
        ]
        for record, name in zip(records, names, strict=True)
    ]


def search_text(records: Sequence[Record], *, terminal: bool = False) -> str:
    """How the strengths were chosen, and how to read the plot or the table."""
    shares = {round(record["floor"] / record["finetune"], 3) for record in records if record["finetune"]}
    share = f"{100 * shares.pop():g} %" if len(shares) == 1 else "a fixed share"
    rule = (
        f"Start high and halve until the new task is learned to at least {share} of what finetuning reaches on "
        "validation data held out from it (De Lange et al., A Continual Learning Survey, TPAMI 2021)."
    )
    refused = [record for record in records if not record["strength"] > 0]
    none = f" Tasks where no strength reached it, learned without protection: {len(refused)}." if refused else ""
    if terminal:
        return rule + none
    return (
        f"{rule} No old data is looked at. Read from right to left: a dashed line is what was asked for on the task of "
        f"its colour, the ring marks the strength that was accepted.{none}"
    )


def draw_search(figure: Figure, theme: Theme, records: Sequence[Record]) -> None:
    """The score of each trial over its strength: a line for each task, its floor dashed, the accepted one in a ring."""
    many = len(records) > _MAX_COLOURS
    names = short_names([f"{record['task'] + 1}  {record.get('name', '')}" for record in records], 16)
    colours = theme.in_order(len(records)) if many else theme.series
    tried = sorted({trial["strength"] for record in records for trial in record["trials"]}, reverse=True)
    scores = [score for record in records for score in (record["floor"], *_scores(record)) if not math.isnan(score)]
    axes = figure.add_subplot()
    ends = [
        (_draw_trials(axes, record, colour), name, colour)
        for record, name, colour in zip(records, names, colours, strict=False)
    ]
    axes.set_xscale("log")
    axes.set_xticks(tried[:: math.ceil(len(tried) / 8)])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(tried[-1] / 1.6, tried[0] * 1.3)
    axes.set_xlabel("strength")
    score_axis(axes, lower_end([torch.tensor(scores, dtype=torch.float64)]), str(records[0]["metric"]))
    label_line_ends(axes, [ends[0], ends[-1]] if many else ends, theme, x=tried[0] * 1.3)


def _draw_trials(axes: Axes, record: Record, colour: str) -> float:
    """The trials of one task; the height of the first that did not diverge, where the name belongs."""
    strengths = [trial["strength"] for trial in record["trials"]]
    scores = _scores(record)
    axes.plot(strengths, scores, color=colour, linewidth=1.2, marker="o", markersize=3.5)
    reach = (min(strengths) / 1.3, max(strengths) * 1.3)  # so that a single trial has a line, too
    axes.hlines(record["floor"], *reach, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
    if record["strength"] > 0:
        ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.4}
        axes.plot(strengths[-1], scores[-1], color=colour, **ring)
    return next((score for score in scores if not math.isnan(score)), record["floor"])


def _scores(record: Record) -> list[float]:
    """The score of each trial; nan where it diverged."""
    return [math.nan if trial["score"] is None else trial["score"] for trial in record["trials"]]
