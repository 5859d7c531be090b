"""Runs side by side: a process each, one thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

Job = TypeVar("Job")


def run_side_by_side(run: Callable[[Job], str], jobs: Sequence[Job], *, at_once: int, indent: str = "") -> None:
    """Do every job, that many at the same time, and print what each says when it is done."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a process starts
    with multiprocessing.get_context("spawn").Pool(at_once, initializer=_start) as pool:
        for line in pool.imap_unordered(run, jobs):
            print(indent + line, flush=True)


def _start() -> None:
    from tripletmas.cli.train import keep_freed_memory

    keep_freed_memory()
