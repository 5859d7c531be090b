"""A kind of task, for configuration, commands and reports: what it learns from, and how its scores are called.

The loop and the strategies know nothing of kinds: they have an `Objective`, which a kind makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tripletmas.basics.options import Option
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.making import make_model, model_options
from tripletmas.objectives.objective import Objective


@dataclass(frozen=True)
class Primary:
    """The score that headlines, curves and comparisons are about: one metric on one gallery.

    Attributes:
        metric, gallery: where it lies in `Scores`.
        label: what an axis or a headline calls it.
        title: the same with all that a reader has to know.
        searched: the metric by which fresh, stale and compensated galleries are compared, and unseen classes scored.
        searched_label: what pages call it.
    """

    metric: str
    gallery: str
    label: str
    title: str
    searched: str = "recall@1"
    searched_label: str = "recall@1"


@dataclass(frozen=True)
class Map:
    """A score matrix that the report of a run shows as a heat map."""

    metric: str
    gallery: str
    title: str
    text: str


@dataclass(frozen=True)
class Wording:
    """What pages and tables say of a kind's scores.

    Attributes:
        average, forgetting, backward_transfer, learning: what each number is.
        convention: how to read the primary score.
        curves: under the curves of one run.
        averages: under the curves of several methods.
        loss: what the panel of the training loss is called.
        galleries: gallery -> how the table of all metrics calls it.
        maps: the score matrices of one run's report.
        definitions: metric -> what it is, in the order of the table.
        other_metrics: what else there is to know where all metrics are shown; begins with a space, or is empty.
        unseen: title and text of the plot of what was never trained on.
        shown: title of the grid of searches, and how to read it.
        left_out: what a number of queries without anything to find is called.
    """

    average: str
    forgetting: str
    backward_transfer: str
    learning: str
    convention: str
    curves: str
    averages: str
    loss: str
    galleries: Mapping[str, str]
    maps: tuple[Map, ...]
    definitions: Mapping[str, str]
    other_metrics: str = ""
    unseen: tuple[str, str] = (
        "Classes never trained on",
        "Recall@1 among classes that belong to no task and are never trained on: whether the embedding itself becomes "
        "better or worse for what it does not know.",
    )
    shown: tuple[str, str] = (
        "Queries and what they find",
        "Test queries and the five nearest items of the gallery of everything seen, before the last task "
        "was learned and after it, the nearest first. ✓ and a green frame: of the query's class; ✗ and an orange "
        "dashed frame: of another. Queries whose first answer turned right or wrong come first, then those that found "
        "more or fewer: they show what changed and are no fair sample.",
    )
    left_out: str = "queries have no other item of their class in the gallery and are not counted"


@dataclass(frozen=True)
class Data:
    """What is learned.

    Attributes:
        unseen: classes that are in no task; None for none.
        about: what the kind keeps of its data besides: of facts their language view.
    """

    stream: Stream
    unseen: Task | None = None
    about: Any = None


class Kind:
    """A kind of task. Concrete ones are final, without state, and listed in `kinds.KINDS`.

    Attributes:
        name: as `--objective` takes it.
        says: what is learned, in a few words, for help and lists.
        datasets: name -> reader of the data it takes.
        stream_options: the functions whose keywords are options of the data, beside the reader's own.
        losses: the names of its losses; the first is the default.
        defaults: part -> option -> its default, where it differs from that of the option.
        main_metrics: what `evaluate` prints; empty for all.
        finds_items: a query has items that are right for it and others that are wrong, so that it can be told which of
            its answers an update turned.
        takes_other_data: a run can be scored on data that it did not learn from.
    """

    name: str
    says: str
    primary: Primary
    wording: Wording
    datasets: Mapping[str, Callable[..., Source]]
    stream_options: tuple[Callable[..., Any], ...]
    losses: tuple[str, ...]
    defaults: Mapping[str, Mapping[str, Any]] = {}
    main_metrics: tuple[str, ...] = ()
    finds_items: bool = True
    takes_other_data: bool = True

    def data(self, source: Source, given: Mapping[str, Any]) -> Data:
        """The tasks of what was read, with the options that are given."""
        raise NotImplementedError

    def says_of(self, loss: str) -> str:
        """What one of `losses` is, in a line."""
        return self.says

    def loss_options(self, name: str) -> dict[str, Option]:
        """The options of one of `losses`."""
        return {}

    def objective(self, loss: str, given: Mapping[str, Any], *, dim: int, data: Data) -> Objective:
        """What is learned with one of `losses`, given its options.

        Args:
            dim: length of the embeddings.
        """
        raise NotImplementedError

    def model_options(self, name: str) -> dict[str, Option]:
        """The options of the network `name`."""
        return model_options(name)

    def model(
        self,
        name: str,
        given: Mapping[str, Any],
        sample_shape: tuple[int, ...],
        *,
        of_data: Mapping[str, Any],
        data: Data | None = None,
    ) -> nn.Module:
        """The network `name` with these options, for data with the options `of_data`.

        Args:
            data: what has these options, where it was read before.
        """
        return make_model(name, sample_shape, options=given)
