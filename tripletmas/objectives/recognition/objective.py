"""Object recognition as an objective: a linear head for each task, on the embedding, trained by cross-entropy.

The embedding network (the trunk) is shared by all tasks; a task's classes are told apart by the task's own head. The
heads belong to the objective, not to the model: no strategy penalises them, and the report says so.

Shapes: n samples, dim of the embedding, c classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params, device_of, state_of
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.collapse import Guess
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores
from tripletmas.objectives.grid import Folder
from tripletmas.objectives.objective import Likelihood, Objective
from tripletmas.objectives.recognition.class_means import KINDS, ClassMeans
from tripletmas.objectives.recognition.ridge import RidgeClassifier
from tripletmas.objectives.retrieval.objective import samples_held_out, score_alone, score_embedded
from tripletmas.objectives.retrieval.shown import write_shown

RIDGE_DIM = 1000  # its second moments are 8 MB, which every checkpoint holds
_DECAY = 1e-4  # without it, heads of classes that can be told apart grow without end


class Recognition(Objective):
    """The mean cross-entropy over samples, each among the classes of its own task.

    `recognition(embeddings, labels)` is called as a metric loss is: raw embeddings (n, dim), labels (n,) of the whole
    stream. A batch may mix tasks, as joint training and replay do: each sample goes to the head of its class.

    A class of several tasks is in the head of each, with weights of its own there. Its samples go to the latest of
    these heads so far; where old samples are among the training data (joint training, replay), to each earlier one,
    too, of which these have all classes. The loss is then the mean over the pairs of a sample and a head that it goes
    to.

    Args:
        dim: length of the embedding.
        tasks: the classes of each task, labels of the whole stream.
        class_names: the name of each label, for messages.
        ridge_dim: random dimensions of the ridge classifier; 0 for the embedding itself.
    """

    measured = ("embedding", "logits")
    validated = "accuracy of the head"
    head_of: Tensor
    position_of: Tensor

    def __init__(
        self, dim: int, tasks: Sequence[Sequence[int]], class_names: Sequence[str], *, ridge_dim: int = RIDGE_DIM
    ):
        super().__init__()
        self.tasks = tuple(tuple(classes) for classes in tasks)
        self.class_names = tuple(class_names)
        self.heads = nn.ModuleList(nn.Linear(dim, len(classes)) for classes in self.tasks)
        position_of = torch.full((len(self.tasks), len(class_names)), -1)
        for head, classes in zip(position_of, self.tasks, strict=True):
            head[torch.tensor(classes, dtype=torch.int64)] = torch.arange(len(classes))
        self.register_buffer("position_of", position_of, persistent=False)
        self.register_buffer("head_of", torch.empty(0), persistent=False)
        self.begin_task(len(self.tasks) - 1)
        self.means = ClassMeans()
        self.ridge = RidgeClassifier(ridge_dim)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        numbers = self.head_of[labels]
        total, pairs = embeddings.new_zeros(()), 0
        if int(numbers.min()) < 0:
            raise ValueError(f"class {self.class_names[int(labels[numbers.argmin()])]!r} has no head: it is in no task")
        for number in sorted({*numbers.unique().tolist(), *self._joining}):
            goes = numbers == number
            if number in self._joining:
                goes = goes | (self.position_of.take(labels + number * self.position_of.shape[1]) >= 0)
            rows = goes.nonzero().flatten()
            logits = self.logits(embeddings[rows], number)
            total = total + functional.cross_entropy(logits, self.positions(labels[rows], number), reduction="sum")
            pairs += len(rows)
        return total / pairs

    def begin_task(self, number: int, mixed: Sequence[int] = ()) -> None:
        has = self.position_of[: number + 1] >= 0
        last = has.long() * torch.arange(1, number + 2, device=has.device)[:, None]
        self.head_of = last.max(dim=0).values - 1
        given, owners = set(mixed), self.head_of.tolist()
        shared = [n for n in range(number) if any(owners[label] != n for label in self.tasks[n])]
        self._joining = frozenset(n for n in shared if given.issuperset(self.tasks[n]))
        self._present = number

    def logits(self, embeddings: Tensor, head: int) -> Tensor:
        """What a head says of these embeddings, (n, c)."""
        return self.heads[head](embeddings)

    def positions(self, labels: Tensor, head: int) -> Tensor:
        """Where a head has these classes, (n,).

        Raises:
            ValueError: for a class of another task.
        """
        positions = self.position_of.take(labels + head * self.position_of.shape[1])
        foreign = labels[positions < 0].unique().tolist()
        if foreign:
            names = listed([repr(self.class_names[label]) for label in foreign])
            own = listed([repr(self.class_names[label]) for label in self.tasks[head]])
            raise ValueError(f"head {head} tells apart {own}; it was asked for {names}, of another task")
        return positions

    def head_for(self, classes: Sequence[int]) -> int:
        """The number of the head that tells these classes apart; of several the latest so far.

        Raises:
            ValueError: if there is none.
        """
        found = [number for number, own in enumerate(self.tasks) if own == tuple(classes)]
        if not found:
            names = listed([repr(self.class_names[label]) for label in classes])
            raise ValueError(f"no head tells apart {names}: there is one for each of {len(self.tasks)} tasks")
        return max((number for number in found if number <= self._present), default=found[0])

    def output(self, name: str, model: nn.Module, batch: Any, number: int) -> Tensor:
        """The logits of the head of task `number`."""
        return self.logits(model(batch[0]), number)

    def likelihood(self, task: Task) -> Likelihood:
        """That of the task's own head."""
        head = self.head_for(task.classes)
        return lambda model, batch: self.logits(model(batch[0]), head), lambda labels: self.positions(labels, head)

    def fit_heads(self, embeddings: Embeddings, iterations: int) -> None:
        """By L-BFGS: cross-entropy plus a little decay."""
        device = device_of(self)
        vectors, labels = embeddings.vectors.to(device), embeddings.labels.to(device)
        heads = [self.heads[number] for number in self.head_of[labels].unique().tolist()]
        weights = [parameter for head in heads for parameter in head.parameters()]
        optimizer = torch.optim.LBFGS(weights, max_iter=iterations, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            decay = sum((weight.square().sum() for weight in weights), start=torch.zeros((), device=labels.device))
            loss = self(vectors, labels) + _DECAY * decay
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()

    def before_task(self, deployed: nn.Module, task: Task) -> None:
        self.means.before_task(self.embed(deployed, task.train.plain()))

    def after_task(self, deployed: nn.Module, seen: Stream) -> None:
        embedded = [self.embed(deployed, task.train.plain()) for task in seen]
        self.means.after_task(embedded, seen)
        self.ridge.after_task(embedded[-1], seen)

    def state(self) -> Params:
        return state_of(self) | self.means.state_dict() | self.ridge.state_dict()

    def load(self, state: Params, stream: Stream, source: str) -> None:
        own = state_of(self)
        self.means.load_state_dict(state, stream)
        self.ridge.load_state_dict(state, stream)
        heads = {name: value for name, value in state.items() if not name.startswith(("means/", "ridge/"))}
        super().load(own | heads, stream, source)  # the heads of tasks that were added since are new

    def score(
        self, seen: Stream, embedded: EmbeddedTasks, stored: Mapping[str, Sequence[Embeddings]] | None = None
    ) -> TaskScores:
        """Besides retrieval, the accuracies.

        "task", "accuracy": task-incremental, the share of a task's queries that the task's own head gets right, told
        which task it is. "seen", "accuracy_fresh", "accuracy_stale", "accuracy_compensated": class-incremental, the
        share whose nearest class mean among all classes seen, without a task label, is that of their class (see
        `class_means`); "accuracy_ridge": the same of the classifier in `ridge`.
        """
        found = score_embedded(embedded, stored)
        parts = list(zip(seen, embedded.queries, strict=True))
        found.values["task"]["accuracy"] = [self.accuracy(head, queries) for head, (_, queries) in enumerate(parts)]
        for kind in KINDS if len(self.means.labels) else ():
            nearest = [self.means.nearest(queries.vectors, kind) == queries.labels for _, queries in parts]
            found.values["seen"][f"accuracy_{kind}"] = [float(each.double().mean()) for each in nearest]
        if len(self.ridge.labels):
            right = [self.ridge.predict(queries.vectors) == queries.labels for _, queries in parts]
            found.values["seen"]["accuracy_ridge"] = [float(each.double().mean()) for each in right]
        return found

    def score_other(self, tasks: Stream, embedded: EmbeddedTasks) -> TaskScores:
        """Retrieval alone: heads and means know the run's own classes only."""
        return score_embedded(embedded)

    def score_one(self, model: nn.Module, task: Task) -> dict[str, float]:
        return score_alone(model, task, self.embed)

    def held_out(self, task: Task, share: float, seed: int) -> tuple[Task, float]:
        return samples_held_out(task, share, seed)

    def validate(self, model: nn.Module, task: Task) -> float:
        return self.accuracy(self.head_for(task.classes), self.embed(model, task.query))

    def guess(self, task: Task) -> Guess | None:
        """Always the same class, the most frequent one."""
        most = int(torch.bincount(task.query.labels).max())
        return Guess("accuracy", most / len(task.query), len(task.query))

    def accuracy(self, head: int, queries: Embeddings) -> float:
        """The share of these queries that a head gets right."""
        device = device_of(self)
        with torch.inference_mode():
            found = self.logits(queries.vectors.to(device), head).argmax(dim=1)
            return float((found == self.positions(queries.labels.to(device), head)).double().mean())

    def keep_shown(self, run: Folder, number: int, seen: Stream, embedded: EmbeddedTasks) -> None:
        write_shown(run, number, seen, embedded)
