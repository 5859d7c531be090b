"""The version, in a file that imports nothing large, so that `tripletmas --version` and `doctor` need no torch."""

from __future__ import annotations

import platform
from importlib import metadata

__version__ = "0.2.0"


def versions() -> dict[str, str]:
    """The versions that a run's numbers may depend on, "missing" for a package that is not installed."""
    found = {"tripletmas": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "faiss-cpu", "pytorch-metric-learning", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found
