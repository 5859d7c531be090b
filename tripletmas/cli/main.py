"""The command line. `--help` and `--version` answer without importing torch, which takes seconds."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tripletmas.basics import progress
from tripletmas.basics.sentences import refused, suggestion
from tripletmas.basics.version import __version__
from tripletmas.cli.late import import_late
from tripletmas.cli.processes import sharing
from tripletmas.cli.telling import OPTIONS, ProblemsFound, logged, taken
from tripletmas.cli.terminal import guarded

# command -> (the module and the function that it is, what it does)
COMMANDS = {
    "train": ("train.train", "learn a stream of tasks, score every task after each, write a report"),
    "search": ("train.search", "learn a stream with a strength that is found for each task on that task's data alone"),
    "resume": ("train.resume", "go on with a run that was interrupted, or whose data have new tasks"),
    "evaluate": ("evaluate.evaluate", "score the model of a run on its tasks, or on other data"),
    "forecast": ("forecast.forecast", "tell what an update did to stored vectors, without any old image"),
    "compare": ("reporting.compare", "put runs side by side: a table, and a page with pictures"),
    "report": ("reporting.report", "write the report of a run again, or a page over the runs of a folder"),
    "importance": ("importance.importance", "measure importance on unlabelled images, add it to a run's protection"),
    "index": ("index.index", "keep an index of images: build, add, remove, info, refresh"),
    "query": ("query.query", "find the images of an index that are nearest to others"),
    "serve": ("serve.serve", "a page, and JSON, to search an index or a store by photo or text"),
    "upgrade": ("upgrade.upgrade", "bring a store, or an index, to another model: plan, apply, switch, take back"),
    "export": ("export.export", "write the embeddings of a run for other programs"),
    "example": (
        "example.example",
        "draw pictures to try on, three months of a small shop, and say what comes next",
    ),
    "list": ("listing.print_list", "what there is, a line each: strategies, losses, models, data, objectives"),
    "completion": ("completion.completion", "what bash, zsh or fish need to complete the words of these commands"),
    "doctor": ("doctor.doctor", "what is wrong with this installation, or with the files of a run or an index"),
}

_TOO_LARGE = re.compile("can't allocate|out of memory|overflow", re.IGNORECASE)  # what torch and NumPy say

_HELP = """usage: tripletmas COMMAND [options]

Continual metric learning: embeddings learned task by task with metric losses, protected by
Memory Aware Synapses, measured by retrieval.

commands:
{commands}

  tripletmas COMMAND --help     the options of a command
  tripletmas --version

every command takes:
{every}
  --debug     with an error, where in the program it happened

what people do (`tripletmas example shop` draws pictures for it):
  learn       tripletmas train --data folder --data.root shop --model conv4 --strategy mas --out runs/shop
  search      tripletmas index build runs/shop --images shop --out shop.index
              tripletmas query shop.index PHOTO       or, as a page: tripletmas serve shop.index
  go on       tripletmas resume runs/shop             next month's folder; what was learned is held
  renew       tripletmas index refresh shop.index --compensate auto       old vectors, the new model, no old picture
  compare     tripletmas compare runs/mas runs/gram                       by what was learned, forgotten and found
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; without arguments that of the process, which is then the command's alone.

    The exit status is 0 if it went well, 2 for what the user can fix, 1 for what should not happen, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    name, *rest = [each for each in given if each != "--debug"] or ("",)
    with guarded(), _progress():
        try:
            return _main(name, rest, alone=arguments is None)
        except BrokenPipeError:  # the reader of a pipe, such as head, has left
            return 0
        except Exception as error:
            if debug:
                traceback.print_exc()
            return _failed(*_told(error, debug=debug))
        except KeyboardInterrupt as interrupt:
            print(f"\ninterrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
            return 130


@contextmanager
def _progress() -> Iterator[None]:
    """Inside, the log says how far long work is, though nothing else of a log may be shown."""
    with logged(progress.__name__, logging.INFO):
        yield


def _main(name: str, arguments: Sequence[str], *, alone: bool) -> int:
    if name in COMMANDS:
        return _run(name, arguments, alone=alone)
    if name in ("-V", "--version"):
        print(f"tripletmas {__version__}")
    elif name in ("", "-h", "--help", "help"):
        commands = _table({name: text for name, (_, text) in COMMANDS.items()})
        print(_HELP.format(commands=commands, every=_table(OPTIONS)), end="")
    else:
        return _failed(f"unknown command {name!r}{suggestion(name, COMMANDS)}; see: tripletmas --help")
    return 0 if name else 2


def _table(lines: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:11} {text}" for name, text in lines.items())


def _run(name: str, arguments: Sequence[str], *, alone: bool) -> int:
    module, _, function = COMMANDS[name][0].partition(".")
    telling, arguments = taken(name, arguments)
    try:
        with sharing(name, arguments) as works:
            if works:
                with telling.heard(name, arguments):
                    content = getattr(_imported(f"tripletmas.cli.{module}", alone=alone), function)(arguments)
                telling.tell(content)
    except ProblemsFound as error:
        telling.tell(error.content)
        raise
    except argparse.ArgumentError as error:
        command = " ".join([name, *arguments[:1]]) if name == "index" else name
        return _failed(f"{refused(error, hyphens=True)}; see: tripletmas {command} --help")
    return 0


def _imported(name: str, *, alone: bool) -> ModuleType:
    """A module of commands, imported by itself: doctor is for installations in which torch or faiss cannot be imported.

    In a process of its own what comes with it stays: Python does not look through it for garbage any more, nor take it
    apart as the process ends, and looks less often through what comes later; what is seldom used is imported late.
    """
    if not alone:
        return importlib.import_module(name)
    _wait_briefly()
    import_late()
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
    module = importlib.import_module(name)
    gc.freeze()
    return module


def _wait_briefly() -> None:
    """Have threads that wait for each other in torch and faiss sleep sooner, unless the environment says how they wait.

    GNU's OpenMP, which reads this when torch is imported, has them spin. Where other programs want the cores as well,
    such as another training, a command then took two to three times as long; where none does, 3 % less.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"


def _told(error: Exception, *, debug: bool) -> tuple[str, int]:
    """(a sentence about an error, the exit status)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "Original Traceback" in str(error):  # of a process that loads images
        lines = [lines[-1].partition(": ")[2]]
    message = " ".join(lines)
    if isinstance(error, ImportError):
        return f"{message}; what is wrong with this installation: tripletmas doctor", 2
    if isinstance(error, MemoryError) or _TOO_LARGE.search(message):
        return "there is not enough memory for this, or a number is too large (--debug shows where)", 2
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return message, 2
    return _unexpected(error, message, debug=debug)


def _unexpected(error: Exception, message: str, *, debug: bool) -> tuple[str, int]:
    """The same of an error of a type that says nothing of what went wrong: of a user's own code, or of ours."""
    if place := _place_in_own_code(error):
        return f"{place}: {type(error).__name__}: {message}", 2
    where = "" if debug else "; --debug shows where"
    return f"unexpected {type(error).__name__}: {message}{where}. This should not happen: please report it", 1


def _place_in_own_code(error: Exception) -> str | None:
    """The file and line of a user's own code in which an error arose, if it did: not in ours, which called that."""
    package = f"{Path(__file__).parents[1]}{os.sep}"
    paths = sysconfig.get_paths()
    installed = tuple(f"{paths[name]}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(package):
            return None
        if os.path.isfile(frame.filename) and not frame.filename.startswith(installed):
            return f"{frame.filename}, line {frame.lineno}"
    return None


def _failed(message: str, status: int = 2) -> int:
    print(f"tripletmas: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
