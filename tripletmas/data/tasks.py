"""Tasks and streams: which classes are learned when, and what is searched in what after that.

A stream is a tuple of tasks with disjoint samples. Labels mean the same in all tasks: they point into the class names
of the data set that was split. So tasks may share classes: a product that was photographed in two months is one class,
learned in two tasks, each from its own samples and with its own queries.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.data.augmentation import Augment, make_augmentation
from tripletmas.data.dataset import LabelledDataset, Transform
from tripletmas.data.names import in_task_order
from tripletmas.data.source import Source
from tripletmas.data.splits import split_samples

logger = logging.getLogger(__name__)

SplitBy = Literal["class", "group"]


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


def learned_classes(stream: Stream) -> list[str]:
    """The names of the classes of these tasks, each once, in the order in which they are learned."""
    return list(dict.fromkeys(task.train.class_names[label] for task in stream for label in task.classes))


def fingerprint(task: Task) -> str:
    """A checksum of which samples a task has in which part, to tell whether its data changed since it was learned."""
    parts = [[task.train.class_names[label] for label in task.classes]]
    for part in (task.train, task.query, task.gallery):
        if part is not None:
            parts.append(list(part.texts or part.paths or map(str, part.indices.tolist())))
    return f"{zlib.crc32(repr(parts).encode()):08x}"


class _Unit(NamedTuple):
    """What tasks are made of: a class, or the samples of some classes in a group.

    Args:
        group: None for all samples of the classes, wherever they lie.
    """

    name: str
    classes: tuple[int, ...]
    group: str | None = None


def classes_of(tasks: Sequence[Task]) -> list[int]:
    """The labels of all of them, each once, in the order in which they are learned."""
    return list(dict.fromkeys(label for task in tasks for label in task.classes))


_UNITS = {"class": ("classes", ","), "group": ("groups", "+")}  # by -> what a task is made of, joint of their names


def make_stream(
    source: Source,
    *,
    tasks: int | list[int] | None = None,
    by: SplitBy | None = None,
    groups: list[str] | None = None,
    order_seed: int | None = None,
    test_share: float = 0.3,
    split_seed: int = 0,
    per_class: int | None = None,
    validation: bool = False,
    unseen: int = 0,
    augment: Augment = "none",
) -> tuple[Stream, Task | None]:
    """The tasks of a data set, with disjoint sets of samples, and the classes that are in none of them; None for none.

    Where classes lie in several groups (`LabelledDataset.sample_groups`), the tasks share them: each has the samples of
    its own groups, to learn from and to ask for. How many of a task's classes were known before is logged.

    Args:
        tasks: the number of tasks, as even as possible with the larger ones first (30 alphabets in 10 tasks are 3
            each), or a list with the number of classes (or groups) of each. None: one task a group; 5 tasks where
            classes are split.
        by: what a task is made of: class, or group (alphabets, task folders: classes that belong together). None: group
            where the classes have groups.
        groups: the groups (alphabets, task folders) to use, in this order. None: all.
        order_seed: shuffles the classes (or groups) before they are split. None: the data set's order.
        test_share: the share of each class that is held out as queries where the data set has no test part, in (0, 1);
            at least 2 samples, so that a query has something to find, and at most all but 2, so that a triplet has a
            positive.
        split_seed: draws what is held out, and what per_class keeps; each class by itself, so that other classes, tasks
            and orders do not matter; a class that lies in several groups in each of them by itself.
        per_class: use at most so many samples of each class to learn from, and at most so many to ask for; in each
            group that it lies in. None: all.
        validation: to choose options without a look at the test queries. These and the gallery are put away, and
            test_share of each class of the training part is held out as queries in their place.
        unseen: so many classes (or groups), the last in order, are in no task: they become a task of their own, whose
            queries and gallery are drawn as those of other classes are, and of which nothing is ever learned. Classes
            of these groups that tasks learn, too, are left out of it.
        augment: changes training images at random, each as its seed, task and epoch decide: flip, from left to right;
            crop-flip, also a crop after padding by an eighth; photo, a crop of 35 to 100 % of the area, resized, a
            flip, and brightness, contrast and saturation; randaugment, a flip and two changes of RandAugment. none: as
            the training part reads them.

    Raises:
        ValueError: if there are fewer classes (or groups) than tasks, or sizes that do not add up; for groups that the
            data set does not have; if a class has too few samples, or queries but nothing to learn it from.
    """
    if augment != "none" and source.train.texts is not None:
        raise ValueError(f"augment={augment!r} changes images, and these are texts: leave it none")
    augmentation = None if augment == "none" else make_augmentation(augment, source.train.sample_shape)
    by = by or ("class" if source.whole.members is None else "group")
    source, units = _units(source, by, groups)
    units = _shuffled(units, order_seed)
    learned = len(units) - unseen
    if not 0 < learned <= len(units):
        raise ValueError(f"unseen must be >= 0 and leave something of {len(units)} classes or groups, got {unseen}")
    sizes = _sizes(tasks, learned, by)
    parts = split_samples(
        source, test_share=test_share, split_seed=split_seed, per_class=per_class, validation=validation
    )
    stream, start = [], 0
    for number, size in enumerate(sizes):
        of_task = units[start : start + size]
        stream.append(_task(parts, _joint_name(of_task, number, _UNITS[by][1]), of_task, augmentation))
        start += size
    _tell(stream)
    return tuple(stream), _unseen(parts, units[learned:], set(classes_of(stream)))


def _tell(stream: Sequence[Task]) -> None:
    for number, task in enumerate(stream):
        if len(task.classes) == 1:
            logger.warning("task %r has one class, so a triplet finds no negative in it", task.name)
        if known := {*task.classes}.intersection(classes_of(stream[:number])):
            logger.info("task %r: %d of %d classes were known before", task.name, len(known), len(task.classes))


def _units(source: Source, by: SplitBy, groups: Sequence[str] | None) -> tuple[Source, list[_Unit]]:
    """What a data set has of the groups that are named, and the classes or groups that tasks are made of, in order."""
    if by not in _UNITS:
        raise ValueError(f"by must be one of {', '.join(_UNITS)}, got {by!r}")
    units = []
    if by == "group" or groups is not None:
        units = _groups(source, groups)
    if groups is not None:
        source = source.of_groups(groups)
    if by == "class":
        units = [_Unit(source.whole.class_names[label], (label,)) for label in source.whole.classes]
    return source, units


def _groups(source: Source, named: Sequence[str] | None) -> list[_Unit]:
    """The groups that are named, in this order, or all in that of the data set."""
    members = source.whole.members
    if members is None:
        then = ": split it by class" if named is None else f", so groups {_quoted(named)} cannot be chosen"
        raise ValueError(f"this data set has no groups of classes{then}")
    if named is None:
        named = source.group_order or in_task_order(members)
    for group in named:
        if group not in members:
            raise ValueError(f"no group {group!r}{suggestion(group, members)}")
    if len(set(named)) < len(named):
        raise ValueError(f"each group can be named once, got {_quoted(named)}")
    return [_Unit(group, members[group], group) for group in named]


def _quoted(names: Sequence[str]) -> str:
    return listed([repr(name) for name in names], 5)


def _joint_name(units: Sequence[_Unit], number: int, joint: str) -> str:
    """What a task of these classes or groups is called."""
    names = [unit.name for unit in units]
    name = joint.join(names)
    if len(name) > 40:
        name = f"task{number:02d} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
    return name


def _why_no_queries(num_classes: int, pairs: bool) -> str:
    if pairs:
        return f"none of its {num_classes} answers is asked for: raise test_share, or name queries in a column split"
    return "the test part has none of its classes"


def _task(
    parts: Source,
    name: str,
    units: Sequence[_Unit],
    augment: Transform | None = None,
    without: AbstractSet[int] = frozenset(),
) -> Task:
    """The task of these classes or groups, but for some labels."""
    classes = tuple(sorted({label for unit in units for label in unit.classes} - without))
    groups = [unit.group for unit in units if unit.group is not None]

    def of_task(part: LabelledDataset) -> LabelledDataset:
        return (part.of_groups(groups) if groups else part).of_classes(classes)

    assert parts.test is not None
    train, query = of_task(parts.train), of_task(parts.test)
    if not len(query):
        raise ValueError(f"task {name!r} has no queries: {_why_no_queries(len(train.classes), parts.pairs)}")
    gallery = None
    if parts.gallery is not None:
        gallery = of_task(parts.gallery).plain()
        if not len(gallery):
            raise ValueError(f"task {name!r} has nothing to search: the gallery part has none of its classes")
    return Task(name, classes, train if augment is None else train.with_transform(augment), query.plain(), gallery)


def _unseen(parts: Source, units: Sequence[_Unit], learned: set[int]) -> Task | None:
    """What is in no task, without the classes that tasks learn, too; None where nothing was to be left out."""
    if not units:
        return None
    names = _quoted([unit.name for unit in units])
    known = learned.intersection(label for unit in units for label in unit.classes)
    if all(known.issuperset(unit.classes) for unit in units):
        raise ValueError(f"unseen: every class of {names} is learned in other tasks, so that none is never learned")
    if known:
        logger.warning("unseen: left out %d classes of %s, which tasks learn", len(known), names)
    return _task(parts, "unseen", units, without=known)


def _sizes(tasks: int | Sequence[int] | None, total: int, by: SplitBy) -> list[int]:
    """How many classes (or groups) each task has."""
    unit = _UNITS[by][0]
    if tasks is None:
        tasks = 5 if by == "class" else total
    if not isinstance(tasks, int):
        if sum(tasks) != total or min(tasks, default=0) < 1:
            raise ValueError(f"tasks={list(tasks)} must be sizes >= 1 that add up to the {total} {unit}")
        return list(tasks)
    if tasks < 1:
        raise ValueError(f"tasks must be >= 1, got {tasks}")
    if total < tasks:
        raise ValueError(f"{tasks} tasks need at least {tasks} {unit}, got {total}: choose fewer tasks (--data.tasks)")
    return [total // tasks + (number < total % tasks) for number in range(tasks)]


def _shuffled(units: list[_Unit], seed: int | None) -> list[_Unit]:
    if seed is None:
        return units
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))
    return [units[i] for i in order.tolist()]
