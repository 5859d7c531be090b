"""A plot that was drawn in the light theme and painted dark is what it would be if it were drawn dark."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_neighbours, write_run

from tripletmas.report.compare import comparison
from tripletmas.report.html import Plot
from tripletmas.report.page import _comparison_plots
from tripletmas.report.read import read_run
from tripletmas.report.repaint import repaint
from tripletmas.report.run_plots import run_plots
from tripletmas.report.style import DARK, LIGHT, drawn, painted


def check(plots: list[Plot], most: int = 0) -> None:
    """Whether no more than a few pixels of a plot differ, by a step of the map's colours."""
    for plot in plots:
        figure = drawn(plot.draw, LIGHT)
        painted(figure, LIGHT)
        repaint(figure, LIGHT, DARK)
        pictures = painted(figure, DARK), painted(drawn(plot.draw, DARK), DARK)
        found, expected = (np.asarray(each, dtype=int) for each in pictures)
        assert found.shape == expected.shape, plot.title
        assert np.abs(found - expected).max() <= most, plot.title


@pytest.mark.slow
def test_plots_of_a_run(tmp_path: Path):
    path = write_run(tmp_path / "run", galleries=True)
    write_neighbours(path, 3)
    sections = run_plots(read_run(path), tmp_path)
    check([*sections.learning, *sections.galleries, *sections.drift])


@pytest.mark.slow
def test_plots_of_many_tasks_whose_colours_lie_along_a_map(tmp_path: Path):
    """The 256 colours of the map are taken to the nearest of 256: a step or two apart."""
    path = write_run(tmp_path / "run", num_tasks=12)
    check(run_plots(read_run(path), tmp_path).learning[:1], most=8)


@pytest.mark.slow
def test_plots_of_a_comparison(tmp_path: Path):
    names = ("finetune", "mas", "l2", "si")
    for name, seed in product(names, (0, 1)):
        write_run(tmp_path / name / f"seed{seed}", strategy={"name": name}, seed=seed)
    check(_comparison_plots(comparison([tmp_path / name for name in names]), tmp_path))
