"""A fourth kind of task in a file of its own: binary codes, the signs of the embedding, judged by Hamming distance.

It stands nowhere but here; `tests/objectives/test_fourth_kind.py` trains it, resumes it, evaluates and reports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from tripletmas.basics.options import Option
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, Task, make_stream
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.classes import DATASETS, class_data
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores, embed_task, joined
from tripletmas.objectives.kind import Data, Kind, Map, Primary, Wording
from tripletmas.objectives.objective import Objective
from tripletmas.objectives.retrieval.objective import samples_held_out


class BinaryCodes(Objective):
    """-log likelihood of whether two samples are of one class, given the inner product of their relaxed codes.

    Source: Li et al., Feature Learning based Deep Supervised Hashing with Pairwise Labels, IJCAI 2016, equation 1.
    """

    validated = "nearest code"

    def __init__(self, *, scale: float = 0.5):
        super().__init__()
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        codes = embeddings.tanh()
        products = self.scale * codes @ codes.T
        same = (labels[:, None] == labels[None, :]).to(products.dtype)
        return functional.binary_cross_entropy_with_logits(products, same)

    def score(
        self, seen: Stream, embedded: EmbeddedTasks, stored: Mapping[str, Sequence[Embeddings]] | None = None
    ) -> TaskScores:
        values = {}
        for name, parts in {"": embedded.galleries, **(stored or {})}.items():
            suffix, sizes = f"_{name}" if name else "", [len(query) for query in embedded.queries]
            own_in_all = embedded.own_in_all().split(sizes)
            pairs = list(zip(embedded.queries, parts, embedded.own, own_in_all, strict=True))
            everything = joined(parts)
            values["seen" + suffix] = {
                "code@1": [code_recall(query, everything, in_all) for query, _, _, in_all in pairs]
            }
            values["task" + suffix] = {"code@1": [code_recall(query, part, own) for query, part, own, _ in pairs]}
        return TaskScores(values, {}, [0] * len(seen), joined(embedded.queries))

    def score_one(self, model: nn.Module, task: Task) -> dict[str, float]:
        query, gallery, own, _ = embed_task(model, task, self.embed)
        return {"code@1": code_recall(query, gallery, own)}

    def held_out(self, task: Task, share: float, seed: int) -> tuple[Task, float]:
        return samples_held_out(task, share, seed)

    def validate(self, model: nn.Module, task: Task) -> float:
        return self.score_one(model, task)["code@1"]


def code_recall(queries: Embeddings, gallery: Embeddings, own: Tensor) -> float:
    """The share of queries whose nearest code, by Hamming distance, is of their class; the query itself is left out."""
    distances = (queries.vectors.sign()[:, None] != gallery.vectors.sign()[None]).sum(dim=2)
    rows = (own >= 0).nonzero().flatten()
    distances[rows, own[rows]] = queries.vectors.shape[1] + 1
    return float((gallery.labels[distances.argmin(dim=1)] == queries.labels).double().mean())


class CodesKind(Kind):
    name = "codes"
    says = "binary codes"
    primary = Primary("code@1", "seen", "nearest code", "nearest code on all tasks seen", "code@1", "nearest code")
    wording = Wording(
        average="The share of queries whose nearest code is of their class.",
        forgetting="How far it fell.",
        backward_transfer="What later tasks did to it.",
        learning="Right after each task was learned.",
        convention="Codes are compared by Hamming distance.",
        curves="Nearest code by task.",
        averages="Nearest code, mean over the tasks.",
        loss="pairwise loss of codes",
        galleries={"seen": "all tasks seen so far", "task": "the task's own"},
        maps=(Map("code@1", "seen", "Nearest code, all tasks seen", "Each task after each task."),),
        definitions={"code@1": "the nearest code is of the query's class"},
    )
    datasets = DATASETS
    stream_options = (make_stream,)
    losses = ("pairwise",)
    finds_items = False
    takes_other_data = False

    def data(self, source: Source, given: Mapping[str, Any]) -> Data:
        return class_data(source, given)

    def loss_options(self, name: str) -> dict[str, Option]:
        return {"scale": Option(float, 0.5, "of the inner product of two codes")}

    def objective(self, loss: str, given: Mapping[str, Any], *, dim: int, data: Data) -> BinaryCodes:
        return BinaryCodes(**given)
