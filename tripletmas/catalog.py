"""Names -> constructors: what `--data`, `--model`, `--loss` and `--strategy` accept, and the options of each.

An option is a keyword of the constructor: its type, default and help are read from the signature and the docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import docstring_parser

from tripletmas import losses, models
from tripletmas.data import Source
from tripletmas.readers import READERS
from tripletmas.sequences import sequence
from tripletmas.spelling import suggestion
from tripletmas.strategies import (
    EBLL,
    IMM,
    Combine,
    Distill,
    ElasticWeightConsolidation,
    Finetune,
    Frozen,
    Joint,
    Replay,
    Strategy,
    SynapticIntelligence,
    l2,
    local_mas,
    mas,
)
from tripletmas.tasks import Stream, Task, make_stream, make_unseen

DATASETS: dict[str, Callable[..., Source]] = {**READERS, "sequence": sequence}
STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "finetune": Finetune,
    "frozen": Frozen,
    "mas": mas,
    "local_mas": local_mas,
    "l2": l2,
    "ewc": ElasticWeightConsolidation,
    "si": SynapticIntelligence,
    "distill": Distill,
    "ebll": EBLL,
    "imm": IMM,
    "replay": Replay,
    "joint": Joint,
}
PARTS = ("data", "model", "loss", "strategy")
CROSS_ENTROPY = "cross_entropy"  # the loss of recognition, which is made for a stream's tasks and has no options


@dataclass(frozen=True)
class Option:
    """One option of a part: what the command line needs to know of it."""

    type: Any
    default: Any
    help: str


def names(part: str) -> tuple[str, ...]:
    """The names that a part ("data", "model", "loss", "strategy") can have; of strategies the single ones."""
    return {
        "data": lambda: tuple(DATASETS),
        "model": models.model_names,
        "loss": lambda: (*losses.LOSSES, CROSS_ENTROPY),
        "strategy": lambda: tuple(STRATEGIES),
    }[part]()


def options(part: str, name: str) -> dict[str, Option]:
    """The options of the `part` called `name`; those of a combination of strategies, `a+b`, as `a.OPTION`, `b.OPTION`.

    Raises:
        ValueError: for an unknown name, with the nearest known one; for a strategy that is combined with itself.
    """
    if part == "strategy" and "+" in name:
        found = {single: options(part, single) for single in _combined(name)}
        return {f"{single}.{key}": option for single, listed in found.items() for key, option in listed.items()}
    if name not in names(part):
        raise ValueError(f"unknown {part} {name!r}{suggestion(name, names(part))}")
    if part == "data":
        return options_of(DATASETS[name]) | options_of(make_stream)
    if part == "model":
        return options_of(models.constructor_for(name), leave_out=("name",))
    if part == "strategy":
        return options_of(STRATEGIES[name])
    if name == CROSS_ENTROPY:
        return {}
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


def build_data(name: str, given: Mapping[str, Any]) -> Stream:
    """The stream of the data set `name`."""
    return build_data_and_unseen(name, given)[0]


def build_data_and_unseen(name: str, given: Mapping[str, Any]) -> tuple[Stream, Task | None]:
    """The stream of the data set `name`, and the classes that are in none of its tasks; None for none."""
    of_stream, of_unseen = options_of(make_stream), options_of(make_unseen)
    source = DATASETS[name](**{key: value for key, value in given.items() if key not in of_stream})
    stream = make_stream(source, **{key: value for key, value in given.items() if key in of_stream})
    if not given.get("unseen"):
        return stream, None
    return stream, make_unseen(source, **{key: value for key, value in given.items() if key in of_unseen})


def build_strategy(name: str, given: Mapping[str, Any], *, searched: str | None = None) -> Strategy:
    """The strategy `name`, or the combination `a+b`, whose options are given as `{"a": {...}, "b": {...}}`.

    Args:
        searched: the part of a combination whose strength can be set; a single strategy sets its own.

    Raises:
        ValueError: for an unknown name, with the nearest known one, and for strategies that do not go together.
    """
    if "+" not in name:
        if name not in STRATEGIES:
            raise ValueError(f"unknown strategy {name!r}{suggestion(name, STRATEGIES)}")
        return STRATEGIES[name](**given)
    singles = _combined(name)
    unknown = sorted(given.keys() - set(singles))
    if unknown:
        raise ValueError(f"strategy {name!r} has no part {unknown[0]!r}{suggestion(unknown[0], singles)}")
    return Combine({single: STRATEGIES[single](**given.get(single, {})) for single in singles}, searched=searched)


def _combined(name: str) -> list[str]:
    """The single strategies in `a+b`."""
    singles = name.split("+")
    for single in singles:
        if single not in STRATEGIES:
            raise ValueError(f"unknown strategy {single!r} in {name!r}{suggestion(single, STRATEGIES)}")
        if singles.count(single) > 1:
            raise ValueError(f"strategy {single!r} is in {name!r} twice: a strategy combines with others only")
    return singles
