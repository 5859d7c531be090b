"""What a disk may hold after the power went: what was synced, and of the rest any part.

A file's content is sure from its own fsync on, a name from that of the folder that holds it. What has changed since may
be there or not, in any order; a content may also be cut short, or be empty.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

Names = dict[str, int]  # of a folder: name -> inode


class Disk:
    """Follows a folder, and writes what it may hold after the power went at this moment.

    Args:
        root: in a file system that gives the number of a file that is gone to no other, as those in memory do.
        at_each: called before and after each operation that makes something sure, or moves or removes something.
    """

    def __init__(self, root: Path, at_each: Callable[[], None]):
        self.root, self.at_each = root, at_each
        self.names: dict[int, Names] = {}  # of each folder, as they are sure
        self.contents: dict[int, bytes] = {}  # of each file, as it is sure
        self.folders: set[int] = set()
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            self._sync(folder)
            for file in filter(Path.is_file, folder.iterdir()):
                self._sync(file)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While this lasts, operations are noted, and none reaches the real disk."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", self._around(lambda handle: self._sync(Path(f"/proc/self/fd/{handle}"))))
            patch.setattr(os, "replace", self._around(os.replace))
            patch.setattr(shutil, "rmtree", self._around(shutil.rmtree))
            yield

    def cut(self, to: Path, seed: int | None) -> None:
        """Write a state that the disk may have: what is sure alone, or, with a seed, any part of the rest, too."""
        self._write(self.root, self.root.stat().st_ino, to, random.Random(seed), strict=seed is None)

    def _around(self, operation: Callable[..., None]) -> Callable[..., None]:
        def noted(*arguments):
            self.at_each()
            operation(*arguments)
            self.at_each()

        return noted

    def _sync(self, path: Path) -> None:
        number = path.stat().st_ino
        if path.is_dir():
            self.folders.add(number)
            self.names[number] = {each.name: each.stat().st_ino for each in path.resolve().iterdir()}
        else:
            self.contents[number] = path.read_bytes()

    def _write(self, now: Path | None, number: int, to: Path, chosen: random.Random, *, strict: bool) -> None:
        """Write the folder with this inode, which lies at `now`, if it is still there."""
        to.mkdir()
        present = {each.name: each for each in now.iterdir()} if now else {}
        numbers = {name: each.stat().st_ino for name, each in present.items()}
        sure = self.names.get(number, {})
        for name in sorted(sure.keys() | numbers.keys()):
            known = sure.get(name) if strict else chosen.choice([sure.get(name), numbers.get(name)])
            if known is None:
                continue
            lies = present[name] if numbers.get(name) == known else self._find(known)
            if known in self.folders or (lies is not None and lies.is_dir()):
                self._write(lies, known, to / name, chosen, strict=strict)
            else:
                (to / name).write_bytes(self._content(known, lies, chosen, strict=strict))

    def _content(self, number: int, lies: Path | None, chosen: random.Random, *, strict: bool) -> bytes:
        sure = self.contents.get(number, b"")
        now = sure if strict or lies is None else lies.read_bytes()
        kept = len(sure) if now.startswith(sure) else 0  # what was added to is not lost by that
        return chosen.choice([sure, now, now[: chosen.randint(kept, len(now))]])

    def _find(self, number: int) -> Path | None:
        return next((path for path in self.root.rglob("*") if path.stat().st_ino == number), None)


def states_of(scratch: Path, work: Callable[[], object], root: Path, *, stride: int, seeds: int) -> list[Path]:
    """Some of the states that a disk may have had while the work was done: of every so many moments, so many."""
    found: list[Path] = []
    moments = 0

    def at_each() -> None:
        nonlocal moments
        moments += 1
        if moments % stride == 0:
            for seed in (None, *range(seeds)):
                found.append(scratch / f"state{len(found)}")
                disk.cut(found[-1], None if seed is None else 1000 * moments + seed)

    root.mkdir(exist_ok=True)
    disk = Disk(root, at_each)
    with disk.followed():
        work()
    print(f"{moments} moments, {len(found)} states")
    return found
