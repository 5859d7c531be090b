"""Names -> constructors: what `--data`, `--model`, `--loss` and `--strategy` accept, and the options of each.

An option is a keyword of the constructor: its type, default and help are read from the signature and the docstring.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import docstring_parser

from tripletmas import datasets, folders, losses, models
from tripletmas.data import Source
from tripletmas.strategies import Finetune, Frozen, Joint, Strategy, local_mas, mas
from tripletmas.tasks import make_stream

DATASETS: dict[str, Callable[..., Source]] = {
    "digits": datasets.digits,
    "omniglot": datasets.omniglot,
    "mnist": datasets.mnist,
    "fashion-mnist": datasets.fashion_mnist,
    "cifar10": datasets.cifar10,
    "cifar100": datasets.cifar100,
    "cub200": datasets.cub200,
    "cars196": datasets.cars196,
    "sop": datasets.sop,
    "folder": folders.folder,
    "csv": folders.csv,
}
STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "finetune": Finetune,
    "frozen": Frozen,
    "mas": mas,
    "local_mas": local_mas,
    "joint": Joint,
}
PARTS = ("data", "model", "loss", "strategy")


@dataclass(frozen=True)
class Option:
    """One option of a part: what the command line needs to know of it."""

    type: Any
    default: Any
    help: str


def names(part: str) -> tuple[str, ...]:
    """The names that a part ("data", "model", "loss", "strategy") can have."""
    return {
        "data": lambda: tuple(DATASETS),
        "model": models.model_names,
        "loss": lambda: tuple(losses.LOSSES),
        "strategy": lambda: tuple(STRATEGIES),
    }[part]()


def options(part: str, name: str) -> dict[str, Option]:
    """The options of the `part` called `name`.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name not in names(part):
        raise ValueError(f"unknown {part} {name!r}{suggestion(name, names(part))}")
    if part == "data":
        return options_of(DATASETS[name]) | options_of(make_stream)
    if part == "model":
        return options_of(models.constructor_for(name), leave_out=("name",))
    if part == "strategy":
        return options_of(STRATEGIES[name])
    mining = Option(Literal[losses.MININGS], losses.default_mining(name), "which pairs or triplets the loss sees")
    return {"mining": mining} | {
        option: Option(parameter.annotation, parameter.default, f"as in {losses.LOSSES[name].constructor.__name__}")
        for option, parameter in losses.loss_options(name).items()
    }


def options_of(constructor: Callable[..., Any], *, leave_out: Iterable[str] = ()) -> dict[str, Option]:
    """The keyword-only parameters of a function, or the fields of a dataclass, as options."""
    function = getattr(constructor, "func", constructor)  # a partial has the hints and the text of its function
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    text = docstring_parser.parse(inspect.getdoc(function) or "")
    helps = {entry.arg_name: " ".join((entry.description or "").split()) for entry in text.params}
    keywords = [
        parameter
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY or hasattr(function, "__dataclass_fields__")
    ]
    return {
        parameter.name: Option(hints.get(parameter.name, Any), parameter.default, helps.get(parameter.name, ""))
        for parameter in keywords
        if parameter.name not in leave_out
    }


def build_data(name: str, given: Mapping[str, Any]):
    """The stream of the data set `name`."""
    of_stream = options_of(make_stream)
    source = DATASETS[name](**{key: value for key, value in given.items() if key not in of_stream})
    return make_stream(source, **{key: value for key, value in given.items() if key in of_stream})


def build_strategy(name: str, given: Mapping[str, Any]) -> Strategy:
    """The strategy `name`."""
    return STRATEGIES[name](**given)


def suggestion(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the known names where none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(known[:30])}{', ...' if len(known) > 30 else ''})"
