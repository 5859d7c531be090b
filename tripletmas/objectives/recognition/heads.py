"""Object recognition as an objective: a linear head for each task, on the embedding, trained by cross-entropy.

The embedding network (the trunk) is shared by all tasks; a task's classes are told apart by the task's own head. The
heads belong to the objective, not to the model: no strategy penalises them, and the report says so.

Shapes: n samples, dim of the embedding, c classes of a task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tripletmas.basics.sentences import listed


class Recognition(nn.Module):
    """The mean cross-entropy over samples, each among the classes of its own task.

    `recognition(embeddings, labels)` is called as a metric loss is: raw embeddings (n, dim), labels (n,) of the whole
    stream. A batch may mix tasks, as joint training and replay do: each sample goes to the head of its class.

    Args:
        dim: length of the embedding.
        tasks: the classes of each task, labels of the whole stream.
        class_names: the name of each label, for messages.

    Raises:
        ValueError: if a class is in two tasks.
    """

    head_of: Tensor
    position_of: Tensor

    def __init__(self, dim: int, tasks: Sequence[Sequence[int]], class_names: Sequence[str]):
        super().__init__()
        self.tasks = tuple(tuple(classes) for classes in tasks)
        self.class_names = tuple(class_names)
        self.heads = nn.ModuleList(nn.Linear(dim, len(classes)) for classes in self.tasks)
        head_of, position_of = (torch.full((len(class_names),), -1) for _ in range(2))
        for number, classes in enumerate(self.tasks):
            for position, label in enumerate(classes):
                if head_of[label] >= 0:
                    earlier = int(head_of[label])
                    raise ValueError(f"class {class_names[label]!r} is in two tasks, {earlier} and {number}")
                head_of[label], position_of[label] = number, position
        self.register_buffer("head_of", head_of, persistent=False)
        self.register_buffer("position_of", position_of, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        numbers = self.head_of[labels]
        total = embeddings.new_zeros(())
        if int(numbers.min()) < 0:
            raise ValueError(f"class {self.class_names[int(labels[numbers.argmin()])]!r} has no head: it is in no task")
        for number in numbers.unique().tolist():
            rows = (numbers == number).nonzero().flatten()
            logits = self.logits(embeddings[rows], number)
            total = total + functional.cross_entropy(logits, self.positions(labels[rows], number), reduction="sum")
        return total / len(labels)

    def logits(self, embeddings: Tensor, head: int) -> Tensor:
        """What a head says of these embeddings, (n, c)."""
        return self.heads[head](embeddings)

    def positions(self, labels: Tensor, head: int) -> Tensor:
        """Where a head has these classes, (n,).

        Raises:
            ValueError: for a class of another task.
        """
        foreign = labels[self.head_of[labels] != head].unique().tolist()
        if foreign:
            names = listed([repr(self.class_names[label]) for label in foreign])
            own = listed([repr(self.class_names[label]) for label in self.tasks[head]])
            raise ValueError(f"head {head} tells apart {own}; it was asked for {names}, of another task")
        return self.position_of[labels]

    def head_for(self, classes: Sequence[int]) -> int:
        """The number of the head that tells these classes apart.

        Raises:
            ValueError: if there is none.
        """
        if tuple(classes) not in self.tasks:
            names = listed([repr(self.class_names[label]) for label in classes])
            raise ValueError(f"no head tells apart {names}: there is one for each of {len(self.tasks)} tasks")
        return self.tasks.index(tuple(classes))
