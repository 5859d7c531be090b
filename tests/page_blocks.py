"""What stands in the blocks of a page in Markdown, and what it links to."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def python_of(page: str) -> list[str]:
    """Its blocks of Python, in order."""
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)


def commands_of(page: str) -> list[list[str]]:
    """The words, without `tripletmas`, of each command in its blocks of sh, in order."""
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", page, flags=re.M | re.S) for line in block.splitlines()]
    return [shlex.split(line.partition("  #")[0])[1:] for line in lines if line.startswith("tripletmas ")]


def run_python(blocks: Sequence[str], name: str) -> dict[str, Any]:
    """Run blocks one after the other, as one program; the names that they leave."""
    assert blocks
    names: dict[str, Any] = {"__name__": name}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name}, python block {number}", "exec"), names)
    return names


def missing_links(page: str, folder: Path) -> list[str]:
    """The files that a page in this folder links to, or shows, and that are not there."""
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)|src=\"([^\":]+)\"", page)
    return [path for pair in links for path in pair if path and not (folder / path).exists()]


def steps_of(page: str) -> list[tuple[str, str]]:
    """(python, a block), (tripletmas, a command's words) and (sh, another line), in the order of the page."""
    found: list[tuple[str, str]] = []
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", page, flags=re.M | re.S):
        if language == "python":
            found.append((language, block))
            continue
        for line in block.splitlines():
            first, _, rest = line.partition("  #")[0].partition(" ")
            found.append((first, rest) if first == "tripletmas" else ("sh", line))
    return found
