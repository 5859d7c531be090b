"""What this machine has: versions, devices, OpenMP runtimes, and what is missing for which feature; or what is wrong
with the files of a run or an index.

Imports nothing that may be broken but inside functions.
"""

from __future__ import annotations

import argparse
import importlib
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tripletmas.basics.version import versions
from tripletmas.cli.telling import ALSO, ProblemsFound

# What cannot be done without each package.
FEATURES = {
    "torch": "everything",
    "torchvision": "image transforms, backbones, public data sets",
    "faiss": "every evaluation",
    "pytorch_metric_learning": "losses and miners",
    "safetensors": "run directories",
    "sklearn": "the digits, the picture of an embedding",
    "matplotlib": "reports",
    "jinja2": "reports",
    "jsonargparse": "configurations",
    "rich": "tables in the terminal",
}


class Finding(NamedTuple):
    """One line: good is True (fine), False (a problem) or None (worth knowing)."""

    good: bool | None
    what: str
    text: str


def doctor(arguments: Sequence[str]) -> dict[str, Any]:
    """The command: print every finding; of a run or an index, that it has problems is an error."""
    parser = argparse.ArgumentParser(prog="tripletmas doctor", description=__doc__, epilog=ALSO)
    parser.add_argument("path", nargs="?", help="a run directory or an index: verify all its files instead")
    parser.add_argument("--repair", action="store_true", help="derive anew what can be: scores, importance, report")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(f"doctor takes a run or an index, and --repair, got {' '.join(unknown)}")
    if options.path is None:
        if options.repair:
            raise ValueError("--repair is for a run: name its directory")
        return {"found": _print(findings())}
    from tripletmas.cli import integrity  # it imports what a broken installation cannot

    repaired = []
    for sentence in integrity.repair(options.path) if options.repair else ():
        print(f"repaired {sentence}")
        repaired.append(sentence)
    found = _print(Finding(*each) for each in integrity.check(options.path))
    content = {"path": options.path, "repaired": repaired, "found": found}
    if problems := sum(each["good"] is False for each in found):
        raise ProblemsFound(f"{options.path}: {problems} of its files are not as they were written", content)
    return content


def _print(found: Iterable[Finding]) -> list[dict[str, Any]]:
    """Print findings, each when it is found; all of them as JSON has them."""
    told = []
    for finding in found:
        mark = {True: "ok", False: "PROBLEM", None: "note"}[finding.good]
        print(f"{mark:8} {finding.what:24} {finding.text}")
        told.append(finding._asdict())
    return told


def findings() -> Iterator[Finding]:
    """Everything worth knowing about this installation, problems included."""
    for package, version in versions().items():
        yield Finding(version != "missing", package, version)
    for module, feature in FEATURES.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken binary may raise anything
            yield Finding(False, module, f"cannot be imported ({error}); needed for {feature}")
    yield from _devices()
    yield from _openmp()


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception:  # reported above
        return
    yield Finding(None, "processors", f"{torch.get_num_threads()} threads for torch")
    if not torch.cuda.is_available():
        yield Finding(None, "cuda", "no GPU: everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield Finding(True, f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")


def _openmp() -> Iterator[Finding]:
    """Two OpenMP runtimes in one process are harmless on Linux and may abort or crash on macOS."""
    try:
        threadpool_info = importlib.import_module("threadpoolctl").threadpool_info
    except ImportError:
        return
    paths = {pool["filepath"] for pool in threadpool_info() if pool["user_api"] == "openmp"}
    names = ", ".join(sorted(Path(path).name for path in paths)) or "none"
    text = f"{len(paths)} runtime{'s' * (len(paths) != 1)} loaded: {names}"
    if len(paths) > 1 and platform.system() == "Darwin":
        yield Finding(False, "OpenMP", f"{text}; torch and faiss may crash together: set OMP_NUM_THREADS=1")
    else:
        yield Finding(True if len(paths) == 1 else None, "OpenMP", text)
