"""Parts of one's own: where their code lies, and its execution. Whose code may be executed later, `trust` decides.

A part is named `path/to/file.py:name`, `package.module:name`, or by the plain name under which an installed package
registers it, as an entry point of one of GROUPS. `find` looks where that is and executes nothing; `Code.load` executes
the very bytes that `find` read, whatever the file or Python's cache of it holds by then. What these bytes import is
Python's business.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from tripletmas.basics.sentences import suggestion

# part -> the group of entry points in which installed packages register theirs
GROUPS = {
    "data": "tripletmas.data",
    "model": "tripletmas.models",
    "loss": "tripletmas.losses",
    "strategy": "tripletmas.strategies",
    "objective": "tripletmas.objectives",
}
_OF_RUNS = ("weights/task*.safetensors", "checkpoint/task*")  # also of one that hides what wrote it
_RUN = re.compile(rb"^version:\s+tripletmas:", re.MULTILINE)  # in config.yaml


@dataclass(frozen=True)
class Code:
    """The code of a part, not executed yet.

    Args:
        name: as a configuration names it: `/absolute/file.py:name`, `package.module:name` or a plain name.
        file: its absolute path; of a file that was named, with symbolic links followed.
        attribute: what the part is called in the module.
        source: what the file held.
        module: under which the file is imported; None for a file that was named itself.
    """

    part: str
    name: str
    file: str
    attribute: str
    source: bytes = field(repr=False)
    module: str | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    def record(self) -> dict[str, str]:
        """What a run keeps of it, under its part and its name."""
        return {"file": self.file, "sha256": self.sha256}

    def load(self) -> Any:
        """What the code calls by the part's name; executed once a process.

        Raises:
            ValueError: if the code raises, or has no such name.
        """
        try:
            module = self._imported()
        except (Exception, SystemExit) as error:
            lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == self.file]
            where = f", line {lines[-1]}" if lines else ""
            raise ValueError(
                f"{self.part} {self.name!r}: {self.file} cannot be imported{where} ({type(error).__name__}: {error})"
            ) from error
        try:
            return reduce(getattr, self.attribute.split("."), module)
        except AttributeError:
            known = [name for name in vars(module) if not name.startswith("_")]
            raise ValueError(
                f"{self.part} {self.name!r}: {self.file} has no {self.attribute!r}{suggestion(self.attribute, known)}"
            ) from None

    def _imported(self) -> ModuleType:
        digest = hashlib.sha256(self.file.encode("utf-8", "surrogateescape") + b"\0" + self.source).hexdigest()
        module = self.module or f"{Path(self.file).stem}_{digest[:12]}"
        loaded = sys.modules.get(module)
        if loaded is not None:
            finder = getattr(loaded.__spec__, "loader", None)
            if isinstance(finder, _Exactly) and (finder.code.file, finder.code.source) != (self.file, self.source):
                del sys.modules[module]  # the file has changed since
            elif os.path.abspath(loaded.__file__ or "") != self.file:
                raise ImportError(f"{module} is loaded from {loaded.__file__} already")
        finder = _Exactly(module, self)
        sys.meta_path.insert(0, finder)
        try:
            return importlib.import_module(module)
        finally:
            sys.meta_path.remove(finder)


class _Exactly(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, and executes as it the bytes that were read: not what the file holds by now, no cached code."""

    def __init__(self, module: str, code: Code):
        self.module, self.code = module, code

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        folder = os.path.dirname(self.code.file)
        inside = [folder] if os.path.basename(self.code.file) == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, self.code.file, loader=self, submodule_search_locations=inside
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.code.source, self.code.file, "exec", dont_inherit=True), vars(module))


def is_written_out(name: str) -> bool:
    """Whether a name says itself where the code is: `path/to/file.py:name` or `package.module:name`."""
    return ":" in name


def canonical(name: str) -> str:
    """A name with the real path of its file; a name without a path as it is."""
    place, _, attribute = name.rpartition(":")
    return f"{os.path.realpath(os.path.expanduser(place))}:{attribute}" if _is_path(place) else name


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


def registered(part: str) -> dict[str, str]:
    """What installed packages register for a part: name -> package and code. Nothing of it is imported."""
    return {entry.name: f"{_package(entry)}: {entry.value}" for entry in _entry_points(part)}


def refuse_registered(part: str, name: str) -> None:
    """Whether the name of a part that is built in is its own alone.

    Raises:
        ValueError: if an installed package registers a part of this name: it could be either.
    """
    others = [_package(entry) for entry in _entry_points(part) if entry.name == name]
    if others:
        raise ValueError(f"{part} {name!r} is built in, and {' and '.join(others)} registers another: uninstall that")


def find(part: str, name: str) -> Code:
    """Where the code of a part is, and what it is; nothing is executed.

    Raises:
        ValueError: if there is no such file, module or entry point; if it is not Python source; if it lies inside a run
            directory, which may come from somebody else.
    """
    what = f"{part} {name!r}"
    target = name if is_written_out(name) else _value(part, name)
    place, _, attribute = target.rpartition(":")
    if not place or not all(each.isidentifier() for each in attribute.split(".")):
        raise ValueError(f"{what} must be written path/to/file.py:NAME or package.module:NAME")
    if _is_path(place):
        module, given = None, os.path.abspath(os.path.expanduser(place))
        name = canonical(name)
        file = name.rpartition(":")[0]
    else:
        module, given = place, _file_of(what, place)
        file = given
    return Code(part, name, file, attribute, _source(what, file, given), module)


# --- where code lies


def _entry_points(part: str) -> Iterable[metadata.EntryPoint]:
    return sorted(metadata.entry_points(group=GROUPS[part]), key=lambda entry: entry.name)


def _package(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package"


def _value(part: str, name: str) -> str:
    """The code of an entry point, as `package.module:name`."""
    found = [entry for entry in _entry_points(part) if entry.name == name]
    if not found:
        raise ValueError(f"unknown {part} {name!r}{suggestion(name, registered(part))}")
    if len({entry.value for entry in found}) > 1:
        raise ValueError(f"{part} {name!r} is registered by {' and '.join(map(_package, found))}: uninstall one")
    return found[0].value.partition("[")[0].strip()


def _file_of(what: str, module: str) -> str:
    """The file of a module, as Python would find it, but without executing the packages that it is in."""
    missing = f"{what}: no module {module!r} is installed; a file is named by its path: path/to/file.py:NAME"
    names = module.split(".")
    places, spec = None, None
    for end in range(1, len(names) + 1):
        name = ".".join(names[:end])
        spec = next((spec for finder in sys.meta_path if (spec := finder.find_spec(name, places))), None)
        if spec is None or (end < len(names) and spec.submodule_search_locations is None):
            raise ValueError(missing)
        places = spec.submodule_search_locations
    if spec is None or not spec.has_location or spec.origin is None:
        raise ValueError(f"{what}: {module!r} has no Python source")
    return os.path.abspath(spec.origin)


def _source(what: str, file: str, given: str) -> bytes:
    """What a file holds, given as it was named, too; refused where it may come with a run."""
    if not os.path.isfile(file):
        raise ValueError(f"{what}: {file} is no file" if os.path.exists(file) else f"{what}: no such file: {file}")
    if not file.endswith(".py"):
        raise ValueError(f"{what}: {file} is no Python source (.py)")
    for each in map(Path, dict.fromkeys((given, os.path.realpath(file)))):
        if inside := next(filter(_is_run, each.parents), None):
            raise ValueError(f"{what} lies inside the run directory {inside}: no code is executed from there")
    return Path(file).read_bytes()


def _is_run(folder: Path) -> bool:
    config = folder / "config.yaml"
    try:
        return config.is_file() and (
            any(any(folder.glob(pattern)) for pattern in _OF_RUNS) or _RUN.search(config.read_bytes()) is not None
        )
    except OSError:  # what cannot be read is no run that could be used
        return False
