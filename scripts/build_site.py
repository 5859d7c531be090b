#!/usr/bin/env python3
"""Build the site of docs/ into a folder, and check it: every link leads somewhere, nothing comes from elsewhere.

python scripts/build_site.py [--site-dir build/site]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
_LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}  # without being clicked


class Page(HTMLParser):
    """What a page links to, what it loads, and the names within it that can be linked to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag in _LOADED and _LOADED[tag] in given and given.get("rel") != "canonical":
            self.loaded.add(given[_LOADED[tag]])


def faults(site: Path) -> list[str]:
    """A line for each link of a page that leads nowhere, and each thing that is loaded from elsewhere."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        found += [f"{where} loads {each}" for each in sorted(page.loaded) if urlsplit(each).netloc]
        for link in sorted(page.links | page.loaded):
            if what := _fault(path, link, pages):
                found.append(f"{where} links to {link}{what}")
    return found


def _fault(path: Path, link: str, pages: dict[Path, Page]) -> str:
    """What is wrong with a link of the page at this path; "" for nothing."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or (path.name == "404.html" and link.startswith("/")):
        return ""
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return ", which is not there"
    gone = parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names
    return ": there is no such place on that page" if gone else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site-dir", type=Path, default=ROOT / "build" / "site", help="the folder, rewritten")
    site = parser.parse_args().site_dir.resolve()
    build = ["build", "--strict", "--config-file", str(ROOT / "scripts" / "mkdocs.yml"), "--site-dir", str(site)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # what the theme's makers say of mkdocs' next version
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", *build], capture_output=True, text=True, env=quiet, check=False
    )
    if built.returncode:
        sys.exit("\n".join(line for line in built.stderr.splitlines() if not line.startswith("INFO")))
    if found := faults(site):
        sys.exit("\n".join(found))
    pages = len(list(site.rglob("*.html")))
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"{site / 'index.html'}: {pages} pages, {size / 2**20:.1f} MiB; all links lead somewhere, all is from here")


if __name__ == "__main__":
    main()
