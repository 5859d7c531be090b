"""What a report shows of stored vectors: galleries, drift, what queries find, the map; and how a page is read."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from PIL import Image
from report_pages import MATRIX, NAMES, Page, ink, terminal
from synthetic_runs import write_run

from tripletmas.objectives.grid import read_grid
from tripletmas.report.compare import comparison
from tripletmas.report.drift import ClassDrift, draw_class_drift, drift_by_class, drift_by_task, most_and_least
from tripletmas.report.embedding_map import read_map
from tripletmas.report.galleries import choice_rows, gallery_rows
from tripletmas.report.grid import groups, thumbnail, verdict
from tripletmas.report.heat_map import draw_matrix
from tripletmas.report.page import write_comparison
from tripletmas.report.read import Classes, read_run
from tripletmas.report.spots import spots_of
from tripletmas.report.style import DARK, LIGHT, Theme, canvas, contrast
from tripletmas.report.tables import comparison_markdown
from tripletmas.report.values import of_matrix
from tripletmas.runs.directory import RunDirectory


def test_the_kinds_of_galleries_that_a_run_has(run: Path, stored: Path, unfinished: Path):
    kinds = [[row[0] for row in gallery_rows(read_run(path))] for path in (run, unfinished, stored)]
    assert kinds == [[], ["fresh", "stale"], ["fresh", "stale", "compensated"]]


def test_the_maps_that_chose_themselves(run: Path, stored: Path):
    assert choice_rows(read_run(run)) == ([], [])
    candidates, rows = choice_rows(read_run(stored))
    assert candidates == ["none", "procrustes", "linear"]
    assert [row[1:] for row in rows] == [
        ["procrustes", "1,200", "0.50000", "0.85000", "–"],
        ["procrustes", "1,200", "0.50000", "0.95000", "–"],
    ]
    assert "The map that chose itself" in (stored / "report" / "report.html").read_text(encoding="utf-8")
    assert "The map that chose itself" not in (run / "report" / "report.html").read_text(encoding="utf-8")


def test_drift_by_task_and_by_class(stored: Path):
    """Classes 2 i and 2 i + 1 drift by 0.05 and 0.1 in each later task, the task by their mean, 0.075."""
    found = read_run(stored)
    matrix = drift_by_task(found)
    assert matrix is not None
    nan = math.nan
    expected = torch.tensor([[nan, nan, nan], [0.075, nan, nan], [0.15, 0.075, nan]], dtype=torch.float64)
    torch.testing.assert_close(matrix, expected, equal_nan=True)
    drifts = drift_by_class(found)
    expected = [(NAMES[1], 0), (NAMES[0], 0), (NAMES[3], 1), (NAMES[2], 1)]
    assert [(each.name, each.task) for each in drifts] == expected
    assert [each.drift for each in drifts] == pytest.approx([0.2, 0.1, 0.1, 0.05])
    assert drift_by_class(replace(found, classes=Classes()))[0].name == "class 2 of task 1"


def test_of_many_classes_the_most_and_the_least_drifted_are_drawn(tmp_path: Path):
    drifts = [ClassDrift(f"class {i}", i // 10, 1 - i / 100) for i in range(100)]
    most, least = most_and_least(drifts)
    assert (most[0], least[-1]) == (drifts[0], drifts[-1])
    assert len(most) + len(least) == 20
    with canvas(tmp_path / "drift.png") as figure:
        draw_class_drift(figure, LIGHT, drifts)
    assert 0.005 < ink(tmp_path / "drift.png") < 0.9


@pytest.mark.parametrize("size", [2, 3, 18])
def test_a_map_begins_with_the_first_row_and_ends_with_the_last_column_that_has_a_number(tmp_path: Path, size: int):
    """No class drifts in its own task: nothing is known after the first one, and nothing of the last."""
    drifts = torch.full((size, size), torch.nan, dtype=torch.float64)
    for after, of in zip(*torch.tril_indices(size, size, -1).tolist(), strict=True):
        drifts[after, of] = (after + of) / 100
    names = [f"t{i + 1}" for i in range(size)]
    with canvas(tmp_path / "map.png") as figure:
        draw_matrix(figure, LIGHT, drifts, names, high=0.4, column="of task")
        figure.canvas.draw()
        spots = spots_of(figure)
        image = figure.axes[0].images[0]
    assert image.get_array().shape == (size - 1, size - 1)  # pyright: ignore[reportOptionalMemberAccess]
    assert len(spots) == size * (size - 1) // 2
    said = spots[-1][2]  # after the last task, of the last but one: with names or, where some are left out, numbers
    assert re.fullmatch(
        rf"after learning task {size}(  t{size})?, of task t?{size - 1}: {(2 * size - 3) / 100:.3f}", said
    )
    table = of_matrix(drifts, names, "after learning task")
    assert table is not None
    assert table.head[1:] == [f"{i + 1}\N{EN SPACE}t{i + 1}" for i in range(size - 1)]
    assert [row[0] for row in table.rows] == [f"{i + 1}\N{EN SPACE}t{i + 1}" for i in range(1, size)]
    assert table.rows[-1][-1] == f"{(2 * size - 3) / 100:.3f}"


def test_queries_whose_answer_changed_come_first(stored: Path):
    """Of the 6 queries of a task the third and the sixth forgot their class; those of the last task have no before."""
    kept = read_grid(RunDirectory(stored))
    assert kept is not None
    first, second, last = groups(kept, read_run(stored))
    assert first.title == f"Task 1\N{EN SPACE}{NAMES[0]},{NAMES[1]}"
    assert first.note == "4 of 6 queries; the first answer turned right or wrong for 2 of 6"
    assert last.note == "4 of 6 queries"
    assert [verdict(row)[0] for row in first.rows] == ["now wrong", "now wrong", "still right", "still right"]
    assert [[hit.right for hit in row.found[1]] for row in first.rows[:2]] == [[False, True, False, True, False]] * 2
    assert all(hit.right for row in second.rows for hit in row.found[0])
    assert [verdict(row) for row in last.rows] == [("right", True)] * 4
    assert not any(row.found[0] for row in last.rows)
    page = (stored / "report" / "report.html").read_text(encoding="utf-8")
    assert re.search(r'alt="rank 1: class 1, wrong, score 0\.9\d\d"', page)
    assert page.count("nothing: the task was not learned yet") == 4


@pytest.mark.parametrize(
    ("size", "channels", "kind", "tiny"), [(8, 1, "png", True), (32, 3, "png", False), (300, 3, "webp", False)]
)
def test_pictures_are_small_files_of_one_size(size: int, channels: int, kind: str, tiny: bool):
    picture = thumbnail(torch.zeros(channels, size, size, dtype=torch.uint8), 64)
    assert picture.source.startswith(f"data:image/{kind};base64,")
    assert (picture.width, picture.height, picture.tiny) == (64, 64, tiny)
    content = base64.b64decode(picture.source.partition(",")[2])
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (min(size, 144),) * 2


def followed(path: Path, steps: dict[int, list[list[float]]], labels: list[int]) -> Path:
    """A run with the vectors of followed queries after each of its tasks, of two classes each."""
    path.mkdir()
    (path / "config.yaml").write_text("seed: 0\n")
    records = ({"kind": "task", "task": task, "name": f"class {2 * task},class {2 * task + 1}"} for task in steps)
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for task, vectors in steps.items():
        known = torch.tensor(labels[: len(vectors)])
        tensors = {"vectors": torch.tensor(vectors), "labels": known, "tasks": known // 2}
        RunDirectory(path).of_tasks("gallery/shown").write(task, tensors)
    return path


def test_the_map_has_one_projection_for_all_steps(stored: Path, tmp_path: Path):
    """Two classes a task and 6 queries each. A vector that does not move stays in its place, whatever joins it."""
    found = read_map(read_run(stored))
    assert found is not None
    assert [len(points) for points in found.points] == [12, 24, 36]
    assert (found.groups.by, found.shown, found.of) == ("class", 36, 36)
    assert 0 < found.kept < 1
    assert not set("<>&") & set(found.json)  # names cannot leave it
    assert set(json.loads(found.json)["classes"]) == set(NAMES)
    for points in found.points:
        assert points.min() >= 0
        assert (points <= [found.width, found.height]).all()
    vectors = torch.eye(4).tolist()
    still = read_map(read_run(followed(tmp_path / "still", {0: vectors[:2], 1: vectors}, [0, 1, 2, 3])))
    assert still is not None
    np.testing.assert_array_equal(still.points[0], still.points[1][:2])
    assert still.said[1].startswith("After task 2 of 2, class 2,class 3: 4 queries. Those of earlier tasks")
    assert "turned by 0.000" in still.said[1].replace("-0.000", "0.000")


def test_pages_whose_script_does_not_run_show_the_last_step(stored: Path, tmp_path: Path):
    """Queries 0 and 1 are of one class, 2 of another, and new: it has a mark, and no trail."""
    steps = {0: [[1.0, 0.0], [0.0, 1.0]], 1: [[1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]]}
    found = read_map(read_run(followed(tmp_path / "run", steps, [0, 0, 1])))
    assert found is not None
    before, now = (points.tolist() for points in found.points)
    assert found.last_marks == [now[:2], now[2:]]
    ways = "".join("M{} {}L{} {}".format(*before[i], *now[i]) for i in (0, 1))
    assert found.last_trails == [ways, ""]
    (shown,) = re.findall("<noscript>.*?</noscript>", (stored / "report" / "report.html").read_text(), re.DOTALL)
    assert shown.count("<use") == 36
    assert len(re.findall(r"M\d+ \d+L", shown)) == 24


def test_the_map_names_the_tasks_of_its_files(unfinished: Path):
    """It has the files of tasks 2 and 3, and that of a fourth, which is not finished."""
    found = read_map(read_run(unfinished))
    assert found is not None
    assert found.after == (1, 2)
    assert [len(points) for points in found.points] == [24, 36]
    assert found.said[0].startswith("After task 2 of 3, class 2,class 3: 24 queries.")
    assert json.loads(found.json)["after"] == [2, 3]


def test_more_than_a_hundred_tasks_are_in_order(tmp_path: Path):
    """The file of task 100 is named with three digits, and sorts before that of task 11 by name."""
    steps = {task: torch.eye(task + 1, 101).tolist() for task in (10, 11, 100)}
    found = read_map(read_run(followed(tmp_path / "run", steps, list(range(101)))))
    assert found is not None
    assert found.after == (10, 11, 100)
    assert [len(points) for points in found.points] == [11, 12, 101]


def test_how_far_queries_turned_is_said(tmp_path: Path):
    """One query turns by a right angle, 1 - cos = 1, the other stays, 0: mean 0.5. Two axes keep all of a plane."""
    steps = {0: [[1.0, 0.0], [0.0, 2.0]], 1: [[1.0, 0.0], [3.0, 0.0]]}
    found = read_map(read_run(followed(tmp_path / "run", steps, [0, 1])))
    assert found is not None
    assert "turned by 0.500 on average" in found.said[1]
    assert found.kept == pytest.approx(1)


def test_tables_and_pictures_say_what_they_are(stored: Path):
    page = (stored / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("<table>") == page.count("<caption>")
    assert not re.search(r"<th(?![^>]*scope=)[ >]", page)
    assert not re.search(r"<img(?![^>]*alt=\"[^\"]+\")", page)
    assert '<html lang="en">' in page
    assert page.count("<h1") == 1


def test_every_plot_is_drawn_for_dark_pages_too(stored: Path):
    plots = sorted((stored / "report").glob("*.png"))
    assert {path.stem for path in plots if path.stem.endswith("-dark")} == {
        f"{path.stem}-dark" for path in plots if not path.stem.endswith("-dark")
    }
    for path in plots:
        corner = imread(path)[0, 0, :3]
        expected = DARK.background if path.stem.endswith("-dark") else LIGHT.background
        np.testing.assert_allclose(corner, to_rgb(expected), atol=1 / 255)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_contrast(theme: Theme):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colour in (theme.ink, theme.muted):
        assert min(contrast(colour, ground) for ground in (theme.background, theme.tint)) >= 4.5
    for colour in (theme.accent, theme.right, theme.wrong, *map(theme.readable, theme.series)):
        assert contrast(colour, theme.background) >= 4.5


def test_a_comparison_has_the_galleries_that_any_run_has(stored: Path, run: Path, tmp_path: Path, undrawn):
    other = write_run(tmp_path / "finetune", strategy={"name": "finetune"}, matrix=MATRIX, galleries=True)
    compared = comparison([stored, other])
    assert compared.galleries == ("fresh", "stale", "compensated")
    row = r"finetune +0\.750 +0\.525 +0\.675"
    assert re.search(row, terminal(compared))
    assert "| finetune | 0.750 | 0.525 | 0.675 |" in comparison_markdown(compared)
    assert re.search(row, Page(write_comparison([stored, other], tmp_path / "out")).text)
    assert comparison([run]).galleries == ()
    without = comparison([run, other])
    assert without.galleries == ("fresh", "stale", "compensated")
    assert re.search(r"mas +– +– +– *$", terminal(without), flags=re.M)


def test_a_method_without_a_map_is_compared_by_what_it_has(tmp_path: Path, undrawn):
    """A strategy that holds what vectors say moves none: its column says so, and its name need not."""
    held, moved = {"matrix": MATRIX, "galleries": True, "compensate": None}, {"matrix": MATRIX, "galleries": True}
    gram = write_run(tmp_path / "gram", strategy={"name": "gram"}, **held)
    found = terminal(comparison([gram, write_run(tmp_path / "mas", **moved)]))
    assert re.search(r"gram +0\.750 +0\.525 +– *$", found, flags=re.M)
    assert re.search(r"mas +0\.750 +0\.525 +0\.675 *$", found, flags=re.M)
    same = comparison([gram, write_run(tmp_path / "moved", strategy={"name": "gram"}, **moved)])
    assert [method.label for method in same.methods] == ["gram, compensate=None", "gram, compensate=linear"]
    maps = comparison([write_run(tmp_path / "sdc", compensate="sdc", strategy={"name": "distill"}), tmp_path / "mas"])
    assert [method.label for method in maps.methods] == ["distill, compensate=sdc", "mas, compensate=linear"]
