"""What a report shows of forecasts, and the figure of forecasts against measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread
from synthetic_runs import write_run

from tripletmas.report.forecast import Point, draw_forecasts, forecast_rows
from tripletmas.report.read import read_run
from tripletmas.runs.directory import RunDirectory

TOLD = {"cosine": 0.9, "nine_in_ten": 0.75, "between": 0.25}
MATRIX = [[0.8], [0.6, 0.9], [0.4, 0.6, 0.8]]


@pytest.fixture
def run(tmp_path) -> Path:
    """After the third task recall@1 is 0.6 on the mean, 0.42 of it stale, and compensated was never measured."""
    return write_run(tmp_path / "run", matrix=MATRIX, galleries=True)


def test_a_row_for_each_update_that_was_told(run):
    assert forecast_rows(read_run(run)) == ([], [])
    directory = RunDirectory(run)
    directory.keep_forecast({"after": 2, **TOLD, "recall": {"stale": [0.35, 0.4, 0.5], "fresh": [0.5, 0.6, 0.75]}})
    directory.keep_forecast({"after": 1, **TOLD, "recall": {"stale": [None, None, None], "fresh": [0.1, 0.2, 0.3]}})
    directory.keep_forecast({"after": 9, **TOLD, "recall": {"stale": [0.1, 0.2, 0.3]}})  # of tasks that are gone
    columns, rows = forecast_rows(read_run(run))
    assert columns[-2:] == ["fresh", "stale"]
    names = read_run(run).task_names
    # stale is 0.7 of the fresh score: 0.42 of 0.6
    assert rows == [
        [names[1], "0.900", "0.750", "0.250", "0.100 to 0.300 (0.750)", "–"],
        [names[2], "0.900", "0.750", "0.250", "0.500 to 0.750 (0.600)", "0.350 to 0.500 (0.420)"],
    ]


def test_a_forecast_replaces_that_of_the_same_update(run):
    directory = RunDirectory(run)
    for cosine in (0.1, 0.2):
        directory.keep_forecast({"after": 1, **TOLD, "cosine": cosine, "recall": {}})
    assert [each["cosine"] for each in directory.forecasts()] == [0.2]


def test_the_figure(tmp_path):
    points = [Point("digits", (0.4, 0.5, 0.6), 0.55), Point("birds", (0.2, 0.3, 0.4), 0.7)]
    draw_forecasts(tmp_path / "figure.png", {"stale": points, "fresh": points[:1]})
    assert imread(tmp_path / "figure.png").shape[1] > 1000
    with pytest.raises(ValueError, match="no forecast is there yet"):
        draw_forecasts(tmp_path / "none.png", {"stale": []})
