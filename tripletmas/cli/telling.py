"""How much a command says: `--quiet`, `--verbose` and `--json`, which all of them take, are defined here alone.

What a command prints is its result, as of `query`, or what it did, as of `train`, whose result is a folder. Quiet
leaves the result. As JSON it is what the command's function returns: one document on standard output and no more.
Warnings and errors go to standard error in any case, and the exit status is the same.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tripletmas.cli.terminal import Terminal

OPTIONS = {
    "--quiet": "print the result alone, and warnings: nothing of what is done",
    "--verbose": "tell each step, with its time",
    "--json": "print the result as one JSON document, and nothing else on standard output",
}
ALSO = "also --quiet, --verbose, --json and --debug, as of every command: tripletmas --help"

_TAKE_FILE = {"evaluate", "forecast", "query"}  # --json FILE of these writes the document there, and prints as ever
_OWN = {"compare": {"--json"}, "query": {"--quiet"}}  # these look at what is asked for themselves
_WITHOUT_JSON = {"serve": "goes on until it is ended", "completion": "prints what a shell reads"}
# what prints what it did: of it quiet leaves nothing, but where one of these words asks for a result
_DOES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("search", "resume", "report", "importance", "export", "example"), ()),
    "train": ("--print_config",),
    "compare": ("--markdown", "--latex", "--csv"),
}
_STEPS = ("--apply", "--reembed", "--switch", "--rollback", "--drop-old")  # of upgrade: without, it prints a plan


class ProblemsFound(ValueError):
    """What was looked at is not in order: the result is told, and is an error.

    Attributes:
        content: the result.
    """

    def __init__(self, message: str, content: Mapping[str, Any]):
        super().__init__(message)
        self.content = content


@dataclass(frozen=True)
class Telling:
    """What is asked for, of a command."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False

    @contextmanager
    def heard(self, command: str, arguments: Sequence[str]) -> Iterator[None]:
        """Inside, as much is said as is asked for."""
        asks_for_help = bool({"--help", "-h"} & set(arguments))
        with ExitStack() as stack:
            if (self.json or (self.quiet and _does(command, arguments))) and not asks_for_help:
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            if self.quiet:
                stack.enter_context(_without_progress())
            if self.verbose:
                stack.enter_context(_steps(command))
            yield

    def tell(self, content: Any) -> None:
        """Print what a command returned, if it is asked for."""
        if self.json:
            from tripletmas.basics.files import without_nan  # with what reads tensors, which `--help` need not wait for

            print(json.dumps(without_nan(content), indent=2).replace("\x7f", r"\u007f"))


def taken(command: str, arguments: Sequence[str]) -> tuple[Telling, list[str]]:
    """(what of this is among the arguments of a command, the other arguments).

    Raises:
        ValueError: where both, or what the command cannot do, is asked for.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    places = {place for place in range(end) if _is_asked(command, arguments, place)}
    found = {arguments[place] for place in places}
    kept = found & _OWN.get(command, set())
    rest = [each for place, each in enumerate(arguments) if place not in places or each in kept]
    if {"--quiet", "--verbose"} <= found:
        raise ValueError("give --quiet or --verbose, not both")
    if "--json" in found:
        _check_json(command, arguments)
    return Telling(*(option in found for option in OPTIONS)), rest


def _check_json(command: str, arguments: Sequence[str]) -> None:
    """Whether a command can print one document, and is asked for nothing else there."""
    if command in _WITHOUT_JSON:
        raise ValueError(f"{command} {_WITHOUT_JSON[command]}: leave --json out")
    if "--jsonl=-" in arguments or ("--jsonl", "-") in pairwise(arguments):
        raise ValueError("give --json or --jsonl -, not both: each prints what is found, and nothing else")


def _is_asked(command: str, arguments: Sequence[str], place: int) -> bool:
    """Whether at this place stands one of the options, and not `--json FILE` of a command that takes one."""
    following = arguments[place + 1] if place + 1 < len(arguments) else "-"
    names_file = arguments[place] == "--json" and command in _TAKE_FILE and not following.startswith("-")
    return arguments[place] in OPTIONS and not names_file


def _does(command: str, arguments: Sequence[str]) -> bool:
    """Whether a command prints what it did, and not what was asked for."""
    given = {each.partition("=")[0] for each in arguments}
    if command == "index":
        return "info" not in arguments[:1]
    if command == "upgrade":
        return bool(given.intersection(_STEPS))
    return command in _DOES and not given.intersection(_DOES[command])


def is_quiet() -> bool:
    """Whether a command runs that was asked to be quiet."""
    return logging.root.manager.disable >= logging.INFO


@contextmanager
def _without_progress() -> Iterator[None]:
    """Inside, only warnings are logged, and no bar is drawn."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        with redirect_stderr(Terminal(getattr(sys.stderr, "stream", sys.stderr), has_bars=False)):
            yield
    finally:
        logging.disable(before)


@contextmanager
def _steps(command: str) -> Iterator[None]:
    """Inside, all that the package logs is shown, a line each with its time; at the end, how long it took."""
    start = time.monotonic()
    with logged("tripletmas", logging.DEBUG, logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")) as logger:
        yield
        logger.info("%s took %.1f s", command, time.monotonic() - start)


@contextmanager
def logged(name: str, level: int, form: logging.Formatter | None = None) -> Iterator[logging.Logger]:
    """Inside, what this logger is told from a level on is shown on standard error, and by no other handler."""
    logger, handler = logging.getLogger(name), logging.StreamHandler(sys.stderr)
    handler.setFormatter(form)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
