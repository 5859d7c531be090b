"""The records of a run: metrics.jsonl, one a line, appended; each line with a checksum of its own."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tripletmas.basics.files import SEAL, Place, append_text, checksum, damaged, without_nan
from tripletmas.basics.shape import check_shape
from tripletmas.runs.checkpoint import REMEDY, Checkpoint, counted_records
from tripletmas.runs.shapes import RECORDS

Record = dict[str, Any]


class Records:
    """The lines of a file, which may be absent.

    A line bears a checksum of itself and of the run that it belongs to.

    Args:
        run: the identity of the run; "" where it has none, being of an earlier version: then lines bear no checksum.
    """

    def __init__(self, path: Path, run: str):
        self.path, self.run = path, run
        self._summed = (0, 0)  # so many bytes, and their CRC-32

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.path.stat().st_size if self.path.exists() else 0

    @cached_property
    def editions(self) -> list[list[str]]:
        """The files that each record lists that lists some."""
        return [record["files"] for record in self.read() if "files" in record]

    def place(self, name: str) -> Place | None:
        """What a file that is written now says of itself; None in a run without an identity."""
        return Place(self.run, name, len(self.editions)) if self.run else None

    def expected(self, name: str) -> Place | None:
        """What a file must say of itself: written for the last record that lists it, or later; None as of `place`."""
        listing = (number for number, names in enumerate(self.editions) if name in names)
        return Place(self.run, name, max(listing, default=0)) if self.run else None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record, nan as null; the main process does."""
        if not _is_main():
            return
        editions = self.editions if "files" in record else []
        plain = without_nan(record)
        sealed = {**plain, SEAL: self._seal(plain)} if self.run else plain
        append_text(self.path, json.dumps(sealed, allow_nan=False) + "\n")
        editions.append(record.get("files", []))

    def read(self, size: int | None = None) -> list[Record]:
        """All records, or those in the first bytes, without a last one that was cut short as its process was killed.

        Raises:
            ValueError: if another line is damaged, or belongs to another run; with its number.
        """
        *lines, rest = self._bytes(size).split(b"\n")
        found: list[Record] = []
        for number, line in enumerate(lines, start=1):
            try:
                found += [self._record(line)] if line.strip() else []
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{self.path}, line {number} is no record of this run ({error}); {REMEDY}") from None
        if self._has_whole_record(rest):
            raise ValueError(f"{self.path}, line {len(lines) + 1} does not end as it was written; {REMEDY}")
        return found

    def checksum(self, size: int) -> str:
        """Of the first bytes, for a checkpoint: those that were summed for an earlier one are not read again."""
        start, found = self._summed if self._summed[0] <= size else (0, 0)
        found = zlib.crc32(self._bytes(size, start), found)
        self._summed = (size, found)
        return f"{found:08x}"

    def check(self, state: Checkpoint | None) -> None:
        """Whether the records are there that there were when a checkpoint was written, and fit its place.

        Args:
            state: None before the first one: then at most one epoch, or a task without any, can have been recorded.

        Raises:
            ValueError: saying what does not fit.
        """
        if state is None:
            self._check_start()
            return
        self._check_sum(state.record_bytes, state.record_sum)
        found = self.read(state.record_bytes)
        last = next((each for each in reversed(found) if each.get("kind") in ("epoch", "task")), {})
        now = (last.get("kind"), last.get("task"), last.get("epoch"))
        expected = ("epoch", state.task, state.epoch - 1) if state.epoch else ("task", state.task - 1, None)
        if now != expected:
            raise damaged(self.path, f"the latest checkpoint, {state.place}, does not follow its last record", REMEDY)

    def check_sum(self) -> None:
        """As `check`, of the latest checkpoint's sum alone: little is read. A run may lack its records or a checkpoint.

        Raises:
            ValueError: if records are missing or others, or if that checkpoint does not tell.
        """
        if self.path.exists() and (counted := counted_records(self.path.parent / "checkpoint", self.run)):
            self._check_sum(*counted)

    def _check_sum(self, size: int, expected: str | None) -> None:
        if self.size < size:
            raise damaged(self.path, f"{self.size} bytes of {size}", REMEDY)
        if expected is not None and checksum(self._bytes(size)) != expected:
            raise damaged(self.path, "it is not what it was when the latest checkpoint was written", REMEDY)

    def _check_start(self) -> None:
        steps = [each for each in self.read() if each.get("kind") in ("epoch", "task")]
        if len(steps) > 1 or any(each.get("task") or each.get("epoch") for each in steps):
            raise damaged(self.path.parent / "checkpoint", f"{self.path} tells of {len(steps)} steps", REMEDY)

    def cut(self, size: int) -> None:
        """Remove what follows the first bytes.

        Raises:
            ValueError: if there are fewer.
        """
        if not _is_main():
            return
        if self.size < size:
            raise damaged(self.path, f"{self.size} bytes of {size}", REMEDY)
        if self.size > size:
            with open(self.path, "rb+") as file:
                file.truncate(size)
            self.__dict__.pop("editions", None)
            self._summed = (0, 0)

    def _bytes(self, size: int | None, start: int = 0) -> bytes:
        if not self.path.exists():
            return b""
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size - start)

    def _record(self, line: bytes) -> Record:
        found = dict(json.loads(line.decode("utf-8")))
        seal = found.pop(SEAL, None)
        if seal is None and self.run:
            raise ValueError("it bears no checksum, as every record of the run does")
        if seal not in (None, self._seal(found)):
            raise ValueError("its checksum is wrong, or it belongs to another run")
        check_shape(found, {"kind?": str, **RECORDS.get(str(found.get("kind")), {})})
        return found

    def _seal(self, record: Record) -> str:
        return checksum(json.dumps([self.run, record]).encode())

    def _has_whole_record(self, rest: bytes) -> bool:
        """Whether a line without an end is a whole record and more: then its end was changed, and not cut off."""
        text = rest.decode("utf-8", "replace")
        try:
            found, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and SEAL in found and end < len(text)


def _is_main() -> bool:
    from tripletmas.basics.distributed import is_main  # here: who only reads records need not wait for torch

    return is_main()
