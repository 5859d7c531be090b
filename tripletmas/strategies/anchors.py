"""Anchors: keep a few samples of earlier tasks with the vectors that the index holds for them, and hold on to these."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tripletmas.basics.weights import Params, eval_mode
from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.objective import Objective
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.distill import cosine_distance
from tripletmas.strategies.replay import by_turns, herd


class Anchors(Strategy):
    """Keep old samples where the index has them: add strength * mean_k 1 - cos(F(x_k), v_k) over a few old samples.

    v_k is the unit vector that was stored when the task of x_k had been learned, and no later task moves it: it is that
    of the stale gallery, also where galleries are compensated. Of each class those samples are kept whose mean is
    nearest to that of the class (see `herd`); of a class that several tasks have, those of each by turns. F is in eval
    mode here, as when v_k was made, and reads samples that are not augmented; their labels are not used. Where
    galleries are compensated, what is kept is embedded before and after each task, too, and joins the samples on which
    the map is fitted.
    Stores for each sample that is kept its vector and one integer, and while a task is learned a second vector, beside
    the sample itself; costs a forward and a backward pass of a batch of old samples a step, and a forward pass over the
    task's data after it.

    Args:
        per_class: how many samples of each class are kept, in however many tasks it is; 0 keeps none, and is finetune.
        strength: weight of the distance; 0 is finetune.
        batch_size: old samples that are drawn at a step; all of them if there are fewer.

    Source: ours. Rannen et al. (ICCV 2017) and LwF hold on to a model's old answers on new samples; here both are old.
    """

    def __init__(self, *, per_class: int = 5, strength: float = 100.0, batch_size: int = 32):
        if per_class < 0 or not strength >= 0 or batch_size < 1:
            raise ValueError(
                f"per_class and strength must be >= 0 and batch_size >= 1, got {per_class}, {strength} and {batch_size}"
            )
        self.per_class, self.strength, self.batch_size = per_class, strength, batch_size
        self._objective: Objective | None = None
        self._samples: LabelledDataset | None = None
        self._forget()

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        if any(task.train.within is not None for task in stream):
            raise ValueError(
                "anchors keeps samples class by class, and an image of facts has several: it takes no facts"
            )
        self._objective = objective
        self._samples = concatenate([task.train for task in stream]).plain() if stream else None
        self._ends = torch.tensor([len(task.train) for task in stream]).cumsum(0)
        self._forget()

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        self._before = self._embedded(model)

    def loss(self, model: nn.Module, inputs: Tensor, embeddings: Tensor) -> Tensor | None:
        if not self.strength or not len(self._held):
            return None
        assert self._samples is not None
        # of torch's own generator, which is seeded by (seed, task, epoch)
        drawn = torch.randperm(len(self._held))[: self.batch_size]
        samples, _ = self._samples[self._held[drawn]]
        with eval_mode(model):
            found = model(samples.to(embeddings.device)).float()
        return self.strength * cosine_distance(found, self._vectors[drawn].to(found.device))

    def after_task(self, model: nn.Module, task: Task) -> None:
        if self._objective is None:
            raise RuntimeError("call strategy.prepare(model, objective, stream) first")
        after = self._embedded(model)
        self._pairs = None if self._before is None or after is None else (self._before, after)
        self._before = None
        vectors = functional.normalize(self._objective.embed(model, task.train.plain()).vectors)
        of_classes = [(task.train.labels == label).nonzero().flatten() for label in task.train.classes]
        chosen = torch.cat([members[herd(vectors[members].double(), self.per_class)] for members in of_classes])
        self._held = torch.cat([self._held, self._num_seen + chosen])
        self._vectors = torch.cat([self._vectors.view(-1, vectors.shape[1]), vectors[chosen]])
        self._num_seen += len(task.train)
        self._keep_shares()

    def kept_pairs(self) -> tuple[Tensor, Tensor] | None:
        return self._pairs

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def state_dict(self) -> Params:
        before = {} if self._before is None else {"before": self._before}
        return {"held": self._held, "vectors": self._vectors, "num_seen": torch.tensor(self._num_seen)} | before

    def load_state_dict(self, state: Params) -> None:
        self._held, self._vectors = state["held"].cpu(), state["vectors"].cpu()
        self._num_seen = int(state["num_seen"])
        self._before = state.get("before")

    def _forget(self) -> None:
        # Which of the training samples so far, counted in the order of the stream: indices may change when data grow.
        self._held = torch.zeros(0, dtype=torch.int64)
        self._vectors = torch.zeros(0, 0)
        self._num_seen = 0
        self._before: Tensor | None = None
        self._pairs: tuple[Tensor, Tensor] | None = None

    def _keep_shares(self) -> None:
        """Of a class that several tasks have, no more samples than of another: those of each task by turns."""
        assert self._samples is not None
        labels, tasks = self._samples.labels[self._held], torch.bucketize(self._held, self._ends, right=True)
        kept = torch.ones(len(labels), dtype=torch.bool)
        for label in labels.unique():
            members = (labels == label).nonzero().flatten()
            kept[members[by_turns(tasks[members])[self.per_class :]]] = False
        self._held, self._vectors = self._held[kept], self._vectors[kept]

    def _embedded(self, model: nn.Module) -> Tensor | None:
        """Where a model has the samples that are kept, in their order; None for none."""
        if not len(self._held):
            return None
        assert self._samples is not None
        assert self._objective is not None
        return self._objective.embed(model, self._samples.subset(self._held)).vectors
