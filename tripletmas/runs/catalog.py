"""Names -> constructors: what `--data`, `--model`, `--loss` and `--strategy` accept, and the options of each.

An option is a keyword of the constructor: its type, default and help are read from the signature and the docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import docstring_parser
from torch import nn

from tripletmas.objectives.retrieval import losses
from tripletmas.models import networks as models
from tripletmas.data.dataset import Source
from tripletmas.objectives.facts import listed
from tripletmas.objectives.facts.scenes import shapes
from tripletmas.objectives.facts.fact import parse_fact
from tripletmas.objectives.facts.language import LanguageView, language_view
from tripletmas.objectives.facts.losses import FactContrastive, FactDistance, FactLoss
from tripletmas.objectives.facts.streams import make_fact_stream
from tripletmas.objectives.facts.visual import make_visual_view
from tripletmas.objectives.facts.words import WordVectors, make_words
from tripletmas.data.sequences import READERS, sequence
from tripletmas.basics.sentences import suggestion
from tripletmas.strategies.ebll import EBLL
from tripletmas.strategies.imm import IMM
from tripletmas.strategies.combine import Combine
from tripletmas.strategies.distill import Distill
from tripletmas.strategies.ewc import ElasticWeightConsolidation
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen
from tripletmas.strategies.joint import Joint
from tripletmas.strategies.replay import Replay
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.si import SynapticIntelligence
from tripletmas.strategies.l2 import l2
from tripletmas.strategies.mas import local_mas, mas
from tripletmas.data.tasks import Stream, Task, make_stream

FACT_DATASETS: dict[str, Callable[..., Source]] = {"shapes-facts": shapes.shapes_facts, "facts": listed.facts}
DATASETS: dict[str, Callable[..., Source]] = {**READERS, "sequence": sequence, **FACT_DATASETS}
FACT_LOSSES: dict[str, Callable[..., FactLoss]] = {"fact_contrastive": FactContrastive, "fact_distance": FactDistance}
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
class Data:
    """What is learned.

    Attributes:
        unseen: classes that are in no task; None for none.
        language: of facts, their language view; None for classes.
    """

    stream: Stream
    unseen: Task | None = None
    language: LanguageView | None = None


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
        "loss": lambda: (*losses.LOSSES, CROSS_ENTROPY, *FACT_LOSSES),
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
        of_stream = _OF_FACTS if name in FACT_DATASETS else (make_stream,)
        return options_of(DATASETS[name]) | {k: v for function in of_stream for k, v in options_of(function).items()}
    if part == "model":
        return options_of(models.constructor_for(name), leave_out=("name",))
    if part == "strategy":
        return options_of(STRATEGIES[name])
    if name == CROSS_ENTROPY:
        return {}
    if name in FACT_LOSSES:
        return options_of(FACT_LOSSES[name])
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


def build_model(
    name: str, given: Mapping[str, Any], sample_shape: tuple[int, ...], *, part_dim: int | None = None
) -> nn.Module:
    """The model `name`; with `part_dim`, the length of one part of a fact, the visual view of facts made of it."""
    made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if part_dim is None:
        return models.make_model(name, sample_shape, options=made)
    branch_at = made.pop("branch_at")
    return make_visual_view(name, sample_shape, dim=part_dim, branch_at=branch_at, options=made)


def fact_model_options(name: str) -> dict[str, Option]:
    """The options of the model `name` as the visual view of facts, whose language view decides on `dim`."""
    own = {key: option for key, option in options("model", name).items() if key != "dim"}
    return own | {"branch_at": options_of(make_visual_view)["branch_at"]}


def build_data(name: str, given: Mapping[str, Any]) -> Data:
    """The data set `name` as a stream, with what belongs to it."""
    source = _call(DATASETS[name], given)
    if name in FACT_DATASETS:
        facts = [parse_fact(each) for each in source.train.class_names]
        language = language_view(facts, words_of(given))
        stream, unseen = _call(make_fact_stream, given, source, language)
        return Data(stream, unseen, language)
    return Data(*_call(make_stream, given, source))


def words_of(given: Mapping[str, Any]) -> WordVectors:
    """The word vectors of data of facts with these options."""
    return _call(make_words, given)


def build_loss(
    name: str, given: Mapping[str, Any], *, dim: int, num_classes: int, language: LanguageView | None = None
) -> nn.Module:
    """The loss `name` between embeddings, or, with a language view, between embeddings and facts."""
    if name in FACT_LOSSES:
        if language is None:
            raise ValueError(f"loss {name!r} compares images with facts: use it with {' or '.join(FACT_DATASETS)}")
        return FACT_LOSSES[name](language, **given)
    rest = {key: value for key, value in given.items() if key != "mining"}
    return losses.make_loss(name, dim=dim, num_classes=num_classes, mining=given.get("mining"), options=rest)


_OF_FACTS = (make_fact_stream, make_words)


def _call(function: Callable[..., Any], given: Mapping[str, Any], *arguments: Any) -> Any:
    """The function with those of the options that are its own."""
    own = options_of(function)
    return function(*arguments, **{key: value for key, value in given.items() if key in own})


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
