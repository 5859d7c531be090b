"""What goes to a terminal or a log: line by line, and control characters of other people's names can be seen.

Names of classes, files and runs come from whoever made them. Obeyed by a terminal, what they hold could move the
cursor, colour what follows, or turn the direction of writing.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# all controls but tab and line feed, those of the direction of writing, line separators
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_RETURNS = re.compile(r"(\r?)([^\r]*)(\r?)", re.DOTALL)
_UP = re.compile(r"(\x1b\[A)*")


def visible(text: str) -> str:
    r"""A text whose control characters are written out.

    >>> print(visible("red\x1b[31m"))
    red\x1b[31m
    """
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


class Terminal:
    """A text stream to whose reader `visible` applies; each line is written when it is whole, also to a file.

    Characters that the stream's encoding lacks are written out, too. How a progress bar goes back and up is let
    through: a carriage return as first or last character of what is written, and moves up that stand alone.

    Args:
        has_bars: whether it may seem to be a terminal, on which progress bars are drawn.

    Attributes:
        stream: the stream itself.
    """

    def __init__(self, stream: TextIO, *, has_bars: bool = True):
        self.stream, self._has_bars = stream, has_bars

    def isatty(self) -> bool:
        """Whether a progress bar can be drawn."""
        return self._has_bars and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def flush(self) -> None:
        """Errors as the stream."""
        self.stream.flush()

    def write(self, text: str) -> int:
        """Write a text; errors as the stream."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        known = text.encode(encoding, "backslashreplace").decode(encoding)
        parts = _RETURNS.fullmatch(known)
        if not _UP.fullmatch(known):
            known = f"{parts[1]}{visible(parts[2])}{parts[3]}" if parts else visible(known)
        self.stream.write(known)
        if "\n" in known:
            self.stream.flush()
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, what is printed goes through a `Terminal`. A reader that has left, such as head, is no error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Terminal(each or io.StringIO()) for each in before)  # there is none where it was closed
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for each in filter(None, before):
            try:
                each.flush()
            except OSError:  # else Python tries again at its end, and complains
                with suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), each.fileno())
