"""The command that lists what there is, a line each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence

from tripletmas.basics.sentences import suggestion
from tripletmas.cli.console import make_parser

_LISTED = {"strategies": "strategy", "losses": "loss", "models": "model", "data": "data", "objectives": "objective"}


def print_list(arguments: Sequence[str]) -> dict[str, str]:
    """List what --strategy, --loss, --model, --data or --objective can be, those of installed packages, too."""
    parser = make_parser("list", print_list.__doc__)
    parser.add_argument("what", type=str, help=", ".join(_LISTED))
    what = parser.parse_args(arguments).what
    if what not in _LISTED:
        raise ValueError(f"there is no list of {what!r}{suggestion(what, _LISTED)}")
    from tripletmas.runs import plugins  # here and below: a word that is missing or wrong is told at once

    part = _LISTED[what]
    lines = dict(_built_in(part)) | plugins.registered(part)
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:{width}}  {text}")
    return lines


def _built_in(part: str) -> Iterator[tuple[str, str]]:
    """(name, what it is) of each; those of installed packages are not imported to say more than where they are from."""
    from tripletmas.models import from_torchvision
    from tripletmas.models.making import MODELS
    from tripletmas.objectives.kinds import KINDS, kind_with
    from tripletmas.runs import catalog

    if part == "objective":
        yield from ((name, kind.says) for name, kind in KINDS.items() if name in catalog.built_in(part))
        return
    for name in filter(catalog.built_in(part).__contains__, catalog.names(part)):
        kind = kind_with(part, name)
        if part == "strategy":
            yield name, _first_line(catalog.STRATEGIES[name])
        elif part == "data":
            yield name, _first_line(kind.datasets[name])
        elif part == "loss":
            yield name, kind.says_of(name)
        else:
            yield name, _first_line(MODELS.get(name) or from_torchvision.builder(name))


def _first_line(constructor: Callable[..., object]) -> str:
    """The first paragraph of a docstring in one line, without the addresses of links."""
    text = " ".join((inspect.getdoc(constructor) or "").split("\n\n")[0].split())
    return re.sub(r"`([^`<]*) <[^>]*>`_+", r"\1", text)
