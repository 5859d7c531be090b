"""Retrieval as a kind of task: classes learned by a metric loss, which queries search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tripletmas.basics.options import Option
from tripletmas.data.source import Source
from tripletmas.objectives.classes import DATASETS, DEFINITIONS, STREAM_OPTIONS, class_data
from tripletmas.objectives.kind import Data, Kind, Map, Primary, Wording
from tripletmas.objectives.retrieval import losses
from tripletmas.objectives.retrieval.objective import Retrieval

WORDING = Wording(
    average="After the last task, the share of queries whose nearest neighbour in the gallery of everything seen is of "
    "their own class; mean over the tasks.",
    forgetting="How far recall@1 fell on the earlier tasks, from its best value to the end; mean over them. Lower is "
    "better.",
    backward_transfer="Recall@1 at the end minus recall@1 right after the task was learned; mean over the earlier "
    "tasks. Below zero, later tasks did harm.",
    learning="Recall@1 on each task right after it was learned; mean over the tasks. A protection that is too strong "
    "forgets nothing and lowers this.",
    convention="recall@k is the share of queries with at least one item of their class among the k nearest; the query "
    "itself never counts. The gallery of all tasks seen so far grows with every task, so scores on it also fall "
    "because there is more to confuse; on a task's own gallery only forgetting lowers them.",
    curves="Recall@1 on the gallery of all tasks seen. Each thin line is one task from the moment it was learned, the "
    "thick line their mean. Lines fall by forgetting, and because the gallery grows.",
    averages="Recall@1 on the gallery of everything seen, mean over the tasks seen so far. It falls by forgetting, and "
    "because the gallery grows with every task; a band is one standard deviation over the seeds.",
    loss="metric loss",
    galleries={"seen": "gallery: all tasks seen so far", "task": "gallery: the task's own"},
    maps=(
        Map(
            "recall@1",
            "seen",
            "Recall@1, gallery: all tasks seen so far",
            "Recall@1 on each task (column) after learning each task (row), among the items of all tasks seen by then. "
            "Read a column downwards to see a task being forgotten.",
        ),
        Map(
            "recall@1",
            "task",
            "Recall@1, gallery: the task's own",
            "The same, searching only among the items of the query's own task: growth of the gallery plays no part "
            "here.",
        ),
    ),
    definitions=DEFINITIONS,
)


class RetrievalKind(Kind):
    name = "metric"
    says = "a metric loss"
    primary = Primary("recall@1", "seen", "recall@1", "recall@1 on the gallery of all tasks seen")
    wording = WORDING
    datasets = DATASETS
    stream_options = STREAM_OPTIONS
    losses = tuple(losses.LOSSES)

    def data(self, source: Source, given: Mapping[str, Any]) -> Data:
        return class_data(source, given)

    def says_of(self, loss: str) -> str:
        return f"{losses.LOSSES[loss].name} of pytorch-metric-learning"

    def loss_options(self, name: str) -> dict[str, Option]:
        mining = Option(Literal[losses.MININGS], losses.default_mining(name), "which pairs or triplets the loss sees")
        return {"mining": mining} | {
            option: Option(parameter.annotation, parameter.default, f"as in {losses.LOSSES[name].name}")
            for option, parameter in losses.loss_options(name).items()
        }

    def objective(self, loss: str, given: Mapping[str, Any], *, dim: int, data: Data) -> Retrieval:
        rest = {key: value for key, value in given.items() if key != "mining"}
        num_classes = len(data.stream[0].train.class_names)
        made = losses.make_loss(loss, dim=dim, num_classes=num_classes, mining=given.get("mining"), options=rest)
        return Retrieval(made)
