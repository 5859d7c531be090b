"""WCAG 2.2 AA by axe-core, in a headless Chromium: reports, a comparison, a page over a folder, and the site.

axe-core comes with npm, and is no part of the project: `npm install axe-core` in any folder, and TRIPLETMAS_AXE names
its file axe.min.js. Each page is looked at in both themes, on a phone and on screens up to 1920 pixels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from chromium import PROGRAM, Browser, browser
from synthetic_runs import write_neighbours, write_run

from tripletmas.report.folder import write_folder_report
from tripletmas.report.page import write_comparison, write_report

ROOT = Path(__file__).resolve().parents[1]
AXE = os.environ.get("TRIPLETMAS_AXE", "")
WIDTHS = (360, 768, 1280, 1920)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(not AXE, reason="TRIPLETMAS_AXE names no axe.min.js"),
]
WCAG = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
OURS = (*WCAG, "best-practice")  # of the site's theme they are not asked
SITE = ("index.html", "start.html", "results.html", "reference/protection.html")


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def faults(tab: Browser, page: Path, rules: Sequence[str], *, width: int, dark: bool) -> list[str]:
    """A line for each thing that axe finds wrong, and whether the page is wider than the screen."""
    tab.screen(width, 900, dark=dark, phone=width < 500)
    tab.open(page.as_uri())
    tab.run(Path(AXE).read_text(encoding="utf-8") + "\n;0")
    tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = tab.run(f"axe.run(document, {json.dumps({'runOnly': rules})}).then((found) => found.violations)")
    lines = [f"{each['id']}: {node['target']} {node['failureSummary']}" for each in found for node in each["nodes"]]
    wide = tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [*lines, *([f"{wide} pixels wider than the screen"] if wide > 0 else [])]


def check(tab: Browser, page: Path, rules: Sequence[str] = OURS) -> None:
    found = {
        f"{page.name}, {width} pixels, {'dark' if dark else 'light'}": faults(tab, page, rules, width=width, dark=dark)
        for width in WIDTHS
        for dark in (False, True)
    }
    assert not any(found.values()), json.dumps({where: each[:5] for where, each in found.items() if each}, indent=1)


def test_a_report(tab, tmp_path):
    path = write_run(tmp_path / "run", galleries=True)
    write_neighbours(path, 3, size=28, channels=1)
    check(tab, write_report(path))


def test_a_report_of_a_run_that_collapsed_while_it_learns(tab, tmp_path):
    path = write_run(tmp_path / "run", done=2)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "task":
            line["collapse"] = {"equal": "embeddings are nearly equal"}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    check(tab, write_report(path, brief=True))


def test_seeds_and_a_comparison_and_a_folder(tab, tmp_path):
    runs = tmp_path / "runs"
    for name in ("finetune", "mas"):
        for seed in (0, 1, 2):
            write_run(runs / name / f"seed{seed}", strategy={"name": name}, seed=seed, galleries=True)
    check(tab, write_report(runs / "mas"))
    check(tab, write_comparison([runs / "finetune", runs / "mas"], tmp_path / "out"))
    check(tab, write_folder_report(runs))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material", reason="the site needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, ROOT / "scripts" / "build_site.py", "--site-dir", out], check=True)
    return out


@pytest.mark.parametrize("name", SITE)
def test_the_site(tab, site, name):
    check(tab, site / name, WCAG)
