"""The version, in a file that imports nothing large, so that `tripletmas --version` and `doctor` need no torch."""

from __future__ import annotations

import platform
from importlib import metadata

__version__ = "0.2.0"


def versions() -> dict[str, str]:
    """The versions that a run's numbers may depend on, "missing" for a package that is not installed."""
    packages = ("torch", "torchvision", "faiss-cpu", "pytorch-metric-learning", "numpy")
    found = {"tripletmas": __version__, "python": platform.python_version()}
    return found | {package: version_of(package) for package in packages}


def version_of(package: str) -> str:
    """The version of a package that is installed, else "missing"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
