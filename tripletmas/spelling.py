"""What an error says of an unknown name: the nearest known one, or what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the known names, 30 at most, where none is near.

    >>> suggestion("strenght", ["strength", "decay"])
    " (did you mean 'strength'?)"
    >>> suggestion("zzz", ["strength", "decay"])
    ' (known: strength, decay)'
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(known[:30]) or 'none'}{', ...' if len(known) > 30 else ''})"
