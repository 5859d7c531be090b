"""Whether the report of a run is there as it would be written again: of the same files, by the same program.

What it was made of is noted beside it. To read a run's files takes moments; to draw its report takes seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tripletmas.basics.files import checksum, read_json, save_json
from tripletmas.basics.version import version_of, versions

_NOTE = "made_of.json"
_APART = ("checkpoint", "log", "report")  # of a run; what it holds besides, its report may show
_DRAW = ("matplotlib", "jinja2", "scikit-learn", "pillow")


def note(run: Path, *, is_whole: bool = True) -> None:
    """Note what the report of a run, which was just written, was made of; of one that is not whole nothing."""
    if is_whole:
        save_json(run / "report" / _NOTE, _made_of(run))


def kept_page(run: Path) -> Path | None:
    """The page of a run, where nothing has changed since it was written: no file of the run, of its report or of ours.

    None where it has to be written.
    """
    try:
        noted = read_json(run / "report" / _NOTE, "")
    except ValueError:  # none was written, or by an earlier version
        return None
    return run / "report" / "report.html" if noted == _made_of(run) else None


def changed_files(run: Path) -> list[str]:
    """The files of a run, by name, that its report may show and that are not those that it was made of: written since,
    changed or gone. All of them where no report was written."""
    now = _checksums(_shown(run), run)
    try:
        noted = read_json(run / "report" / _NOTE, "")
        before = {str(name): str(each) for name, each in noted["run"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):  # none was written, or it is damaged itself
        before = {}
    return sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))


def _made_of(run: Path) -> dict[str, Any]:
    """The checksums of all files that a report is made of, and of itself; the versions of what draws it."""
    written = [each for each in (run / "report").iterdir() if each.name != _NOTE and not each.name.startswith(".")]
    package = Path(__file__).parents[1]
    ours = [each for each in package.rglob("*") if "__pycache__" not in each.parts]
    return {
        "versions": versions() | {package: version_of(package) for package in _DRAW},
        "run": _checksums(_shown(run), run),
        "report": _checksums(written, run),
        "program": checksum(repr(_checksums(ours, package)).encode()),
    }


def _shown(run: Path) -> list[Path]:
    """The files of a run that its report may show."""
    kept = (each for each in run.iterdir() if each.name not in _APART and not each.name.startswith("lock"))
    return [path for each in kept for path in (each.rglob("*") if each.is_dir() else [each])]


def _checksums(files: list[Path], root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): checksum(path.read_bytes()) for path in sorted(files) if path.is_file()}
