"""Class-balanced batches: P classes and K samples of each, so that every batch holds triplets."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from tripletmas.params import listed


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
    classes_per_batch: int,
    samples_per_class: int,
    generator: torch.Generator,
    num_batches: int | None = None,
) -> list[list[int]]:
    """The batches of one epoch, as positions into `labels`.

    Classes come up equally often, whatever their sizes; within a class, every sample comes up before one comes up
    again. A batch never holds a sample twice: a class with fewer than K samples gives all it has.

    Args:
        labels: (n,).
        classes_per_batch: P; where there are fewer classes, all of them.
        samples_per_class: K.
        num_batches: None for about one pass over the data, ceil(n / (P K)).

    Raises:
        ValueError: for K < 2, which leaves no positive pair, and for classes with a single sample.
    """
    if samples_per_class < 2:
        raise ValueError(f"samples_per_class must be >= 2 to form a positive pair, got {samples_per_class}")
    if classes_per_batch < 1:
        raise ValueError(f"classes_per_batch must be >= 1, got {classes_per_batch}")
    members = {label: (labels == label).nonzero().flatten() for label in labels.unique().tolist()}
    single = [str(label) for label, positions in members.items() if len(positions) < 2]
    if single:
        raise ValueError(f"a class needs at least two samples to form a triplet; those with one: {listed(single)}")
    per_batch = min(classes_per_batch, len(members)) * samples_per_class
    if num_batches is None:
        num_batches = -(-len(labels) // per_batch)

    waiting: dict[int, list[int]] = {label: [] for label in members}
    classes: list[int] = []
    batches = []
    for _ in range(num_batches):
        chosen: list[int] = []
        while len(chosen) < min(classes_per_batch, len(members)):
            if not classes:
                order = torch.randperm(len(members), generator=generator).tolist()
                classes = [label for label in (list(members)[i] for i in order) if label not in chosen]
            chosen.append(classes.pop())
        batch = []
        for label in chosen:
            take = min(samples_per_class, len(members[label]))
            if len(waiting[label]) < take:
                order = torch.randperm(len(members[label]), generator=generator)
                left = waiting[label]
                fresh = [p for p in members[label][order].tolist() if p not in left]
                waiting[label] = left + fresh
            batch += waiting[label][:take]
            waiting[label] = waiting[label][take:]
        batches.append(batch)
    return batches
