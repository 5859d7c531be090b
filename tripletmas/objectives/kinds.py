"""The kinds of task by name: the one place that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tripletmas.basics.sentences import suggestion
from tripletmas.objectives.facts.kind import FactsKind
from tripletmas.objectives.facts.losses import FactLoss
from tripletmas.objectives.facts.objective import Facts
from tripletmas.objectives.kind import Kind
from tripletmas.objectives.objective import MetricLoss, Objective
from tripletmas.objectives.recognition.kind import RecognitionKind
from tripletmas.objectives.retrieval.kind import RetrievalKind
from tripletmas.objectives.retrieval.objective import Retrieval

KINDS: dict[str, Kind] = {kind.name: kind for kind in (RetrievalKind(), RecognitionKind(), FactsKind())}


def kind_named(name: str) -> Kind:
    """The kind of task that `--objective` calls so.

    Raises:
        ValueError: if there is none.
    """
    if name not in KINDS:
        raise ValueError(f"unknown objective {name!r}{suggestion(name, KINDS)}")
    return KINDS[name]


def kind_of(config: Mapping[str, Any]) -> Kind:
    """The kind of a run with this configuration."""
    return kind_named(str(config.get("objective", RetrievalKind.name)))


def kind_with(part: str, name: str) -> Kind:
    """The first kind that has data ("data") or a loss ("loss") of this name: the kind that they ask for themselves."""
    having = (kind for kind in KINDS.values() if name in (kind.datasets if part == "data" else kind.losses))
    return next(having, KINDS[RetrievalKind.name])


def objective_of(loss: MetricLoss | Objective) -> Objective:
    """The objective of a loss: it itself, or what a metric loss or a loss of facts stands for."""
    if isinstance(loss, Objective):
        return loss
    return Facts(loss) if isinstance(loss, FactLoss) else Retrieval(loss)
