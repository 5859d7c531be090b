"""What one sees of pages and plots: where names break, that tables and labels fit, that small numbers are not none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import PROGRAM, Browser, browser
from synthetic_runs import write_run

from tripletmas.objectives.grid import Grid, Hit, Row
from tripletmas.report.compare import comparison
from tripletmas.report.comparison_plots import draw_embeddings, draw_forgetting
from tripletmas.report.embedding_plot import Groups, Picture
from tripletmas.report.folder import write_folder_report
from tripletmas.report.grid import query_page
from tripletmas.report.heat_map import draw_matrix
from tripletmas.report.layers import LayerImportance, draw_importance
from tripletmas.report.page import write_comparison, write_report
from tripletmas.report.plots import draw_loss
from tripletmas.report.style import LIGHT, drawn, painted

LONG = "a_very_long_name_of_a_run/with_underscores_and+no_end_in_sight_gram_plus_distill_strength_0.5_second_try"
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")

# the characters after which the text of an element goes on in the next line
BREAKS = """(selector) => {
  const found = [], walker = document.createTreeWalker(document.querySelector(selector), NodeFilter.SHOW_TEXT);
  let before = null, range = document.createRange();
  for (let node = walker.nextNode(); node; node = walker.nextNode())
    for (let i = 0; i < node.length; i++) {
      range.setStart(node, i); range.setEnd(node, i + 1);
      const box = range.getBoundingClientRect();
      if (!box.width) continue;
      if (before && box.top > before.top + box.height / 2) found.push(before.letter);
      before = {top: box.top, letter: node.data[i]};
    }
  return found;
}"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found
        assert found.complaints == []


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_a_long_name_breaks_after_its_underscores(tab: Browser, width: int, tmp_path: Path, undrawn):
    path = write_run(tmp_path / LONG, strategy={"name": "mas", "strength": 1}, data={"name": LONG, "tasks": 3})
    pages = {write_report(path): ("h1", ".about span:nth-child(2)"), write_folder_report(tmp_path): ("tbody th",)}
    for page, places in pages.items():
        tab.screen(width, 900)
        tab.open(page.as_uri())
        assert tab.run("document.documentElement.scrollWidth") == width
        for place in places:
            breaks = tab.run(f"({BREAKS})('{place}')")
            assert breaks or width > 360, place
            assert set(breaks) <= set("_/+ "), (place, breaks)
    tab.open(next(iter(pages)).as_uri())
    tab.screen(360, 900)
    assert tab.run(f"({BREAKS})('.options dl')").count("s") == 0  # samples_per_class


@needs_browser
@pytest.mark.slow
def test_columns_of_methods_with_long_names_stand_side_by_side(tab: Browser, tmp_path: Path, undrawn):
    """Five names of about 330 pixels would take 1,600."""
    runs = [
        write_run(tmp_path / str(i), strategy={"name": "mas", "strength": i, "decay": 1 - i / 10}, epochs=i)
        for i in range(1, 6)
    ]
    page = write_comparison(runs, tmp_path / "out")
    tab.screen(1280, 900)
    tab.open(page.as_uri())
    table = "document.querySelector('#tasks ~ .scroll')"
    assert tab.run(f"{table}.querySelectorAll('thead th').length") == 1 + 5
    assert tab.run(f"{table}.scrollWidth - {table}.clientWidth") <= 0


@needs_browser
@pytest.mark.slow
def test_words_of_a_command_stay_whole_on_a_phone(tab: Browser, tmp_path: Path, undrawn):
    path = write_run(tmp_path / "run", strategy={"name": "finetune"})
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"collapse": {"equal": "they are equal"}} if line["kind"] == "task" else {}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tab.screen(360, 900)
    tab.open(write_report(path).as_uri())
    rows = tab.run("[...document.querySelectorAll('.collapse code')].map((each) => each.getClientRects().length)")
    assert rows == [1] * 5
    assert tab.run("document.documentElement.scrollWidth") == 360


@needs_browser
@pytest.mark.slow
def test_scores_of_a_query_stay_whole_on_a_phone(tab: Browser, tmp_path: Path):
    hits = tuple(Hit(f"shop/month{i}/mug/photographs/0000{i}.jpg", 0.9, "mug") for i in range(5))
    pictures = {name: torch.zeros(3, 64, 64, dtype=torch.uint8) for name in ("mug.jpg", *(hit.name for hit in hits))}
    grid = Grid(("",), (Row("mug.jpg", (hits,)),), pictures=pictures)
    (tmp_path / "page.html").write_text(query_page(grid, about="an index", measure="cosine"), encoding="utf-8")
    tab.screen(360, 900)
    tab.open((tmp_path / "page.html").as_uri())
    heights = tab.run("[...document.querySelectorAll('.large li strong')].map((each) => each.offsetHeight)")
    assert len(heights) == 5
    assert max(heights) < 30  # a line
    assert set(tab.run(f"({BREAKS})('.path')")) == {"/"}


@pytest.mark.parametrize("objective", ["metric", "recognition"])
def test_the_plot_of_forgetting_has_room_for_what_its_axis_is(objective: str, tmp_path: Path):
    strategies = [{"name": "mas", "strength": 1 / number, "decay": 0.9 / number} for number in (7, 9)]
    runs = [write_run(tmp_path / str(i), strategy=each, objective=objective) for i, each in enumerate(strategies)]
    compared = comparison(runs)
    figure = drawn(lambda figure, theme: draw_forgetting(figure, theme, compared), LIGHT)
    painted(figure, LIGHT)
    written = figure.axes[0].xaxis.label
    assert written.get_text().endswith("lost since the best moment)")
    assert written.get_window_extent().x0 >= 0
    assert written.get_window_extent().x1 <= figure.bbox.x1


def test_names_of_classes_do_not_stand_on_each_other():
    """Four pictures are the smallest. Three classes have one middle: their names move, and none by two lines."""
    points = np.random.default_rng(0).normal(size=(60, 2)) + np.repeat([[0, 0], [0, 0], [0, 0.1], [9, 5]], 15, axis=0)
    groups = Groups(torch.arange(4).repeat_interleave(15), ("1", "8", "a long name", "0"), "class")
    picture = Picture(points, groups, "t-SNE", 60)
    figure = drawn(lambda figure, theme: draw_embeddings(figure, theme, [("mas", picture)] * 4), LIGHT)
    painted(figure, LIGHT)
    for axes in figure.axes:
        boxes = [each.get_window_extent() for each in axes.texts]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        shown = axes.transData.inverted().transform([[(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2] for box in boxes])
        middles = np.stack([np.median(points[i * 15 : (i + 1) * 15], axis=0) for i in range(4)])
        assert np.abs(shown - middles)[:, 1].max() < 2 * 0.07 * np.ptp(points[:, 1])
        assert np.abs(shown - middles)[3] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("decades", range(6))
def test_numbers_below_importance_stand_apart(decades: int):
    """Long names of layers leave each of the two axes a fifth of the picture."""
    share, mean = (torch.logspace(low, high, 6, dtype=torch.float64) for low, high in ((-decades - 0.3, -0.1), (-3, 1)))
    found = LayerImportance(("predicate_object.block3.conv",) * 6, share, mean)
    figure = drawn(lambda figure, theme: draw_importance(figure, theme, found), LIGHT)
    painted(figure, LIGHT)
    boxes = [
        label.get_window_extent()
        for axes in figure.axes
        for label, value in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
        if axes.get_xlim()[0] * 0.99 < value < axes.get_xlim()[1] * 1.01
    ]
    assert len(boxes) >= 4
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_a_small_drift_is_not_written_as_none():
    """In hundredths below a tenth all would be 0.00; twelve tasks are the most whose cells have numbers."""
    matrix = torch.full((12, 12), 0.004, dtype=torch.float64)
    names = [f"task {i}" for i in range(12)]
    figure = drawn(lambda figure, theme: draw_matrix(figure, theme, matrix, names, high=0.01), LIGHT)
    painted(figure, LIGHT)
    axes = figure.axes[0]
    assert {each.get_text() for each in axes.texts} == {"0.004"}
    assert max(each.get_window_extent().width for each in axes.texts) < axes.bbox.width / 12
    figure = drawn(lambda figure, theme: draw_matrix(figure, theme, 100 * matrix, names, high=0.5), LIGHT)
    assert {each.get_text() for each in figure.axes[0].texts} == {"0.40"}


def test_a_loss_of_zero_is_a_whole_mark():
    """The axis begins at 0, where marks would be cut in their middle."""
    epochs = [{"task": 0, "epoch": i, "loss": loss, "penalty": 0.1} for i, loss in enumerate((0.5, 0.0))]
    figure = drawn(lambda figure, theme: draw_loss(figure, theme, epochs, ("first",), "loss"), LIGHT)
    lines = [line for axes in figure.axes for line in axes.lines if line.get_gid() == "epoch"]
    assert len(lines) == 2
    assert not any(line.get_clip_on() for line in lines)
