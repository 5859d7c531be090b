"""What a page says at its head, and the values behind its plots."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from report_pages import MATRIX
from synthetic_runs import write_run

from tripletmas.report.compare import comparison
from tripletmas.report.made import made_by
from tripletmas.report.numbers import scale_of, upper_end
from tripletmas.report.plots import draw_over_tasks
from tripletmas.report.read import read_run
from tripletmas.report.spots import spots_of
from tripletmas.report.style import LIGHT, canvas
from tripletmas.report.summary import said, worth_of
from tripletmas.report.summary_of_seeds import said_of_seeds
from tripletmas.report.values import of_curves, of_epochs, of_matrix


def _texts(path: Path) -> dict[str, str]:
    return {each.title: each.text for each in said(read_run(path))}


def _with(path: Path, **of_task: list) -> Path:
    """The run with more in the records of its tasks, one after the other."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for i, line in enumerate(line for line in lines if line["kind"] == "task"):
        line |= {key: values[i] for key, values in of_task.items()}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_head_says_what_can_be_known(tmp_path: Path):
    """Scores 0.6, 0.7, 0.95 of 100 queries each: sqrt((0.24 + 0.21 + 0.0475) / 100) / 3 = 0.0235, twice that 0.047."""
    guess = {"metric": "recall@1", "queries": 100, "score": 0.9, "chance": 0.25}
    path = _with(write_run(tmp_path / "run", matrix=MATRIX), guess=[guess] * 3, queries=[[100] * n for n in (1, 2, 3)])
    texts = _texts(path)
    assert "on its own gallery 0.900, where guessing has about 0.25." in texts["Learned"]
    assert texts["Collapse"] == "No sign of one, after any task."
    assert texts["How sure this is"].startswith("300 queries leave ± 0.047 open")
    assert said(read_run(write_run(tmp_path / "none", done=0))) == []
    one = _texts(write_run(tmp_path / "one", num_tasks=4, done=1, matrix=MATRIX))
    assert one["Learned"].startswith("1 of 4 tasks so far. Right after it was learned, a task had recall@1 0.900.")
    assert one["Forgotten"] == "Nothing yet: a single task is done."
    assert "The old index" not in one


def test_the_head_of_several_seeds_says_it_of_all(tmp_path: Path):
    """At the end 0.75 and 0.85, so 0.8 ± 0.1 / sqrt(2); the first task fell by 0.3 and 0.1, the second by 0.1 and 0.

    Student's t of one degree is 12.7 at 97.5 %: 0.8 - 12.7 x 0.0707 / sqrt(2) = 0.165, and no score is above 1.
    """
    better = [MATRIX[0], MATRIX[1], [0.8, 0.8, 0.95]]
    for seed, matrix in enumerate((MATRIX, better)):
        write_run(tmp_path / "mas" / f"seed{seed}", seed=seed, matrix=matrix, galleries=True)
    texts = {each.title: each.text for each in said_of_seeds(comparison([tmp_path / "mas"]).methods[0])}
    assert texts["Learned"].startswith("All 2 seeds have learned all 3 tasks. Right after it was learned, a task had")
    assert "recall@1 is 0.800 ± 0.071, a mean over the tasks." in texts["Forgotten"]
    assert "fell by 0.125 ± 0.106 from their best; most task 1 (" in texts["Forgotten"]
    assert texts["Forgotten"].endswith("by 0.200 on average.")
    assert "70\N{NO-BREAK SPACE}% of it is left. It has lost much" in texts["The old index"]
    assert "90\N{NO-BREAK SPACE}%." in texts["The old index"]
    assert (
        "2 seeds end between 0.750 and 0.850. They leave the mean open from 0.165 to 1.000" in texts["How sure this is"]
    )
    write_run(tmp_path / "mas" / "seed2", seed=2, done=1)
    texts = {each.title: each.text for each in said_of_seeds(comparison([tmp_path / "mas"]).methods[0])}
    assert texts["Learned"].startswith("2 of 3 seeds have learned")
    write_run(tmp_path / "none" / "seed0", done=1)
    assert said_of_seeds(comparison([tmp_path / "none"]).methods[0]) == []


def test_a_run_that_learned_nothing_forgot_nothing(tmp_path: Path):
    guess = {"metric": "recall@1", "queries": 100, "score": 0.25, "chance": 0.25}
    collapsed = {"equal": "embeddings are nearly equal"}
    path = _with(write_run(tmp_path / "run"), guess=[guess] * 3, collapse=[collapsed] * 3)
    texts = _texts(path)
    assert texts["Learned"].endswith("That is no better than guessing.")
    assert "cannot be forgotten" in texts["Forgotten"]
    assert texts["Collapse"].startswith("The embedding has collapsed: 3 of 3 tasks.")


@pytest.mark.parametrize(
    ("share", "worth"), [(0.98, "can stay"), (0.9, "still serves"), (0.6, "lost much"), (0.1, "little")]
)
def test_what_the_old_index_is_worth(tmp_path: Path, share: float, worth: str):
    path = write_run(tmp_path / "run", matrix=MATRIX, galleries=True)
    content = json.loads((path / "scores.json").read_text())
    stale = [[value and share * value for value in row] for row in content["matrices"]["seen"]["recall@1"]]
    content["matrices"]["seen_stale"]["recall@1"] = stale
    (path / "scores.json").write_text(json.dumps(content))
    assert worth in _texts(path)["The old index"]
    assert f"{100 * share:.0f}\N{NO-BREAK SPACE}% of it is left" in _texts(path)["The old index"]


def test_an_old_index_that_finds_more_has_lost_nothing():
    """By chance stored vectors can find more than fresh ones: of 101 % nobody would know what they mean."""
    assert worth_of(0.91, 0.9) == worth_of(0.9, 0.9) == "nothing is lost. It can stay as it is."


def test_an_accuracy_is_compared_with_guessing_without_a_gallery(tmp_path: Path):
    guess = {"metric": "accuracy", "queries": 100, "score": 0.9, "chance": 0.5}
    path = _with(write_run(tmp_path / "run", matrix=MATRIX, objective="recognition"), guess=[guess] * 3)
    assert _texts(path)["Learned"].endswith("accuracy 0.883 on average, where guessing has about 0.50.")


def test_values_of_plots_as_tables():
    matrix = torch.tensor([[0.5, torch.nan], [0.25, 0.75]], dtype=torch.float64)
    found = of_matrix(matrix, ("red", "blue"), "after task", mean=True)
    assert found is not None
    assert found.head == ["after task", "mean", "1\u2002red", "2\u2002blue"]
    assert found.rows == [["1\u2002red", "0.500", "0.500", ""], ["2\u2002blue", "0.500", "0.250", "0.750"]]
    assert of_matrix(torch.zeros(40, 40), (), "after task") is None
    curves = of_curves({"fresh": [0.5, 0.25], "stale": [0.125]}, ("red",))
    assert curves is not None
    assert curves.rows == [["1\u2002red", "0.500", ""], ["2", "0.250", "0.125"]]
    epochs = [{"task": 0, "loss": 1.0}, {"task": 0, "loss": 0.5}, {"task": 1, "loss": None, "penalty": 0.25}]
    losses = of_epochs(epochs, ("red", "blue"), "loss")
    assert losses is not None
    assert losses.rows == [["1\u2002red", "2", "1", "0.5", "–", "–"], ["2\u2002blue", "1", "–", "–", "0.25", "0.25"]]


def test_spots_lie_where_the_plot_has_its_values(tmp_path: Path):
    """At each spot the picture is not white."""
    matrix = torch.tensor([[0.5, torch.nan], [0.25, 0.75]], dtype=torch.float64)
    with canvas(tmp_path / "plot.png") as figure:
        draw_over_tasks(figure, LIGHT, matrix, ("a rather long name", "blue"), "recall@1")
    spots = {said: (x, y) for x, y, said in spots_of(figure)}
    assert set(spots) == {
        "task 1 (a rather long name), after task 1: 0.500",
        "task 1 (a rather long name), after task 2: 0.250",
        "task 2 (blue), after task 2: 0.750",
        "average, after task 1: 0.500",
        "average, after task 2: 0.500",
    }
    from matplotlib.image import imread

    picture = imread(tmp_path / "plot.png")[..., :3]
    height, width, _ = picture.shape
    for x, y in spots.values():
        assert np.abs(picture[round(y * height), round(x * width)] - 1).max() > 0.2


def test_the_axis_of_scores_ends_where_they_do():
    assert [upper_end(curves) for curves in ([[0.2, 0.6]], [[0.13]], [[0.41, float("nan")]], [[0.0]], [[]])] == [
        *(1.0, 0.2, 0.5, 0.1, 1.0)
    ]
    low = torch.tensor([[0.22, torch.nan], [0.15, 0.25]])
    assert scale_of([low]) == (0.1, 0.3)  # the tenths below and above
    assert scale_of([low, low + 0.5]) == (0.1, 1.0)


def test_how_a_run_was_made(tmp_path: Path):
    made = made_by(read_run(write_run(tmp_path / "a run", samples="a")))
    assert made.command == "tripletmas train --config 'a run/config.yaml' --out 'a run-again'"
    assert [task[2] for task in made.tasks] == ["a0", "a1", "a2"]
    assert made.options["strategy"] == {"name": "mas", "strength": 0.3}
    assert made.options[""]["seed"] == 0
    program = made_by(read_run(write_run(tmp_path / "program", alone=True)))
    assert (program.command, program.tasks, program.stream) == ("", [], "")
    again = made_by(read_run(write_run(tmp_path / "b", samples="a", seed=3)))
    assert again.stream == made.stream
