"""What a task is about, for the loop and the strategies: its loss, what importance measures, how it is scored.

One final subclass a kind of task, in the folder of the kind. A strategy or the loop never asks which one it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tripletmas.basics.weights import Params, load_state, state_of
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.index.base import unit
from tripletmas.models.embedding import Embedder, Embeddings
from tripletmas.objectives.collapse import Guess
from tripletmas.objectives.grid import Folder

if TYPE_CHECKING:
    from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores

MetricLoss = Callable[[Tensor, Tensor], Tensor]  # raw embeddings (batch, dim), labels (batch,) -> scalar
# (what to call on a batch of a data set: (n, c) logits, labels -> (n,) which of the c is right)
Likelihood = tuple[Callable[[nn.Module, Any], Tensor], Callable[[Tensor], Tensor]]


class Objective(nn.Module):
    """The loss of a batch, and everything else that depends on what the loss is about. Concrete ones are final.

    Attributes:
        heads: classifiers on the embedding, one a task; empty where the embedding itself is what is learned.
        measured: what importance can be measured of; the embedding always, as `output` gives the others.
        validated: what `validate` gives, in words.
        embed: how data are embedded here; it remembers what the present weights gave, for everyone who asks.
    """

    measured: tuple[str, ...] = ("embedding",)
    validated: str

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList()
        self.embed = Embedder()

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar, of raw embeddings (batch, dim) and labels (batch,) or (batch, classes)."""
        raise NotImplementedError

    # --- for strategies

    def output(self, name: str, model: nn.Module, batch: Any, number: int) -> Tensor:
        """One of `measured` but the embedding, (n, ...), of a batch (samples, labels) of task `number`."""
        raise NotImplementedError

    def likelihood(self, task: Task) -> Likelihood | None:
        """How probable a task's labels are to a model; None where the loss is no likelihood."""
        return None

    def fit_heads(self, embeddings: Embeddings, iterations: int) -> None:
        """Fit the heads of these classes to embeddings that stay, by at most so many iterations."""

    # --- the moments of a run

    def begin_task(self, number: int, mixed: Sequence[int] = ()) -> None:
        """Whenever training on task `number` begins or goes on.

        Args:
            mixed: the classes of the training data, where samples of earlier tasks are among them; else none.
        """

    def before_task(self, deployed: nn.Module, task: Task) -> None:
        """Before a task that follows others, with the model that is deployed so far."""

    def after_task(self, deployed: nn.Module, seen: Stream) -> None:
        """After the last of the tasks seen, with the model that is deployed from now on; before it is scored."""

    def state(self) -> Params:
        """All that has to be saved to go on, as tensors by name."""
        return state_of(self)

    def load(self, state: Params, stream: Stream, source: str) -> None:
        """Take over what `state` gave for the first tasks of a stream, which may have grown since.

        Raises:
            ValueError: if it is the state of another loss, or of one for fewer classes.
        """
        try:
            load_state(self, state, source)
        except ValueError as error:
            advice = "a loss with a vector for each class cannot go on with new classes"
            raise ValueError(f"{error} ({advice})") from None

    def unprotected(self) -> tuple[str, ...]:
        """The names of the loss's own parameters, which no strategy protects."""
        return tuple(name for name, _ in self.named_parameters())

    def identity(self, task: Task) -> dict[str, Any]:
        """What the record of a task says besides, to tell later whether the task is still the same."""
        return {}

    def check_identity(self, task: Task, record: Mapping[str, Any], source: str) -> None:
        """Raises ValueError if a task is no longer what it was by this record of the run `source`."""

    # --- scores

    def score(
        self, seen: Stream, embedded: EmbeddedTasks, stored: Mapping[str, Sequence[Embeddings]] | None = None
    ) -> TaskScores:
        """Each task's queries on the gallery of all tasks seen ("seen") and on its own ("task").

        Args:
            stored: name -> the vectors of each task's gallery as they are kept; searched as "seen_NAME", "task_NAME".
        """
        raise NotImplementedError

    def score_other(self, tasks: Stream, embedded: EmbeddedTasks) -> TaskScores:
        """The same for tasks that are not of the run."""
        raise NotImplementedError

    def score_one(self, model: nn.Module, task: Task) -> dict[str, float]:
        """metric -> value: a task's queries in its own gallery; the task may be one that is never learned."""
        raise NotImplementedError

    def held_out(self, task: Task, share: float, seed: int) -> tuple[Task, float]:
        """(the task with a share of its training data to be asked for, the score that guessing has there).

        Raises:
            ValueError: if there are too few samples to hold some out.
        """
        raise NotImplementedError

    def validate(self, model: nn.Module, task: Task) -> float:
        """One number that says how well a task of `held_out` is learned."""
        raise NotImplementedError

    def num_stored(self, earlier: Stream) -> int:
        """How many items the galleries of these tasks hold, which need not be embedded again."""
        return sum(len(gallery_of(task)) for task in earlier)

    # --- whether it has collapsed

    @property
    def margin(self) -> float | None:
        """Of a loss of triplets of unit vectors, that of equal ones; None for other losses."""
        return None

    def soften(self) -> bool:
        """Once the loss is found at its margin: from now on, take what leads out of it; whether there is such."""
        return False

    def compared(self, vectors: Tensor) -> Tensor:
        """Raw embeddings (n, dim) as they are compared."""
        return unit(vectors)

    def guess(self, task: Task) -> Guess | None:
        """What guessing scores on a task; None where that is not known."""
        return None

    def keep_shown(self, run: Folder, number: int, seen: Stream, embedded: EmbeddedTasks) -> None:
        """Keep in the run directory what a report shows after task `number`, the last of those seen."""


def gallery_of(task: Task) -> LabelledDataset:
    """Where the queries of a task are searched."""
    return task.query if task.gallery is None else task.gallery
