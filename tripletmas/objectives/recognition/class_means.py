"""Recognition without a task label: the nearest class mean on the embedding, with means kept in three ways.

**fresh** means are computed anew by the present model from the training data of all tasks seen: what one would have
with all old data. **stale** means stay as they were when their class was learned. **compensated** means are stale ones
moved by the drift that the new task's data show: no old data is needed.

A class of several tasks has one mean, of its samples in all of them: when it is learned again, the mean that is kept
and that of the new samples are weighed by the number of samples that each is of.

Embeddings are normalised to unit length, means are not normalised again; distances are Euclidean.

Shapes: c classes, n samples of the new task, q queries, dim.
Source: Yu et al., Semantic Drift Compensation, CVPR 2020, of which the compensation (see `drift`)
    and these conventions are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tripletmas.basics.weights import Params
from tripletmas.data.tasks import Stream, classes_of
from tripletmas.index.drift import compensate_drift
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.embedded import joined

KINDS = ("fresh", "stale", "compensated")


class ClassMeans:
    """The means of all classes seen so far.

    Attributes:
        labels: (c,) the classes, in the order in which they were learned.
        means: kind -> (c, dim).
    """

    def __init__(self):
        self.labels = torch.empty(0, dtype=torch.int64)
        self.means: dict[str, Tensor] = {kind: torch.empty(0, 0) for kind in KINDS}
        self._before: Tensor | None = None

    def before_task(self, embedded: Embeddings) -> None:
        """Note where the model that was deployed so far puts the data of the new task."""
        self._before = _unit(embedded).vectors

    def after_task(self, embedded: Sequence[Embeddings], seen: Stream) -> None:
        """Take in the last of the tasks seen, given the training data of all by the model deployed from now on."""
        units = [_unit(each) for each in embedded]
        moved = self.means["compensated"]
        if len(self.labels):
            assert self._before is not None
            moved = compensate_drift(moved, self._before, units[-1].vectors)
        new = _means(units[-1], seen[-1].classes)
        stale, compensated = (_with_new(each, self.labels, new, seen) for each in (self.means["stale"], moved))
        labels = classes_of(seen)
        self.means = {"fresh": _means(joined(units), labels), "stale": stale, "compensated": compensated}
        self.labels = torch.tensor(labels)
        self._before = None

    def nearest(self, vectors: Tensor, kind: str) -> Tensor:
        """The label of the nearest mean of each embedding, (q,)."""
        distances = torch.cdist(functional.normalize(vectors, dim=1), self.means[kind])
        return self.labels[distances.argmin(dim=1)]

    def state_dict(self) -> Params:
        """All that resuming needs."""
        state = {f"means/{kind}": mean for kind, mean in self.means.items()}
        return state if self._before is None else {**state, "means/before": self._before}

    def load_state_dict(self, state: Params, stream: Stream) -> None:
        """Take over what `state_dict` gave, for the classes of the stream's first tasks.

        The stream may have grown since: then a class may have another label than it had.
        """
        self.means = {kind: state[f"means/{kind}"] for kind in KINDS}
        self.labels = torch.tensor(classes_of(stream)[: len(self.means["stale"])], dtype=torch.int64)
        self._before = state.get("means/before")


def _unit(embedded: Embeddings) -> Embeddings:
    return Embeddings(functional.normalize(embedded.vectors, dim=1), embedded.labels)


def _means(embedded: Embeddings, classes: Sequence[int]) -> Tensor:
    return torch.stack([embedded.vectors[embedded.labels == label].mean(dim=0) for label in classes])


def _with_new(means: Tensor, labels: Tensor, new: Tensor, seen: Stream) -> Tensor:
    """The means (c, dim) of `labels`, and those of the last task's classes, `new`, in a tensor of its own."""
    classes = torch.tensor(seen[-1].classes)
    means = means.clone() if len(labels) else new[:0]
    for mean, label in zip(new, classes, strict=True):
        for row in (labels == label).nonzero().flatten().tolist():
            *before, size = (int((task.train.labels == label).sum()) for task in seen)
            means[row] += (mean - means[row]) * size / (sum(before) + size)
    return torch.cat([means, new[~torch.isin(classes, labels)]])
