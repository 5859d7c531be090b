"""What a report shows of stored vectors: galleries, drift, what queries find, the map; and how a page is read."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from PIL import Image
from report_pages import MATRIX, Page, ink, terminal
from safetensors.torch import save_file
from synthetic_runs import write_run

from tripletmas.objectives.grid import read_grid
from tripletmas.report.classes import Classes, read_classes
from tripletmas.report.compare import comparison
from tripletmas.report.drift import ClassDrift, draw_class_drift, drift_by_class, drift_by_task, most_and_least
from tripletmas.report.embedding_map import map_json, read_map, step_text
from tripletmas.report.galleries import gallery_rows
from tripletmas.report.grid import groups, thumbnail
from tripletmas.report.page import write_comparison, write_report
from tripletmas.report.read import read_run
from tripletmas.report.style import DARK, LIGHT, Theme, contrast
from tripletmas.report.tables import comparison_markdown
from tripletmas.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything that is recorded of stored vectors, with its report."""
    path = write_run(tmp_path_factory.mktemp("runs") / "stored", matrix=MATRIX, galleries=True, points=10)
    write_report(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an earlier version, with its report."""
    path = write_run(tmp_path_factory.mktemp("runs") / "mas", matrix=MATRIX, points=10)
    write_report(path)
    return path


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 3 of 4 tasks, begun by an earlier version, without a drift map; its report."""
    path = write_run(tmp_path_factory.mktemp("runs") / "unfinished", num_tasks=4, done=3, galleries=True)
    (path / "gallery" / "shown00.safetensors").unlink()
    (path / "gallery" / "shown03.safetensors").write_bytes(b"of a task that was cut off")
    content = json.loads((path / "scores.json").read_text())
    for gallery in ("seen_compensated", "task_compensated"):
        del content["matrices"][gallery]
    (path / "scores.json").write_text(json.dumps(content))
    (path / "compatibility.json").write_text('{"metric": "recall@1", "matrix": [[0.9, null], [0.8, 0.9]]}')
    write_report(path)
    return path


def test_the_galleries_are_compared(stored: Path, run: Path):
    """Of the fresh average 0.75, stale has 0.7, 0.525, compensated 0.9, 0.675. Images: 200 + 400; seconds: 0.25 + 0.5.

    On the task's own gallery 1.01 of it, at most 1: (0.606 + 0.707 + 0.9595) / 3 = 0.7575.
    """
    text = Page(stored / "report" / "report.html").text
    assert "fresh embedded again by the present model after every task 0.750 100 % 0.757 100 % 600 0.75" in text
    assert "never again 0.525 70 % 0.530 70 % 0 0" in text
    assert "moved by a linear map fitted on the new task's images alone 0.675 90 % 0.682 90 % 0 0" in text
    for name in ("galleries_seen", "galleries_task", "scores_seen_stale", "scores_task_compensated", "unseen"):
        assert 0.003 < ink(stored / "report" / f"{name}.png") < 0.9
    assert "Stored vectors were not measured" in Page(run / "report" / "report.html").text
    assert gallery_rows(read_run(run)) == []


def test_a_run_without_a_map_has_no_compensated_gallery(unfinished: Path):
    assert [row.kind for row in gallery_rows(read_run(unfinished))] == ["fresh", "stale"]
    assert "ompensated gallery" not in Page(unfinished / "report" / "report.html").text


def test_drift_by_task_and_by_class(stored: Path):
    """Classes 2 i and 2 i + 1 drift by 0.05 and 0.1 in each later task, the task by their mean, 0.075."""
    found = read_run(stored)
    matrix = drift_by_task(found)
    assert matrix is not None
    nan = math.nan
    expected = torch.tensor([[nan, nan, nan], [0.075, nan, nan], [0.15, 0.075, nan]], dtype=torch.float64)
    torch.testing.assert_close(matrix, expected, equal_nan=True)
    drifts = drift_by_class(found, read_classes(stored))
    assert [(each.name, each.task) for each in drifts] == [
        ("class 1", 0),
        ("class 0", 0),
        ("class 3", 1),
        ("class 2", 1),
    ]
    assert [each.drift for each in drifts] == pytest.approx([0.2, 0.1, 0.1, 0.05])
    unnamed = drift_by_class(found, Classes())
    assert unnamed[0].name == "class 2 of task 1"


def test_of_many_classes_the_most_and_the_least_drifted_are_drawn(tmp_path: Path):
    drifts = [ClassDrift(f"class {i}", i // 10, 1 - i / 100) for i in range(100)]
    most, least = most_and_least(drifts)
    assert (most[0], least[-1]) == (drifts[0], drifts[-1])
    assert len(most) + len(least) == 20
    draw_class_drift(tmp_path / "drift.png", drifts)
    assert 0.005 < ink(tmp_path / "drift.png") < 0.9


def test_queries_whose_answer_changed_come_first(stored: Path):
    """Of the 6 queries of a task the third and the sixth forgot their class; those of the last task have no before."""
    kept = read_grid(RunDirectory(stored))
    assert kept is not None
    first, second, last = groups(kept, read_run(stored).task_names)
    assert first.title.split() == ["Task", "1", "class", "0,class", "1"]
    assert first.note == "4 of 6 queries; the first answer turned right or wrong for 2 of 6"
    assert last.note == "4 of 6 queries"
    assert [row.said for row in first.rows] == ["now wrong", "now wrong", "still right", "still right"]
    assert [[card.right for card in row.found[1][1]] for row in first.rows[:2]] == [
        [False, True, False, True, False]
    ] * 2
    assert all(card.right for row in second.rows for card in row.found[0][1])
    assert [row.said for row in last.rows] == ["right"] * 4
    assert not any(row.found[0][1] for row in last.rows)
    alt = first.rows[0].found[1][1][0].alt
    assert re.fullmatch(r"rank 1: class 1, wrong, score 0\.9\d\d", alt)
    page = stored / "report" / "report.html"
    assert "✗" in Page(page).text
    assert page.read_text(encoding="utf-8").count(alt) >= 1


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


def test_the_map_has_one_projection_for_all_steps(stored: Path, tmp_path: Path):
    """Two classes a task and 6 queries each. A vector that does not move stays in its place, whatever joins it."""
    found = read_map(read_run(stored), read_classes(stored))
    assert found is not None
    assert [len(points) for points in found.points] == [12, 24, 36]
    assert (found.coloured_by, found.shown, found.of) == ("class", 36, 36)
    assert 0 < found.kept < 1
    assert min(points.min() for points in found.points) >= 0
    assert max(points[:, 0].max() for points in found.points) <= found.width
    assert max(points[:, 1].max() for points in found.points) <= found.height
    path = write_run(tmp_path / "still", num_tasks=2, galleries=True)
    vectors, labels = torch.eye(4), torch.arange(4)
    for task, count in enumerate((2, 4)):
        tensors = {"vectors": vectors[:count], "labels": labels[:count], "tasks": labels[:count] // 2}
        save_file(tensors, path / "gallery" / f"shown{task:02}.safetensors")
    still = read_map(read_run(path), read_classes(path))
    assert still is not None
    np.testing.assert_array_equal(still.points[0], still.points[1][:2])
    assert still.moved[1] == pytest.approx(0, abs=1e-6)
    assert step_text(still, 1).startswith("After task 2 of 2, class 2,class 3: 4 queries. Those of earlier tasks")


def test_the_map_names_the_tasks_of_its_files(unfinished: Path):
    """It has the files of tasks 2 and 3, and that of a fourth, which is not finished."""
    found = read_map(read_run(unfinished), Classes())
    assert found is not None
    assert found.after == (1, 2)
    assert [len(points) for points in found.points] == [24, 36]
    assert step_text(found, 0).startswith("After task 2 of 3, class 2,class 3: 24 queries.")
    assert json.loads(map_json(found))["after"] == [2, 3]


def test_more_than_a_hundred_tasks_are_in_order(tmp_path: Path):
    """shown100 is written with three digits, and sorts before shown11 by name. Task t has t + 1 queries."""
    path = tmp_path / "run"
    (path / "gallery").mkdir(parents=True)
    (path / "config.yaml").write_text("seed: 0\n")
    records = ({"kind": "task", "task": task, "seconds": 1.0} for task in (10, 11, 100))
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for task in (10, 11, 100):
        tasks = torch.arange(task + 1)
        tensors = {"vectors": torch.eye(task + 1, 101), "labels": tasks.clone(), "tasks": tasks}
        save_file(tensors, path / "gallery" / f"shown{task:02}.safetensors")
    found = read_map(read_run(path), Classes())
    assert found is not None
    assert found.after == (10, 11, 100)
    assert [len(points) for points in found.points] == [11, 12, 101]


def test_how_far_queries_turned_is_said(tmp_path: Path):
    """One query turns by a right angle, 1 - cos = 1, the other stays, 0: mean 0.5. Two axes keep all of a plane."""
    path = write_run(tmp_path / "run", num_tasks=2, galleries=True)
    labels = torch.arange(2)
    for task, second in enumerate(([0.0, 2.0], [3.0, 0.0])):
        vectors = torch.tensor([[1.0, 0.0], second])
        tensors = {"vectors": vectors, "labels": labels, "tasks": torch.zeros(2, dtype=torch.int64)}
        save_file(tensors, path / "gallery" / f"shown{task:02}.safetensors")
    found = read_map(read_run(path), read_classes(path))
    assert found is not None
    assert found.moved[1] == pytest.approx(0.5)
    assert found.kept == pytest.approx(1)


def test_names_cannot_leave_the_data_of_the_map(tmp_path: Path):
    names = ["</script><script>alert(1)</script>", "<!--", "&amp;", "]]>", "e", "f"]
    path = write_run(tmp_path / "run", class_names=names, galleries=True, points=8)
    found = read_map(read_run(path), read_classes(path))
    assert found is not None
    text = map_json(found)
    assert not set("<>&") & set(text)
    assert set(json.loads(text)["classes"]) == set(names)
    page = write_report(path).read_text(encoding="utf-8")
    assert page.count("<script") == 2  # the map's data and the map's script
    assert page.count("</script>") == 2


def test_compatibility_is_shown_with_its_numbers(stored: Path, tmp_path: Path):
    """C[1, 0] = 0.85 < 0.9, C[2, 0] = 0.6 < 0.9, C[2, 1] = 0.7 < 0.8: no pair of 3. Backward: (-0.3 - 0.1) / 2."""
    text = Page(stored / "report" / "report.html").text
    assert "Average compatibility: in 0 % of the pairs" in text
    assert "Backward compatibility: -0.200" in text
    path = write_run(tmp_path / "run", num_tasks=1, layers=("stem",), epochs=1, points=2, galleries=True)
    (path / "compatibility.json").write_text('{"metric": "recall@1"}')
    with pytest.raises(ValueError, match=r"compatibility\.json holds no compatibility matrix"):
        write_report(path)


def test_compatibility_of_an_earlier_stream_is_not_shown(unfinished: Path):
    text = Page(unfinished / "report" / "report.html").text
    assert "measured over 2 tasks, and 3 are finished: run `tripletmas evaluate RUN --compatibility` again." in text
    assert "Average compatibility" not in text


def test_weights_are_counted_by_layer(stored: Path):
    """Each layer has 36 weights; 9 of block2 have importance 0."""
    text = Page(stored / "report" / "report.html").text
    for row in ("block1 36 0 100 %", "block2 36 9 75 %", "all layers 180 9 95 %"):
        assert row in text


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


def test_a_comparison_has_the_galleries_that_all_runs_have(stored: Path, run: Path, tmp_path: Path):
    other = write_run(tmp_path / "finetune", strategy={"name": "finetune"}, matrix=MATRIX, galleries=True)
    compared = comparison([stored, other])
    assert compared.galleries == ("fresh", "stale", "compensated")
    row = r"finetune +0\.750 +0\.525 +0\.675"
    assert re.search(row, terminal(compared))
    assert "| finetune | 0.750 | 0.525 | 0.675 |" in comparison_markdown(compared)
    assert re.search(row, Page(write_comparison([stored, other], tmp_path / "out")).text)
    assert comparison([run, other]).galleries == ()


def test_an_unfinished_run_has_no_class_names_and_a_report(unfinished: Path):
    text = Page(unfinished / "report" / "report.html").text
    assert "Tasks finished: 3 of 4" in text
    assert "Queries and what they find" in text
