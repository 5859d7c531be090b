"""Tasks and streams: which classes are learned when, and what is searched in what after that.

A stream is a tuple of tasks with disjoint classes. Labels mean the same in all tasks: they point into the class names
of the data set that was split.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from tripletmas.basics.sentences import suggestion
from tripletmas.basics.weights import listed
from tripletmas.data.dataset import LabelledDataset, Source, Transform, in_order
from tripletmas.data.splits import split_samples

logger = logging.getLogger(__name__)

Augmentation = Literal["none", "flip", "crop-flip"]


@dataclass(frozen=True)
class Task:
    """Some classes, with what to learn them from and what to measure them with.

    Args:
        classes: labels, ascending, that point into `train.class_names`.
        train: may carry an augmenting transform; `train.plain()` is without.
        query: never augmented.
        gallery: where the queries are searched; None for the queries themselves, each left out of its own search.
    """

    name: str
    classes: tuple[int, ...]
    train: LabelledDataset
    query: LabelledDataset
    gallery: LabelledDataset | None = None


Stream = tuple[Task, ...]


def fingerprint(task: Task) -> str:
    """A checksum of which samples a task has in which part, to tell whether its data changed since it was learned."""
    parts = [[task.train.class_names[label] for label in task.classes]]
    for part in (task.train, task.query, task.gallery):
        if part is not None:
            parts.append(list(part.paths or map(str, part.indices.tolist())))
    return f"{zlib.crc32(repr(parts).encode()):08x}"


_Unit = tuple[str, tuple[int, ...]]  # the name of a class or group, its labels


def split_by_class(
    train: LabelledDataset,
    test: LabelledDataset | None = None,
    *,
    tasks: int | list[int] = 5,
    order_seed: int | None = None,
    test_share: float = 0.3,
    split_seed: int = 0,
    gallery: LabelledDataset | None = None,
    augment: Transform | None = None,
) -> Stream:
    """A stream of tasks with disjoint sets of classes.

    Args:
        test: the queries of all tasks; None holds out a share of each class of `train`.
        tasks: the number of tasks, as even as possible with the larger ones first, or the number of classes of each.
        order_seed: shuffles the classes; None keeps the order of `class_names`.
        test_share: the share of each class to hold out where `test` is None, in (0, 1); at least 2 samples, so that a
            query has something to find, and at most all but 2, so that a triplet has a positive.
        split_seed: draws the samples to hold out, each class by itself: other classes, tasks and orders do not matter.
        gallery: where the queries of a task are searched, among items of the task's classes.
        augment: applied to training samples only.

    Raises:
        ValueError: if there are fewer classes than tasks, or sizes that do not add up; if a class has too few samples,
            or queries but nothing to learn it from.
    """
    parts = split_samples(Source(train, test, gallery), test_share=test_share, split_seed=split_seed)
    return _make_tasks(parts, _classes(parts.train, order_seed), tasks, unit="classes", joint=",", augment=augment)


def split_by_group(
    train: LabelledDataset,
    test: LabelledDataset | None = None,
    *,
    tasks: int | list[int] | None = None,
    groups: list[str] | None = None,
    order_seed: int | None = None,
    test_share: float = 0.3,
    split_seed: int = 0,
    gallery: LabelledDataset | None = None,
    augment: Transform | None = None,
) -> Stream:
    """A stream whose tasks are groups of classes that belong together: alphabets, the folders of tasks.

    Args:
        tasks: None for one task a group; the number of tasks, into which consecutive groups are merged (30 alphabets in
            10 tasks are 3 each); or the number of groups of each task.
        groups: the groups to use, in this order; None for all, in the order of their names.
        order_seed: shuffles the groups; None keeps their order.
        test, test_share, split_seed, gallery, augment: as for `split_by_class`.

    Raises:
        ValueError: as `split_by_class`; if `train` has no groups, or not those that are named.
    """
    source, units = _groups(Source(train, test, gallery), groups, order_seed)
    parts = split_samples(source, test_share=test_share, split_seed=split_seed)
    tasks = len(units) if tasks is None else tasks
    return _make_tasks(parts, units, tasks, unit="groups", joint="+", augment=augment)


def make_stream(
    source: Source,
    *,
    tasks: int | list[int] | None = None,
    groups: list[str] | None = None,
    order_seed: int | None = None,
    test_share: float = 0.3,
    split_seed: int = 0,
    per_class: int | None = None,
    validation: bool = False,
    unseen: int = 0,
    augment: Augmentation = "none",
) -> Stream:
    """The stream of a data set: split by group where its classes have groups, else by class.

    Args:
        tasks: the number of tasks, or a list with the number of classes (or groups) of each. None: one task a group;
            5 tasks where there are no groups.
        groups: the groups (alphabets, task folders) to use, in this order. None: all.
        order_seed: shuffles the classes (or groups) before they are split. None: the data set's order.
        test_share: the share of each class that is held out as queries where the data set has no test part.
        split_seed: draws what is held out, and what per_class keeps.
        per_class: use at most so many samples of each class to learn from, and at most so many to ask for. None: all.
        validation: to choose options without a look at the test queries. These and the gallery are put away, and
            test_share of each class of the training part is held out as queries in their place.
        unseen: so many classes (or groups), the last in order, are in no task: `make_unseen` gives them.
        augment: changes training images at random: a horizontal flip, and a crop after padding by an eighth.
    """
    transform = _augmentation(augment, source.train)
    source, units, _ = _ordered(source, groups, order_seed, unseen)
    if source.train.groups is not None:
        tasks, unit, joint = len(units) if tasks is None else tasks, "groups", "+"
    else:
        tasks, unit, joint = 5 if tasks is None else tasks, "classes", ","
    parts = split_samples(
        source, test_share=test_share, split_seed=split_seed, per_class=per_class, validation=validation
    )
    return _make_tasks(parts, units, tasks, unit=unit, joint=joint, augment=transform)


def make_unseen(
    source: Source,
    *,
    unseen: int,
    groups: list[str] | None = None,
    order_seed: int | None = None,
    test_share: float = 0.3,
    split_seed: int = 0,
    per_class: int | None = None,
    validation: bool = False,
) -> Task:
    """The classes that `make_stream` with the same options leaves out of all tasks, as one task.

    Their queries and gallery are drawn as those of other classes are; nothing is ever learned from them.
    """
    source, _, units = _ordered(source, groups, order_seed, unseen)
    parts = split_samples(
        source, test_share=test_share, split_seed=split_seed, per_class=per_class, validation=validation
    )
    return replace(_make_tasks(parts, units, 1, unit="classes", joint=",", augment=None)[0], name="unseen")


def _ordered(
    source: Source, groups: list[str] | None, order_seed: int | None, unseen: int
) -> tuple[Source, list[_Unit], list[_Unit]]:
    """What a data set has of the groups that are named, the classes (or groups) to learn, in order, and those not."""
    if source.train.groups is not None:
        source, units = _groups(source, groups, order_seed)
    elif groups is None:
        units = _classes(source.train, order_seed)
    else:
        names = listed([repr(group) for group in groups], 5)
        raise ValueError(f"this data set has no groups of classes, so groups {names} cannot be chosen")
    if not 0 <= unseen < len(units):
        raise ValueError(f"unseen must be >= 0 and leave something of {len(units)} classes or groups, got {unseen}")
    return source, units[: len(units) - unseen], units[len(units) - unseen :]


def _classes(train: LabelledDataset, order_seed: int | None) -> list[_Unit]:
    return _shuffled([(train.class_names[label], (label,)) for label in train.classes], order_seed)


def _groups(source: Source, groups: Sequence[str] | None, order_seed: int | None) -> tuple[Source, list[_Unit]]:
    """What a data set has of the groups that are named, and these groups in order."""
    train = source.train
    if train.groups is None:
        raise ValueError("this data set has no groups of classes; split it by class")
    members: dict[str, list[int]] = {}
    for label in train.classes:
        members.setdefault(train.groups[label], []).append(label)
    if groups is None:
        groups = source.group_order or in_order(members)
    for group in groups:
        if group not in members:
            raise ValueError(f"no group {group!r}{suggestion(group, members)}")
    if len(set(groups)) < len(groups):
        raise ValueError(f"each group can be named once, got {listed([repr(group) for group in groups], 5)}")
    units = _shuffled([(group, tuple(members[group])) for group in groups], order_seed)
    used = [label for _, labels in units for label in labels]
    test, gallery = (None if part is None else part.of_classes(used) for part in (source.test, source.gallery))
    return replace(source, train=train.of_classes(used), test=test, gallery=gallery), units


def _make_tasks(
    parts: Source,
    units: list[_Unit],
    tasks: int | Sequence[int],
    *,
    unit: str,
    joint: str,
    augment: Transform | None,
) -> Stream:
    train, test, gallery = parts.train, parts.test, parts.gallery
    assert test is not None
    stream, start = [], 0
    for number, size in enumerate(_sizes(tasks, len(units), unit)):
        chosen = units[start : start + size]
        start += size
        names = [name for name, _ in chosen]
        name = joint.join(names)
        if len(name) > 40:
            name = f"task{number:02d} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        classes = tuple(sorted(label for _, labels in chosen for label in labels))
        query = test.of_classes(classes)
        if not len(query):
            raise ValueError(f"task {name!r} has no queries: the test part has none of its classes")
        if gallery is not None and not len(gallery.of_classes(classes)):
            raise ValueError(f"task {name!r} has nothing to search: the gallery part has none of its classes")
        if len(classes) == 1:
            logger.warning("task %r has one class, so a triplet finds no negative in it", name)
        stream.append(
            Task(
                name=name,
                classes=classes,
                train=train.of_classes(classes).with_transform(augment),
                query=query.plain(),
                gallery=None if gallery is None else gallery.of_classes(classes).plain(),
            )
        )
    return tuple(stream)


def _sizes(tasks: int | Sequence[int], total: int, unit: str) -> list[int]:
    if not isinstance(tasks, int):
        if sum(tasks) != total or min(tasks, default=0) < 1:
            raise ValueError(f"tasks={list(tasks)} must be sizes >= 1 that add up to the {total} {unit}")
        return list(tasks)
    if tasks < 1:
        raise ValueError(f"tasks must be >= 1, got {tasks}")
    if total < tasks:
        raise ValueError(f"{tasks} tasks need at least {tasks} {unit}, got {total}")
    return [total // tasks + (number < total % tasks) for number in range(tasks)]


def _shuffled(units: list[_Unit], seed: int | None) -> list[_Unit]:
    if seed is None:
        return units
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))
    return [units[i] for i in order.tolist()]


def _augmentation(name: str, train: LabelledDataset) -> Transform | None:
    if name == "none":
        return None
    if name not in ("flip", "crop-flip"):
        raise ValueError(f"unknown augmentation {name!r} (there are none, flip, crop-flip)")
    if len(train.sample_shape) != 3:
        raise ValueError(f"augment={name!r} needs images (channels, height, width), got samples {train.sample_shape}")
    from torchvision.transforms import v2  # here, because it takes a second that other streams need not wait

    flip = v2.RandomHorizontalFlip()
    if name == "flip":
        return flip
    height, width = train.sample_shape[1:]
    return v2.Compose([v2.RandomCrop((height, width), padding=[width // 8, height // 8]), flip])
