"""Where a command may write: never over what it reads, into a run or among images, nor over a file of another kind."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tripletmas.runs.directory import run_around

# what a file begins with that a command writes; one that begins otherwise is somebody else's
_BEGINS = {
    "JSON": (b"{", b"["),
    "HTML": (b"<!doctype html", b"<!DOCTYPE html"),
    ".npz": (b"PK\x03\x04",),
    ".parquet": (b"PAR1",),
    ".onnx": (b"\x08",),
}


def check_output(
    option: str, path: str | None, kind: str, *, read: Iterable[str] = (), images: Iterable[str] = ()
) -> None:
    """Whether a command may write a file, before it does anything; None is none.

    Args:
        option: which names the file, for the error.
        kind: of the file: JSON, HTML, .npz, .parquet or .onnx.
        read: files that the command reads, or writes besides.
        images: folders, or archives, of images: nothing is written below them.

    Raises:
        ValueError: saying what lies there.
    """
    if path is None:
        return
    real = Path(os.path.realpath(path))
    if real in {Path(os.path.realpath(each)) for each in read}:
        raise ValueError(f"{option} {path} would overwrite what is read or written besides: name another file")
    check_place(option, path, images=images)
    if real.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file")
    if real.exists() and not real.is_file():
        raise ValueError(f"{option} {path} is no file on a disk, but a device or a pipe: name a file")
    if real.exists():
        with open(real, "rb") as file:
            start = file.read(32).lstrip()
        if start and not start.startswith(_BEGINS[kind]):
            raise ValueError(f"{option} {path} is there, and is no {kind}: name another file")


def check_place(option: str, path: str, *, images: Iterable[str] = ()) -> None:
    """Whether something may be written at a path: not inside a run, nor among images.

    Raises:
        ValueError: saying what lies there.
    """
    real = Path(os.path.realpath(path))
    if run := run_around(path):
        raise ValueError(f"{option} {path} would be written into the run {run}: name a place outside of it")
    for each in images:
        if Path(os.path.realpath(each)) in real.parents:
            raise ValueError(f"{option} {path} would lie among the images in {each}: name a place outside of it")
