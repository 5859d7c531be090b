"""The page of a run in a real browser: headless Chromium, by its command line; skipped where there is none.

What a script can see is read off the DOM that Chromium prints. A probe, a script that the test appends to a copy of the
page, writes there what only a browser knows: whether pictures could be read, what the slider does, how
wide the page is.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from itertools import pairwise
from pathlib import Path

import pytest
from chromium import browser
from report_pages import EVIL
from synthetic_runs import write_neighbours, write_run

from tripletmas.report.page import write_comparison, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

PROBE = """
<script>
addEventListener("load", () => {
  const found = {};
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  const pictures = [...document.images];
  found.pictures = pictures.length;
  found.broken = pictures.filter((picture) => picture.naturalWidth === 0).length;
  found.unnamed = pictures.filter((picture) => !picture.alt).length;
  found.requests = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length;
  found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.background = getComputedStyle(document.body).backgroundColor;
  found.plot = document.querySelector("figure img")?.currentSrc === document.querySelector("figure source")?.srcset;
  const slider = document.getElementById("map-step");
  const dots = () => [...document.querySelectorAll(".map .dot:not(.absent)")];
  found.steps = [];
  for (const step of slider ? [1, 2, 3] : []) {
    slider.value = step;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    found.steps.push({
      dots: dots().length,
      first: dots()[0].style.transform,
      trails: document.querySelectorAll(".trails [d]").length,
      said: document.getElementById("map-said").textContent,
    });
  }
  found.levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((heading) => Number(heading.tagName[1]));
  found.title = document.title;
  const out = document.body.appendChild(document.createElement("pre"));
  out.id = "probe";
  out.textContent = JSON.stringify(found);
});
</script>
"""


def _dom(page: Path, profile: Path, *, fragment: str = "", width: int = 1280, dark: bool = False) -> str:
    """The DOM after the scripts have run; what they write to the console fails the test."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",  # Chromium refuses to run as root otherwise, as in a container
        "--disable-gpu",
        "--hide-scrollbars",  # they would take from the width
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        "--v=0",
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        f"{page.as_uri()}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    return done.stdout


def _probe(page: Path, tmp_path: Path, *, width: int = 1280, dark: bool = False) -> dict:
    copy = tmp_path / "probed.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    dom = _dom(copy, tmp_path / "profile", width=width, dark=dark)
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found, "the probe did not finish"
    return json.loads(unescape(found[1]))


@pytest.fixture
def page(stored: Path) -> Path:
    return stored / "report" / "report.html"


@pytest.fixture(scope="module")
def probed(stored: Path, tmp_path_factory) -> dict:
    return _probe(stored / "report" / "report.html", tmp_path_factory.mktemp("probed"))


@pytest.mark.slow
def test_pictures_are_there_and_nothing_is_fetched(probed: dict, page: Path):
    # 3 tasks x 4 queries, each with five after the last task; queries of 2 tasks have five before it, too
    assert probed["pictures"] >= 12 + 12 * 5 + 8 * 5 + 10
    assert (probed["broken"], probed["unnamed"], probed["requests"]) == (0, 0, 0)
    assert probed["plot"] is False  # the light plot
    assert probed["background"] == "rgb(255, 255, 255)"
    assert page.stat().st_size < 10e6


@pytest.mark.slow
def test_names_with_markup_stay_text(probed: dict, page: Path, tmp_path: Path):
    assert probed["title"] == "stored · tripletmas"
    dom = _dom(page, tmp_path / "profile")
    assert EVIL not in dom
    assert "&lt;script&gt;document.title" in dom


@pytest.mark.slow
def test_the_slider_moves_the_marks(probed: dict):
    """2 classes a task with 6 queries each: 12, 24, 36 marks; those of earlier tasks have trails, and move."""
    steps = probed["steps"]
    assert [step["dots"] for step in steps] == [12, 24, 36]
    assert [step["trails"] for step in steps] == [0, 12, 24]
    assert len({step["first"] for step in steps}) == 3
    assert [step["said"].split(",")[0] for step in steps] == [f"After task {i} of 3" for i in (1, 2, 3)]


@pytest.mark.slow
def test_headings_skip_no_level(probed: dict):
    assert probed["levels"].count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(probed["levels"]))


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3])
def test_a_link_opens_the_map_at_a_step(page: Path, tmp_path: Path, step: int):
    dom = _dom(page, tmp_path / "profile", fragment=f"#map={step}")
    assert f'data-step="{step}"' in dom
    assert f'aria-valuetext="after task {step} of 3"' in dom


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1280])  # headless Chromium opens no window narrower than 500
def test_the_page_never_scrolls_sideways_and_is_dark_where_asked_for(page: Path, tmp_path: Path, width: int):
    found = _probe(page, tmp_path, width=width, dark=True)
    assert found["overflow"] <= 0
    assert found["background"] == "rgb(20, 24, 29)"
    assert found["plot"] is True


@pytest.mark.slow
def test_a_phone_of_380_pixels_has_no_sideways_scrolling(page: Path, tmp_path: Path):
    """In a frame of that width: Chromium's own window does not become so narrow."""
    outer, inner = tmp_path / "outer.html", escape(page.read_text(encoding="utf-8"))
    outer.write_text(
        f"""<!doctype html><iframe id="phone" width="380" height="800" srcdoc="{inner}"></iframe>
        <script>addEventListener("load", () => {{
          const root = document.getElementById("phone").contentDocument.documentElement;
          document.body.dataset.found = `${{root.scrollWidth}} of ${{root.clientWidth}}`;
        }});</script>""",
        encoding="utf-8",
    )
    assert 'data-found="380 of 380"' in _dom(outer, tmp_path / "profile")


@pytest.mark.slow
def test_the_pointer_is_told_values_and_escape_hides_them(page: Path, tmp_path: Path):
    """After task 3 the mean is 0.75. The value is the nearest one's, and none far from all."""
    with browser(tmp_path) as tab:
        tab.screen(1280, 900)
        tab.open(page.as_uri())
        tab.run("document.querySelector('[data-spots]').scrollIntoView({block: 'center'})")
        x, y = tab.run(
            "(() => { const plot = document.querySelector('[data-spots]');"
            "const spot = JSON.parse(plot.dataset.spots).find((each) => each[2] === 'average, after task 3: 0.750');"
            "const frame = plot.querySelector('img').getBoundingClientRect();"
            "return [frame.left + spot[0] * frame.width, frame.top + spot[1] * frame.height]; })()"
        )
        told = "document.getElementById('value').hidden ? '' : document.getElementById('value').textContent"
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 2, y=y - 2)
        assert tab.run(told) == "average, after task 3: 0.750"
        tab.press("Escape")
        assert tab.run(told) == ""
        links = "[...document.querySelectorAll('nav a')].map((link) => document.querySelector(link.hash) !== null)"
        assert tab.run(links) == [True] * tab.run("document.querySelectorAll('main h2').length")
        assert tab.complaints == []


@pytest.mark.slow
def test_a_long_stream_with_large_pictures_stays_small(tmp_path: Path):
    """10 tasks, colour pictures of 96 pixels."""
    names = [f"a rather long name of class {i}" for i in range(20)]
    path = write_run(tmp_path / "run", num_tasks=10, class_names=names, galleries=True)
    write_neighbours(path, 10, size=96, channels=3)
    page = write_report(path)
    assert page.stat().st_size < 10e6
    found = _probe(page, tmp_path)
    assert found["broken"] == 0


@pytest.mark.slow
def test_a_comparison_in_the_browser(tmp_path: Path):
    runs = [write_run(tmp_path / name, strategy={"name": name}, galleries=True) for name in ("finetune", "mas")]
    found = _probe(write_comparison(runs, tmp_path / "out"), tmp_path, dark=True)
    assert (found["broken"], found["unnamed"], found["requests"]) == (0, 0, 0)
    assert found["overflow"] <= 0
    assert found["background"] == "rgb(20, 24, 29)"
