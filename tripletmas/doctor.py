"""What this machine has: versions, devices, OpenMP runtimes, and what is missing for which feature."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from threadpoolctl import threadpool_info

from tripletmas.configuration import versions

_OPTIONAL: dict[str, tuple[str, str]] = {}  # package -> (import name, feature); extras of later versions go here


class Finding(NamedTuple):
    """One line: good is True (fine), False (a problem) or None (worth knowing)."""

    good: bool | None
    what: str
    text: str


def findings() -> Iterator[Finding]:
    """Everything worth knowing about this installation, problems included."""
    for package, version in versions().items():
        yield Finding(True, package, version)
    for module in ("torch", "torchvision", "faiss", "pytorch_metric_learning", "sklearn", "matplotlib", "safetensors"):
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            yield Finding(False, module, f"cannot be imported: {error}")
    yield Finding(None, "processors", f"{torch.get_num_threads()} threads for torch")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield Finding(True, f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    else:
        yield Finding(None, "cuda", "no GPU: everything runs on the CPU")
    yield _openmp()
    for package, (module, feature) in _OPTIONAL.items():
        try:
            importlib.import_module(module)
            yield Finding(True, package, metadata.version(package))
        except ImportError:
            yield Finding(None, package, f'missing, for {feature}: pip install "tripletmas[{package}]"')


def _openmp() -> Finding:
    """Two OpenMP runtimes in one process are harmless on Linux and may abort or crash on macOS."""
    runtimes = sorted({Path(pool["filepath"]).name for pool in threadpool_info() if pool["user_api"] == "openmp"})
    paths = {pool["filepath"] for pool in threadpool_info() if pool["user_api"] == "openmp"}
    text = f"{len(paths)} runtime{'s' * (len(paths) != 1)} loaded: {', '.join(runtimes) or 'none'}"
    if len(paths) > 1 and platform.system() == "Darwin":
        return Finding(False, "OpenMP", f"{text}; torch and faiss may crash together: set OMP_NUM_THREADS=1")
    return Finding(True if len(paths) == 1 else None, "OpenMP", text)
