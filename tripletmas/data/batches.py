"""Batches of positions: P x K, so that every batch holds triplets, or every sample once; seeding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from tripletmas.basics import distributed
from tripletmas.basics.sentences import listed
from tripletmas.basics.shares import share

if TYPE_CHECKING:
    from tripletmas.data.dataset import LabelledDataset

SAMPLERS = ("class_balanced", "shuffled")


def seed_everything(seed: int, *place: int) -> int:
    """Seed Python, NumPy and torch with a function of the run's seed and the place in the run (task, epoch, ...).

    Reseeded at every epoch, a run that is interrupted and resumed draws what the uninterrupted one draws, and no
    generator state need be saved. Returns the derived seed.
    """
    derived = int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint32)[0])
    random.seed(derived)
    np.random.seed(derived)  # noqa: NPY002 (miners and transforms of others draw from the global generator)
    torch.manual_seed(derived)
    return derived


def class_balanced_batches(
    labels: Tensor,
    *,
    batch_size: int,
    samples_per_class: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """The P x K batches of one epoch, about one pass over the data, as positions into `labels`.

    A batch holds P = batch_size // samples_per_class classes and K = samples_per_class samples of each; where there are
    fewer classes than P, all of them and more samples of each. Classes come up about equally often, whatever their
    sizes; a sample comes up at most once in a pass over its class. No batch holds a sample twice: a class with fewer
    than K samples gives all it has.

    Where a sample can be of several classes, it is drawn for one of them and brings the others with it, so a batch may
    be smaller; a class of a single sample is then no error, since no pairs are asked for.

    Args:
        labels: (n,), or (n, classes) booleans.

    Returns:
        ceil(n / (P K)) batches.

    Raises:
        ValueError: for K < 2, which leaves no positive pair, for a batch without room for two classes, and for classes
            with a single sample.
    """
    if samples_per_class < 2:
        raise ValueError(f"samples_per_class must be >= 2 to form a positive pair, got {samples_per_class}")
    if batch_size < 2 * samples_per_class:
        raise ValueError(
            f"batch_size must be >= 2 * samples_per_class to form a negative pair, got {batch_size} for "
            f"samples_per_class={samples_per_class}"
        )
    members = _members(labels)
    num_classes = min(batch_size // samples_per_class, len(members))
    per_class = max(samples_per_class, batch_size // len(members)) if num_classes == len(members) else samples_per_class

    deck = _Deck(list(members), generator)
    decks = {label: _Deck(positions.tolist(), generator) for label, positions in members.items()}
    return [
        list(dict.fromkeys(position for label in deck.draw(num_classes) for position in decks[label].draw(per_class)))
        for _ in range(-(-len(labels) // (num_classes * per_class)))
    ]


def _members(labels: Tensor) -> dict[int, Tensor]:
    """The positions of the samples of each class that occurs."""
    if labels.ndim == 2:
        columns = labels.any(dim=0).nonzero().flatten().tolist()
        return {column: labels[:, column].nonzero().flatten() for column in columns}
    members = {label: (labels == label).nonzero().flatten() for label in labels.unique().tolist()}
    single = [str(label) for label, positions in members.items() if len(positions) < 2]
    if single:
        raise ValueError(f"a class needs at least two samples to form a triplet; those with one: {listed(single)}")
    return members


def shuffled_batches(num_samples: int, *, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """The batches of one epoch that sees each of n samples once, in random order; the last one may be short.

    A last batch of one sample joins the one before: batch norm cannot take it.

    >>> [len(batch) for batch in shuffled_batches(7, batch_size=3, generator=torch.Generator())]
    [3, 4]
    """
    if batch_size < 2:
        raise ValueError(f"batch_size must be >= 2, got {batch_size}")
    order = torch.randperm(num_samples, generator=generator).tolist()
    batches = [order[start : start + batch_size] for start in range(0, num_samples, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] += last
    return batches


def draw_batches(
    labels: Tensor, *, sampler: str, batch_size: int, samples_per_class: int, generator: torch.Generator
) -> list[list[int]]:
    """The batches of one epoch, as positions into `labels` (n,), as this sampler draws them.

    Args:
        sampler: `class_balanced` or `shuffled`, which makes no use of `samples_per_class` and of the labels.
    """
    if sampler == "shuffled":
        return shuffled_batches(len(labels), batch_size=batch_size, generator=generator)
    if sampler != "class_balanced":
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    return class_balanced_batches(
        labels, batch_size=batch_size, samples_per_class=samples_per_class, generator=generator
    )


def own_parts(batches: Sequence[Sequence[int]]) -> list[list[int]]:
    """What this process reads of each batch, where several share it; the order of the whole is that of processes.

    Raises:
        ValueError: if a batch has fewer samples than there are processes.
    """
    if (least := min(map(len, batches), default=distributed.world_size())) < distributed.world_size():
        raise ValueError(
            f"{distributed.world_size()} processes cannot share a batch of {least}: start at most {least}, or take "
            "another batch size"
        )
    return [[batch[place] for place in share(len(batch))] for batch in batches]


def shared_loader(data: LabelledDataset, batch_size: int = 256, *, num_workers: int = 0) -> DataLoader:
    """As `data.loader`, where several processes work together of this one's samples alone, dealt out in turn.

    At the end some come twice, so that all have equally many: what measures importance tells by the sampler.
    """
    if not distributed.is_on():
        return data.loader(batch_size, num_workers=num_workers)
    number, rank = distributed.world_size(), distributed.rank()
    return DataLoader(
        data,
        batch_size,
        sampler=DistributedSampler(data, num_replicas=number, rank=rank, shuffle=False),
        collate_fn=tuple,  # a batch is read whole
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


class _Deck:
    """Cards drawn without replacement; when they run out, those left over stay on top of the others, shuffled.

    A card is thus drawn at most once in a pass, and never twice in one draw.
    """

    def __init__(self, cards: list[int], generator: torch.Generator):
        self.cards = cards
        self.generator = generator
        self.left: list[int] = []

    def draw(self, count: int) -> list[int]:
        """`count` different cards; all of them if there are fewer."""
        count = min(count, len(self.cards))
        if len(self.left) < count:
            shuffled = [self.cards[i] for i in torch.randperm(len(self.cards), generator=self.generator).tolist()]
            held = set(self.left)
            self.left += [card for card in shuffled if card not in held]
        drawn, self.left = self.left[:count], self.left[count:]
        return drawn
