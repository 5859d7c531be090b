"""Fetching a public data set, and saying in one sentence why it is not there."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path


def fetch(name: str, root: str | Path, download: Callable[[], object]) -> None:
    """Calls `download`; whatever a network does to it becomes one OSError that says what to do."""
    try:
        download()
    except (OSError, RuntimeError, EOFError, HTTPException, zipfile.BadZipFile, tarfile.TarError) as error:
        raise OSError(
            f"{name}: the download into {root} failed ({reason_of(error)}); try again when the network answers, "
            f"or put the files there by hand as datasets/{name}/README.md says"
        ) from None


def missing(name: str, problem: str) -> ValueError:
    """The error for a set that is not there, or not whole."""
    return ValueError(
        f"{name}: {problem}; give download=True (--data.download true) to fetch it, "
        f"or root= (--data.root) where it lies, laid out as datasets/{name}/README.md says"
    )


def reason_of(error: Exception) -> str:
    """The last line of an error's message: torchvision puts what it tried before it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
