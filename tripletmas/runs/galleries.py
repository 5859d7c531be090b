"""Galleries over time: the vectors of each task's gallery as they were stored, and what becomes of them.

**stale**: each task's part as the model embedded it that was current when the task was learned; the gallery of
everything seen is then a mixed one, each part by the model of its time, which is what production has. **compensated**:
the same vectors, moved after every later task by a map that is fitted on that task's own samples before and after it
(`drift`): no old sample is read, but those that a strategy keeps. **fresh**, embedded anew by the present model, is
what these are compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.folders import unlabelled
from tripletmas.data.images import preparation_of
from tripletmas.data.tasks import Stream, Task
from tripletmas.index.base import unit
from tripletmas.index.choice import AUTO, COMPENSATE, Choice, CompensateName, choose_drift
from tripletmas.index.drift import DriftMap, fit_drift
from tripletmas.models.embedding import Embedder, Embeddings
from tripletmas.objectives.embedded import EmbeddedTasks, asked_by_part
from tripletmas.objectives.objective import gallery_of
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.forecast import limit_of
from tripletmas.runs.moves import shares_of

STALE, COMPENSATED = "stale", "compensated"


@dataclass(frozen=True)
class GalleryConfig:
    """What becomes of stored galleries.

    Args:
        compensate: the map that moves stored vectors after each task, fitted on the new task's samples before and after
            it: linear (an affine map), sdc (as the nearest samples moved), mlp (a small network), procrustes (a
            rotation), shrunk (a linear map, the nearer to the identity the fewer the samples), auto (after each task
            what does best on held-out samples of it, or nothing); null moves none, as is the default of gram.
        images: a folder (or zip archive) of unlabelled images of your own, such as those of the gallery that are at
            hand: embedded before and after each task, too, they join the samples on which the map is fitted and chosen.
        invert: read these images' black as white and their white as black, for digits and omniglot, which are white on
            black.
    """

    compensate: CompensateName | None = "linear"
    images: str | None = None
    invert: bool = False

    def __post_init__(self):
        if self.compensate is not None and self.compensate not in COMPENSATE:
            raise ValueError(f"compensate must be one of {', '.join(COMPENSATE)} or null, got {self.compensate!r}")


def own_images(
    config: GalleryConfig, samples: LabelledDataset, *, in_memory: bool | None = None
) -> LabelledDataset | None:
    """The unlabelled images that join the fit of a map, as the run's model takes them; None where there are none.

    Args:
        samples: of the run.
        in_memory: as `data.images.read_images`; False decodes nothing now.

    Raises:
        ValueError: if the data of the run are no images, or the folder has none, or one that cannot be read.
    """
    if config.images is None:
        return None
    try:
        prepared = preparation_of(samples)
        return unlabelled(config.images, prepared, invert=config.invert, in_memory=in_memory, option=None)
    except ValueError as error:
        raise ValueError(f"gallery.images: {error}") from None


class Galleries:
    """The stored vectors of the galleries of all tasks learned so far.

    Attributes:
        parts: "stale", and the name of each map asked for -> the vectors of each task, raw for stale, else of unit
            length, as they are compared by cosine.
        choices: for each task, what "auto" chose when it was learned; None where there was nothing to choose.
        choices_back: the same of the maps that move queries back.

    Args:
        maps: the names of the maps by which vectors are moved, "auto" among them; each has vectors of its own.
        embed: how data are embedded; None for the defaults.
        images: unlabelled samples that join those of each task; where nothing more is learned, none are needed.
        back: the map, "auto" among them, that moves queries back to the space of each part (`asked_by_part`), where
            stored vectors cannot be touched; it is fitted from after each update to before it. None: none.
    """

    def __init__(
        self,
        maps: tuple[str, ...] = ("linear",),
        *,
        embed: Embedder | None = None,
        images: LabelledDataset | None = None,
        back: str | None = None,
    ):
        self.parts: dict[str, list[Embeddings]] = {name: [] for name in (STALE, *maps)}
        self.choices: list[Choice | None] = []
        self.choices_back: list[Choice | None] = []
        self._back = back
        self._backwards: list[DriftMap] = []  # of each update, the oldest first
        self._maps = maps
        self._before: Tensor | None = None
        self._after: Tensor | None = None
        self._embed = embed or Embedder()
        self._images = images

    def __len__(self) -> int:
        return len(self.parts[STALE])

    def before_task(self, model: nn.Module, task: Task) -> None:
        """Note where the model that was deployed so far puts the samples of the new task."""
        self._before = self._pairs(model, task) if len(self) else None

    def after_task(
        self,
        model: nn.Module,
        task: Task,
        gallery: Embeddings,
        kept: tuple[Tensor, Tensor] | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """Move what is stored, and store the gallery of the new task.

        Args:
            model: the one that is deployed from now on; `gallery` holds its raw embeddings.
            kept: old samples by the model before the task and by this one, which join the pairs; None for none.
            shares: of each layer's squared response to old inputs, the share that has changed; None if not known.
        """
        after = self._pairs(model, task) if len(self) else None
        if kept is not None and after is not None:
            assert self._before is not None
            self._before, after = torch.cat([self._before, kept[0]]), torch.cat([after, kept[1]])
        self._follow(after, gallery, shares or {})

    def asked_by_part(self, embedded: EmbeddedTasks) -> EmbeddedTasks:
        """Tasks by the present model, such that every query is moved back to each stored part that it searches.

        A query goes through the maps of all updates since the part was stored, the latest first, and is scaled to unit
        length after each; the parts stay as they are. What comes out is scored as any (`embedded.asked_by_part`).
        """
        assert self._back, "no map to move queries back was asked for"
        queries = []
        for each in embedded.queries:
            moved = [unit(each.vectors)]
            for move in reversed(self._backwards):
                moved.append(unit(move(moved[-1])))
            queries.append(moved[::-1])
        return asked_by_part(embedded, self.parts[STALE], queries)

    def last(self) -> Params:
        """What a run directory keeps of the last task: its stored gallery, and the pairs that show the drift."""
        gallery = self.parts[STALE][-1]
        pairs = {"before": self._before, "after": self._after}
        # copies: where the model has not changed, both are what was embedded once
        return {
            "stored": gallery.vectors,
            "labels": gallery.labels,
            **{name: vectors.clone() for name, vectors in pairs.items() if vectors is not None},
        }

    def restore(self, run: RunDirectory, model: nn.Module, stream: Stream, done: int) -> None:
        """Have the galleries of the first `done` tasks of a run again, and what `before_task` notes for the next.

        Args:
            model: of the run's kind; a copy takes the weights.
        """
        for number, task in enumerate(stream[:done]):
            kept = run.galleries.read(number)
            self._before = kept.get("before")
            stored = Embeddings(kept["stored"], gallery_of(task).labels)
            self._follow(kept.get("after"), stored, shares_of(run, number))
        if 0 < done < len(stream):
            model = copy.deepcopy(model)
            run.load_weights(model, done - 1)
            self.before_task(model, stream[done])

    def _pairs(self, model: nn.Module, task: Task) -> Tensor:
        """Where a model puts the samples of a task, class by class, and then the images of one's own.

        What maps are judged on is held out in pieces of neighbours, so that these are mostly other classes.
        """
        found = self._embed(model, task.train.plain())
        vectors = found.vectors if found.labels.ndim == 2 else found.vectors[found.labels.argsort(stable=True)]
        if self._images is None:
            return vectors
        return torch.cat([vectors, self._embed(model, self._images).vectors])

    def _follow(self, after: Tensor | None, gallery: Embeddings, shares: Mapping[str, float]) -> None:
        self._after = after
        choice = choice_back = None
        if len(self):
            assert self._before is not None
            assert after is not None
            pairs, limit = (unit(self._before), unit(after)), limit_of(shares, [e.vectors for e in self.parts[STALE]])
            choice = choose_drift(*pairs, limit=limit) if AUTO in self._maps else None
            for name in self._maps:
                move = fit_drift(choice.name if choice and name == AUTO else name, *pairs)
                self.parts[name] = [Embeddings(unit(move(each.vectors)), each.labels) for each in self.parts[name]]
            if self._back:
                choice_back = choose_drift(*pairs[::-1], limit=limit) if self._back == AUTO else None
                self._backwards.append(fit_drift(choice_back.name if choice_back else self._back, *pairs[::-1]))
        self.choices.append(choice)
        self.choices_back.append(choice_back)
        self.parts[STALE].append(gallery)
        for name in self._maps:
            self.parts[name].append(Embeddings(unit(gallery.vectors), gallery.labels))


def drift_by_class(
    stored: list[Embeddings], fresh: list[Embeddings], classes: list[tuple[int, ...]]
) -> list[list[float]]:
    """For each task, for each of its classes (facts): the mean over its gallery items of 1 - cos(stored, fresh)."""
    found = []
    for one, other, labels in zip(stored, fresh, classes, strict=True):
        distance = 1 - (unit(one.vectors) * unit(other.vectors)).sum(dim=1)
        of = other.labels
        items = [of[:, label] if of.ndim == 2 else of == label for label in labels]
        found.append([float(distance[each].mean()) for each in items])
    return found


def choice_record(choice: Choice | None) -> dict[str, Any]:
    """What the record of a task says of the map that "auto" chose, with the mean cosine of held-out pairs by each."""
    if choice is None:
        return {}
    refused = {"refused": list(choice.refused)} if choice.refused else {}
    found = {"map": choice.name, "pairs": choice.num_pairs, "held_out_cosine": choice.scores, **refused}
    return {"compensated_by": found}


def named(parts: Mapping[str, list[Embeddings]], compensate: str | None) -> dict[str, list[Embeddings]]:
    """The stored galleries under the names that scores have: "stale", and "compensated" for the map in use."""
    return {STALE: parts[STALE]} | ({COMPENSATED: parts[compensate]} if compensate else {})
