"""The command line. `--help` and `--version` answer without importing torch, which takes seconds."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from tripletmas.basics.sentences import refused, suggestion
from tripletmas.basics.version import __version__

# command -> (the module and the function that it is, what it does)
COMMANDS = {
    "train": ("train.train", "learn a stream of tasks, score every task after each, write a report"),
    "search": ("train.search", "learn a stream with a strength that is found for each task on that task's data alone"),
    "resume": ("train.resume", "go on with a run that was interrupted, or whose data have new tasks"),
    "evaluate": ("evaluate.evaluate", "score the model of a run on its tasks, or on other data"),
    "forecast": ("forecast.forecast", "tell what an update did to stored vectors, without any old image"),
    "compare": ("evaluate.compare", "put runs side by side: a table, and a page with pictures"),
    "report": ("evaluate.report", "write the report of a run again"),
    "importance": ("importance.importance", "measure importance on unlabelled images, add it to a run's protection"),
    "index": ("index.index", "keep an index of images: build, add, remove, info, refresh"),
    "query": ("query.query", "find the images of an index that are nearest to others"),
    "export": ("export.export", "write the embeddings of a run for other programs"),
    "list": ("listing.print_list", "what there is, a line each: strategies, losses, models, data, objectives"),
    "doctor": ("doctor.doctor", "versions, devices, OpenMP runtimes, and what is missing for which feature"),
}

_HELP = """usage: tripletmas COMMAND [options]

Continual metric learning: embeddings learned task by task with metric losses, protected by
Memory Aware Synapses, measured by retrieval.

commands:
{commands}

  tripletmas COMMAND --help     the options of a command
  tripletmas --version

start here:
  tripletmas train --data digits --strategy mas --out runs/mas
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0 if it went well, 2 for what the user can fix, 130 after Ctrl-C."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ("",)
    if name in COMMANDS:
        return _run(name, rest)
    if name in ("-V", "--version"):
        print(f"tripletmas {__version__}")
    elif name in ("", "-h", "--help", "help"):
        print(_HELP.format(commands="\n".join(f"  {name:11} {text}" for name, (_, text) in COMMANDS.items())), end="")
    else:
        return _failed(f"unknown command {name!r}{suggestion(name, COMMANDS)}; see: tripletmas --help")
    return 0 if name else 2


def _run(name: str, arguments: Sequence[str]) -> int:
    module, _, function = COMMANDS[name][0].partition(".")
    try:
        # imported one by one: doctor is for installations in which torch or faiss cannot be imported
        getattr(importlib.import_module(f"tripletmas.cli.{module}"), function)(arguments)
    except ImportError as error:
        return _failed(f"{error}; what is wrong with this installation: tripletmas doctor")
    except BrokenPipeError:  # the reader of a pipe, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except argparse.ArgumentError as error:
        command = " ".join([name, *arguments[:1]]) if name == "index" else name
        return _failed(f"{refused(error)}; see: tripletmas {command} --help")
    except (ValueError, OSError, FloatingPointError) as error:
        return _failed(str(error))
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return 130
    return 0


def _failed(message: str) -> int:
    print(f"tripletmas: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
