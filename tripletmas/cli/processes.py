"""Commands under torchrun: which of them all processes run together, and that one of them alone is heard."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from tripletmas.basics.launched import launched

# what is embedded, or learned, in shares; all other commands are run by the first process, as if it were alone
_TOGETHER = {("train",), ("search",), ("resume",), ("evaluate",), ("index", "build"), ("index", "add")}
_OF_NETWORK = ("gloo", "NCCL", "Connection", "socket", "Broken pipe", "recv")


@contextmanager
def sharing(command: str, arguments: Sequence[str]) -> Iterator[bool]:
    """Whether this process has something to do for a command; inside, the processes work together if they all have.

    Only the first process is heard, until one fails: the first that does tells, and all end, with the same status.
    """
    process = launched()
    if process is None:
        yield True
        return
    if not {(command,), (command, *arguments[:1])} & _TOGETHER:
        yield process.rank == 0
        return
    from tripletmas.basics.distributed import joined  # torch, which `--help` need not wait for

    with joined(process) as is_first:
        try:
            with _silent(process.rank > 0):
                yield True
        except (Exception, KeyboardInterrupt) as error:
            if not is_first():
                raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
            if isinstance(error, RuntimeError) and any(word in str(error) for word in _OF_NETWORK):
                raise ValueError(
                    f"another of the {process.world_size} processes has ended before this one: what was saved stays; "
                    "go on by the same command, or by tripletmas resume"
                ) from error
            raise


@contextmanager
def _silent(is_silent: bool) -> Iterator[None]:
    if not is_silent:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
