#!/usr/bin/env python3
"""What the plots of a run's report cost: laid out once and painted in both themes, and drawn anew in each.

    .venv/bin/python scripts/bench_report.py runs/mas [--rounds 7]

One process; seconds of the processor, of both ways by turns, and of the rounds the medians.
What encodes the pictures, t-SNE, and the page itself are not in them. The pictures of both ways are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tripletmas.report.read import read_run
from tripletmas.report.repaint import repaint
from tripletmas.report.run_plots import run_plots
from tripletmas.report.style import DARK, DPI, LIGHT, THEMES, Theme, drawn, painted

Draw = Callable[[Figure, Theme], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sections = run_plots(read_run(options.run), Path(folder))
        plots = [*sections.learning, *sections.galleries, *sections.drift]
        draws = [plot.draw for plot in plots]
    differ = sum(not is_same(draw) for draw in draws)
    print(f"{len(draws)} plots in two themes; {differ} whose dark picture is another")
    times = [(seconds(twice, draws), seconds(once, draws)) for _ in range(options.rounds)]
    before, after = (statistics.median(each) for each in zip(*times, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in times)
    print(f"drawn in each theme {before:.2f} s, laid out once {after:.2f} s, ratio {ratio:.2f}")


def once(draw: Draw) -> None:
    figure = drawn(draw, LIGHT)
    painted(figure, LIGHT)
    repaint(figure, LIGHT, DARK)
    painted(figure, DARK)


def twice(draw: Draw) -> None:
    """As `savefig` does it, which goes over a figure once more to lay it out."""
    for theme in THEMES:
        drawn(draw, theme).savefig(BytesIO(), dpi=DPI, format="rgba")


def is_same(draw: Draw) -> bool:
    figure = drawn(draw, LIGHT)
    painted(figure, LIGHT)
    repaint(figure, LIGHT, DARK)
    return np.array_equal(painted(figure, DARK), painted(drawn(draw, DARK), DARK))


def seconds(work: Callable[[Draw], None], draws: Sequence[Draw]) -> float:
    began = time.process_time()
    for draw in draws:
        work(draw)
    return time.process_time() - began


if __name__ == "__main__":
    main()
