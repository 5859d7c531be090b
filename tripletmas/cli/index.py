"""The command that keeps an index of images, or of texts. Each action is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from tripletmas.basics.sentences import suggestion

ACTIONS = {
    "build": "index_build",
    "add": "index_build",
    "remove": "index_build",
    "info": "index_info",
    "refresh": "index_refresh",
    "push": "index_transfer",
    "pull": "index_transfer",
}
_HELP = """usage: tripletmas index build|add|remove|info|refresh|push|pull ...

{text}

  tripletmas index build runs/mas --images FOLDER --out shop.index
  tripletmas index build runs/faq --csv faq.csv --text answer --out faq.index
  tripletmas index build runs/mas --vectors FOLDER --out shop.index    of files that are embedded already
  tripletmas index add shop.index --images MORE
  tripletmas index remove shop.index PATH
  tripletmas index info shop.index
  tripletmas index refresh shop.index --compensate      moves stale vectors, reads no image
  tripletmas index refresh shop.index --reembed         embeds the images of stale vectors again

  tripletmas index push shop.index lancedb://FOLDER#TABLE    into a vector store (docs/stores.md); pull: out of it

  tripletmas index build --help      the options of each
"""


def index(arguments: Sequence[str]) -> Any:
    """Keep an index of images, or of texts: a file of their vectors, which knows the model that made each."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP.format(text=index.__doc__), end="")
        if arguments:
            raise SystemExit(0)
        raise ValueError(f"index needs one of {', '.join(ACTIONS)}")
    name, *rest = arguments
    if name not in ACTIONS:
        raise ValueError(f"unknown command 'index {name}'{suggestion(name, ACTIONS)}; see: tripletmas index --help")
    return getattr(importlib.import_module(f"tripletmas.cli.{ACTIONS[name]}"), name)(rest)
