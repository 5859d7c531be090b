"""The site is whole: its pages are built without a warning, its links lead somewhere, nothing comes from elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import build_site
import pytest
from chromium import PROGRAM, browser

ROOT = Path(__file__).resolve().parents[2]
# the words of code that stand in more than one line, of those that have no place to break but after their hyphens
BROKEN = """[...document.querySelectorAll('.option, .md-typeset td code')]
    .filter((each) => /^[-]*[\\w.]+$/.test(each.textContent) && each.getClientRects().length > 1)
    .map((each) => each.textContent)"""


def test_faults_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<p id="here">there</p>')
    (tmp_path / "a.html").write_text(
        '<script src="https://example.org/x.js"></script><a href="https://example.org">may be linked to</a>'
        '<a href="sub/#here">right</a><a href="sub/index.html#gone">x</a><a href="gone.html">x</a><img src="no.png">'
    )
    found = build_site.faults(tmp_path)
    assert found == [
        "a.html loads https://example.org/x.js",
        "a.html links to gone.html, which is not there",
        "a.html links to no.png, which is not there",
        "a.html links to sub/index.html#gone: there is no such place on that page",
    ]


@pytest.mark.slow
def test_it_is_built(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the site needs the extra docs")
    script = ROOT / "scripts" / "build_site.py"
    ran = subprocess.run(
        [sys.executable, script, "--site-dir", tmp_path / "site"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    search = (tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "Memory Aware Synapses" in search
    page = (tmp_path / "site" / "reference" / "protection.html").read_text(encoding="utf-8")
    assert "consolidate" in page
    if PROGRAM is not None:
        check_on_a_phone(tmp_path)


def check_on_a_phone(folder: Path) -> None:
    """No page is wider than the screen, and no word of code is broken."""
    with browser(folder) as tab:
        tab.screen(360, 800, phone=True)
        for name in ("index", "expect", "gram", "results"):
            tab.open((folder / "site" / f"{name}.html").as_uri())
            assert tab.run("document.querySelectorAll('.option').length"), name
            assert tab.run(BROKEN) == [], name
            assert tab.run("document.documentElement.scrollWidth") == 360, name
        assert tab.complaints == []
