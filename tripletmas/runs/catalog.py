"""Names -> constructors: what `--data`, `--model`, `--loss` and `--strategy` accept, and the options of each.

An option is a keyword of the constructor: its type, default and help are read from the signature and the docstring.
Which data and losses there are, and what belongs to them, each kind of task says itself (`objectives.kinds`). Parts of
one's own come in by `admit`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

from tripletmas.basics.options import Option, call, options_of
from tripletmas.basics.sentences import suggestion
from tripletmas.data.source import Source
from tripletmas.models import making
from tripletmas.models.making import MODELS, model_names, without_start
from tripletmas.models.text import PREFIX
from tripletmas.objectives.kind import Data, Kind
from tripletmas.objectives.kinds import KINDS, kind_with, objective_of
from tripletmas.objectives.objective import Objective
from tripletmas.runs import plugins
from tripletmas.runs.arguments import PARTS
from tripletmas.runs.plugins import Code
from tripletmas.strategies.anchors import Anchors
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.combine import Combine
from tripletmas.strategies.distill import Distill
from tripletmas.strategies.ebll import EBLL
from tripletmas.strategies.ewc import EWC
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen, pretrained
from tripletmas.strategies.gram import Gram
from tripletmas.strategies.imm import IMM
from tripletmas.strategies.joint import Joint
from tripletmas.strategies.l2 import L2
from tripletmas.strategies.mas import MAS, LocalMAS
from tripletmas.strategies.replay import Replay
from tripletmas.strategies.si import SI

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "finetune": Finetune,
    "pretrained": pretrained,
    "frozen": Frozen,
    "mas": MAS,
    "local_mas": LocalMAS,
    "gram": Gram,
    "l2": L2,
    "ewc": EWC,
    "si": SI,
    "distill": Distill,
    "ebll": EBLL,
    "imm": IMM,
    "replay": Replay,
    "anchors": Anchors,
    "joint": Joint,
}

METRIC = "metric"  # the kind of task that a loss of one's own is for: it compares embeddings by their labels
OWN: dict[str, dict[str, Callable[..., Any]]] = {"data": {}, "loss": {}}  # admitted ones, which no kind lists
_SIZES = ("dim", "num_classes")  # what a loss of one's own is told, if it has such parameters


def names(part: str) -> tuple[str, ...]:
    """The names that a part ("data", "model", "loss", "strategy") can have; of strategies the single ones."""
    if part == "model":
        return model_names()
    if part == "strategy":
        return tuple(STRATEGIES)
    of_kinds = (kind.datasets if part == "data" else kind.losses for kind in KINDS.values())
    return tuple(dict.fromkeys(name for names in of_kinds for name in names))


def is_known(part: str, name: str) -> bool:
    """Whether there is a part of this name: a built-in one, or one of one's own that was admitted."""
    own = MODELS if part == "model" else OWN.get(part, ())  # before the rest, for which torchvision is asked
    return name in own or is_built_in(part, name) or name in names(part)


def options(part: str, name: str, kind: Kind | None = None) -> dict[str, Option]:
    """The options of the `part` called `name`; those of a combination of strategies, `a+b`, as `a.OPTION`, `b.OPTION`.

    Args:
        kind: of task, which takes data and losses of this name; None for the first that does.

    Raises:
        ValueError: for an unknown name, with the nearest known one; for a strategy that is combined with itself.
    """
    if part == "strategy":
        return _strategy_options(name)
    if not is_known(part, name):
        raise _unknown(part, name)
    kind = kind or kind_with(part, name)
    if part == "model":
        return kind.model_options(name)
    if part == "loss":
        own = OWN["loss"].get(name)
        return options_of(own, leave_out=_SIZES) if own else kind.loss_options(name)
    functions = (_reader(kind, name), *kind.stream_options)
    return {key: option for function in functions for key, option in options_of(function).items()}


def _strategy_options(name: str) -> dict[str, Option]:
    if is_combination(name):
        found = {single: _strategy_options(single) for single in _combined(name)}
        return {f"{single}.{key}": option for single, listed in found.items() for key, option in listed.items()}
    if name not in STRATEGIES:
        raise _unknown("strategy", name)
    return options_of(STRATEGIES[name])


def build_data(name: str, given: Mapping[str, Any], kind: Kind | None = None) -> Data:
    """The data set `name` as the stream of a kind of task, None for the first that takes it, and what belongs to it."""
    kind = kind or kind_with("data", name)
    source = call(_reader(kind, name), given)
    if not isinstance(source, Source):
        raise ValueError(f"data {name!r} gave {type(source).__name__}, not a Source")
    return kind.data(source, given)


def build_model(
    kind: Kind,
    name: str,
    given: Mapping[str, Any],
    sample_shape: tuple[int, ...],
    *,
    of_data: Mapping[str, Any],
    data: Data | None = None,
    start: bool = True,
) -> nn.Module:
    """The model `name`, as this kind needs it for data with the options `of_data`.

    Args:
        start: give it the weights that it starts from; where they are loaded from a run, none are read.
    """
    if not sample_shape and ":" not in name and is_built_in("model", name):
        raise ValueError(f"the data are texts, and model {name!r} reads none: choose --model {PREFIX}NAME_OR_FOLDER")
    given = given if start else without_start(name, given)
    made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    model = kind.model(name, made, sample_shape, of_data=of_data, data=data)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} gave {type(model).__name__}, not a torch.nn.Module")
    return model


def build_objective(kind: Kind, loss: str, given: Mapping[str, Any], *, dim: int, data: Data) -> Objective:
    """What is learned with this loss and its options; embeddings have the length `dim`."""
    if loss not in OWN["loss"]:
        return kind.objective(loss, given, dim=dim, data=data)
    sizes = {"dim": dim, "num_classes": len(data.stream[0].train.class_names)}
    asked = inspect.signature(OWN["loss"][loss]).parameters.keys() & sizes
    made = OWN["loss"][loss](**given, **{name: sizes[name] for name in asked})
    if not callable(made):
        raise ValueError(f"loss {loss!r} gave {type(made).__name__}, not a function of (embeddings, labels)")
    return objective_of(cast(Any, made))


def build_strategy(name: str, given: Mapping[str, Any], *, searched: str | None = None) -> Strategy:
    """The strategy `name`, or the combination `a+b`, whose options are given as `{"a": {...}, "b": {...}}`.

    Args:
        searched: the part of a combination whose strength can be set; a single strategy sets its own.

    Raises:
        ValueError: for an unknown name, with the nearest known one, and for strategies that do not go together.
    """
    if not is_combination(name):
        return _strategy(name, given)
    singles = _combined(name)
    unknown = sorted(given.keys() - set(singles))
    if unknown:
        raise ValueError(f"strategy {name!r} has no part {unknown[0]!r}{suggestion(unknown[0], singles)}")
    return Combine({single: _strategy(single, given.get(single, {})) for single in singles}, searched=searched)


def defaults_for(strategy: str) -> dict[str, Any]:
    """option -> its default, where it is another one for this strategy, or for a part of this combination."""
    singles = _combined(strategy) if is_combination(strategy) else [strategy]
    has_map = all(getattr(STRATEGIES.get(single), "compensate", Strategy.compensate) for single in singles)
    return {} if has_map else {"gallery.compensate": None}


def is_combination(name: str) -> bool:
    """Whether a strategy's name is `a+b`; what says itself where its code is stands alone."""
    return "+" in name and not plugins.is_written_out(name)


def _strategy(name: str, given: Mapping[str, Any]) -> Strategy:
    if name not in STRATEGIES:
        raise _unknown("strategy", name)
    made = STRATEGIES[name](**given)
    if not isinstance(made, Strategy):
        raise ValueError(f"strategy {name!r} gave {type(made).__name__}, not a tripletmas Strategy")
    return made


def _combined(name: str) -> list[str]:
    """The single strategies in `a+b`."""
    singles = name.split("+")
    for single in singles:
        if single not in STRATEGIES:
            raise ValueError(f"unknown strategy {single!r} in {name!r}{suggestion(single, STRATEGIES)}")
        if singles.count(single) > 1:
            raise ValueError(f"strategy {single!r} is in {name!r} twice: a strategy combines with others only")
    return singles


def _reader(kind: Kind, name: str) -> Callable[..., Source]:
    return OWN["data"].get(name) or kind.datasets[name]


def _unknown(part: str, name: str) -> ValueError:
    if part == "model":
        return making.unknown_model(name, plugins.registered(part))
    return ValueError(f"unknown {part} {name!r}{suggestion(name, (*names(part), *plugins.registered(part)))}")


# --- parts of one's own


_BUILT_IN = {**{part: frozenset(names(part)) for part in PARTS if part != "model"}, "objective": frozenset(KINDS)}


def built_in(part: str) -> frozenset[str]:
    """The names of what comes with the package; of models those that need no file and no further package."""
    return frozenset(filter(making.is_built_in, model_names())) if part == "model" else _BUILT_IN[part]


def is_built_in(part: str, name: str) -> bool:
    """Whether a part of this name comes with the package, and is nobody's own code."""
    return making.is_built_in(name) if part == "model" else name in _BUILT_IN[part]


def admit(code: Code) -> None:
    """Enter a part of one's own under its name, as the built-in ones; its code is executed, if it was not yet.

    Raises:
        ValueError: if the code does not work, or is nothing that can be such a part.
    """
    made = code.load()
    what = f"{code.part} {code.name!r}"
    if code.part == "objective":
        kind = made() if inspect.isclass(made) and issubclass(made, Kind) else made
        if not isinstance(kind, Kind):
            raise ValueError(f"{what} is of type {type(kind).__name__}, not a tripletmas Kind")
        if kind.name in _BUILT_IN["objective"]:
            raise ValueError(f"{what} calls itself {kind.name!r}, which is built in: give it another name")
        KINDS[code.name] = kind
        return
    _check_options(what, made, by_position=1 if code.part == "model" else 0)
    tables: dict[str, dict[str, Callable[..., Any]]] = {"strategy": STRATEGIES, "model": MODELS, **OWN}
    tables[code.part][code.name] = made


def _check_options(what: str, made: Any, *, by_position: int) -> None:
    """Whether a part can be called: so many arguments by position, all others are options."""
    if not callable(made):
        raise ValueError(f"{what} is of type {type(made).__name__}, nothing that can be called")
    try:
        named = options_of(made)
        parameters = inspect.signature(made).parameters.values()
    except Exception as error:
        raise ValueError(f"{what}: its options cannot be read ({type(error).__name__}: {error})") from None
    if "name" in named:
        raise ValueError(f"{what} has an option `name`, which is what the part itself is called: give it another name")
    needed = [
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        and each.default is each.empty
        and each.name not in (*named, *_SIZES)
    ]
    if len(needed) != by_position:
        raise ValueError(
            f"{what} takes {', '.join(needed) or 'nothing'} by position, and is given {by_position}: options are "
            "keyword-only, after a *"
        )
