"""Names -> constructors: what `--data`, `--model`, `--loss` and `--strategy` accept, and the options of each.

An option is a keyword of the constructor: its type, default and help are read from the signature and the docstring.
Which data and losses there are, and what belongs to them, each kind of task says itself (`objectives.kinds`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from tripletmas.basics.options import Option, call, options_of
from tripletmas.basics.sentences import suggestion
from tripletmas.models.networks import model_names
from tripletmas.objectives.kind import Data, Kind
from tripletmas.objectives.kinds import KINDS, kind_with
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.combine import Combine
from tripletmas.strategies.distill import Distill
from tripletmas.strategies.ebll import EBLL
from tripletmas.strategies.ewc import ElasticWeightConsolidation
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen
from tripletmas.strategies.imm import IMM
from tripletmas.strategies.joint import Joint
from tripletmas.strategies.l2 import l2
from tripletmas.strategies.mas import local_mas, mas
from tripletmas.strategies.replay import Replay
from tripletmas.strategies.si import SynapticIntelligence

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


def names(part: str) -> tuple[str, ...]:
    """The names that a part ("data", "model", "loss", "strategy") can have; of strategies the single ones."""
    if part == "model":
        return model_names()
    if part == "strategy":
        return tuple(STRATEGIES)
    of_kinds = (kind.datasets if part == "data" else kind.losses for kind in KINDS.values())
    return tuple(dict.fromkeys(name for names in of_kinds for name in names))


def options(part: str, name: str, kind: Kind | None = None) -> dict[str, Option]:
    """The options of the `part` called `name`; those of a combination of strategies, `a+b`, as `a.OPTION`, `b.OPTION`.

    Args:
        kind: of task, which takes data and losses of this name; None for the first that does.

    Raises:
        ValueError: for an unknown name, with the nearest known one; for a strategy that is combined with itself.
    """
    if part == "strategy" and "+" in name:
        found = {single: options(part, single) for single in _combined(name)}
        return {f"{single}.{key}": option for single, listed in found.items() for key, option in listed.items()}
    if name not in names(part):
        raise ValueError(f"unknown {part} {name!r}{suggestion(name, names(part))}")
    if part == "strategy":
        return options_of(STRATEGIES[name])
    kind = kind or kind_with(part, name)
    if part == "data":
        functions = (kind.datasets[name], *kind.stream_options)
        return {key: option for function in functions for key, option in options_of(function).items()}
    return kind.model_options(name) if part == "model" else kind.loss_options(name)


def build_data(name: str, given: Mapping[str, Any], kind: Kind | None = None) -> Data:
    """The data set `name` as the stream of a kind of task, None for the first that takes it, and what belongs to it."""
    kind = kind or kind_with("data", name)
    return kind.data(call(kind.datasets[name], given), given)


def build_model(
    kind: Kind,
    name: str,
    given: Mapping[str, Any],
    sample_shape: tuple[int, ...],
    *,
    of_data: Mapping[str, Any],
    data: Data | None = None,
) -> nn.Module:
    """The model `name`, as this kind needs it for data with the options `of_data`."""
    made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return kind.model(name, made, sample_shape, of_data=of_data, data=data)


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
