"""Packages that other packages import and seldom use, imported in the process of a command when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

# pytorch-metric-learning imports it for the ranks of a hierarchy of labels; a second that a loss has no need of
_LATE = ("scipy.stats",)


class _Late(MetaPathFinder):
    """Finds what is imported late where Python finds it, and has it executed when something of it is asked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname in _LATE else None
        if found is not None and found.loader is not None:
            found.loader = LazyLoader(found.loader)
        return found


_FINDER = _Late()


def import_late() -> None:
    """From now on in this process, which is a command's own: another program's imports are its own affair."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
