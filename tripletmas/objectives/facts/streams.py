"""Streams of facts: which facts are learned when, and on which images.

A task has facts of its own; its images are all those of which one of them holds, and of an image it tells only these.
So an image can be in several tasks, each time with other facts.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

import torch
from torch import Tensor

from tripletmas.basics.sentences import listed
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.names import in_task_order
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, Task
from tripletmas.index.clustering import cluster
from tripletmas.objectives.facts.fact import Fact, parse_fact
from tripletmas.objectives.facts.language import LanguageView
from tripletmas.objectives.facts.scoring import fact_vectors

logger = logging.getLogger(__name__)

_STARTS, _SHAKEN = 20, 8  # of k-means: starts that are tried, and how often each is shaken

FactSplit = Literal["given", "random", "semantic", "order"]


def make_fact_stream(
    source: Source,
    language: LanguageView,
    *,
    tasks: int | None = None,
    split: FactSplit | None = None,
    split_seed: int = 0,
    test_share: float = 0.3,
    validation: bool = False,
) -> tuple[Stream, Task | None]:
    """The tasks of a data set of facts, and the facts that are in none of them; None for none.

    Facts that no training image shows are in no task: they are scored after each (does the embedding know a
    combination that was never shown?). Facts that no test image shows are learned, but nobody asks for them. Warnings
    in the log list these, and those of the former that have a part which is not learned.

    Args:
        language: the facts, in the order of the data set's class names.
        tasks: the number of tasks. None: 4; for `given` and `order` as many as there are.
        split: which facts a task has. given: as the data's tasks say. random: as many in each, drawn by split_seed.
            semantic: facts whose words are near each other, by k-means on their language view, from the first of the
            starts that split_seed gives whose clusters do not hang on rounding. order: those of first,
            second and third order. None: given if the data name tasks, else random.
        split_seed: draws the random split, the starts of the semantic one, and what is held out.
        test_share: the share of the images held out as queries where the data set has no test part.
        validation: to choose options without a look at the test images: these are put away, and test_share of the
            training images are held out as queries in their place.

    Raises:
        ValueError: if there are too few facts or images for so many tasks, or an image has no fact.
    """
    train, test = _parts(source, test_share, split_seed, validation)
    learned = torch.tensor(train.classes, dtype=torch.int64)
    numbers, names = _split(train, language, learned, split, tasks, split_seed)
    stream = [_task(name, learned[numbers == number].tolist(), train, test) for number, name in enumerate(names)]
    never = tuple(sorted(set(test.classes) - set(train.classes)))
    if source.test is not None and not validation:  # else chance has put a rare fact there
        _tell_of_new_words(test, never, train.classes)
    unseen = Task("unseen", never, train.about(()), test.about(never)) if never else None
    return tuple(stream), unseen


def _task(name: str, classes: list[int], train: LabelledDataset, test: LabelledDataset) -> Task:
    query = test.of_classes(classes)
    if not len(query):
        raise ValueError(f"task {name!r} has no test image that shows one of its {len(classes)} facts")
    if len(classes) == 1:
        logger.warning("task %r has one fact, so there is nothing to tell it apart from", name)
    unasked = sorted(set(classes) - set(query.classes))
    if unasked:
        shown = listed([f"<{train.class_names[each]}>" for each in unasked], 5)
        logger.warning("task %r: no test image shows %s, so nobody asks for %d facts", name, shown, len(unasked))
    return Task(name, tuple(classes), train.of_classes(classes), query)


def _tell_of_new_words(test: LabelledDataset, never: Sequence[int], learned: Sequence[int]) -> None:
    """Log facts of test images alone that are no new combination of what is learned: often, they are misspelt."""
    known = {word for each in learned for word in parse_fact(test.class_names[each]).words}
    facts = [parse_fact(test.class_names[each]) for each in never]
    new = [f"<{fact}>" for fact in facts if not known.issuperset(fact.words)]
    if new:
        logger.warning("only test images show %s, with a word that is not learned in that place", listed(new, 5))


def _parts(source: Source, test_share: float, seed: int, validation: bool) -> tuple[LabelledDataset, LabelledDataset]:
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    train, test = source.train, source.test
    for part in (train, test):
        without = [] if part is None else (~part.truth.any(dim=1)).nonzero().flatten().tolist()
        if part is not None and without:
            name = part.paths[without[0]] if part.paths else f"number {without[0]}"
            raise ValueError(f"{len(without)} images have no fact (image {name})")
    if test is None:
        train, test = _hold_out(train, test_share, f"{seed}")
    return _hold_out(train, test_share, f"validation {seed}") if validation else (train, test)


def _hold_out(train: LabelledDataset, share: float, seed: str) -> tuple[LabelledDataset, LabelledDataset]:
    """(what is left, what is held out); whether an image is depends on the name of its file alone."""
    paths = train.paths or [str(index) for index in train.indices.tolist()]
    names = [PurePath(path).name for path in paths]  # not on where the folder is
    held = torch.tensor([zlib.crc32(f"{seed} {name}".encode()) < share * 2**32 for name in names])
    if held.all() or not held.any():
        raise ValueError(f"{len(train)} images are too few to hold out {share:.0%} of them")
    return train.subset((~held).nonzero().flatten()), train.subset(held.nonzero().flatten())


def _split(
    train: LabelledDataset, language: LanguageView, learned: Tensor, split: str | None, tasks: int | None, seed: int
) -> tuple[Tensor, list[str]]:
    """(the number of the task of each fact that is learned, the names of the tasks)."""
    split = split or ("random" if train.groups is None else "given")
    facts = [language.facts[each] for each in learned.tolist()]
    if split == "order":
        return _by_name([f"order {each.order}" for each in facts], split, tasks)
    if split == "given":
        if train.groups is None:
            raise ValueError("split 'given' needs a column task in the data")
        return _by_name([train.groups[each] for each in learned.tolist()], split, tasks)
    tasks = 4 if tasks is None else tasks
    if not 1 <= tasks <= len(facts):
        raise ValueError(f"tasks must lie between 1 and the {len(facts)} facts that are learned, got {tasks}")
    if split == "random":
        return _at_random(len(facts), tasks, seed)
    if split == "semantic":
        return _by_meaning(facts, fact_vectors(language.vectors[learned], language.mask[learned]), tasks, seed)
    raise ValueError(f"split must be one of given, random, semantic, order, got {split!r}")


def _by_name(groups: list[str], split: str, tasks: int | None) -> tuple[Tensor, list[str]]:
    """A task for each name that a fact's group has."""
    names = in_task_order(set(groups))
    if tasks not in (None, len(names)):
        raise ValueError(f"split {split!r} makes {len(names)} tasks ({', '.join(names)}), got tasks={tasks}")
    return torch.tensor([names.index(group) for group in groups]), names


def _at_random(size: int, tasks: int, seed: int) -> tuple[Tensor, list[str]]:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    numbers = torch.empty_like(order)
    numbers[order] = torch.arange(size) * tasks // size
    return numbers, [f"B{number + 1}" for number in range(tasks)]


def _by_meaning(facts: Sequence[Fact], vectors: Tensor, tasks: int, seed: int) -> tuple[Tensor, list[str]]:
    """Tasks named by their most frequent subjects."""
    numbers = _stable_clusters(torch.nn.functional.normalize(vectors), tasks, seed)
    found, numbers = numbers.unique(return_inverse=True)
    if len(found) < tasks:
        raise ValueError(f"the language view of {len(facts)} facts falls into {len(found)} clusters, not {tasks}")
    names = []
    for number in range(tasks):
        subjects = Counter(each.subject for each, own in zip(facts, numbers.tolist(), strict=True) if own == number)
        most = sorted(subjects, key=lambda each: (-subjects[each], each))
        names.append(f"B{number + 1} ({'+'.join(most[:2])})")
    return numbers, names


def _stable_clusters(vectors: Tensor, num_clusters: int, seed: int) -> Tensor:
    """The cluster of each vector (n,), alike on machines that round in different ways.

    k-means can stand at a tie, where rounding decides to which task a dozen facts go. So each start is shaken by more
    than rounding does, and the first one counts whose clusters stay.
    """
    generator = torch.Generator().manual_seed(seed)
    shaken = [vectors + 1e-6 * torch.randn(vectors.shape, generator=generator) for _ in range(_SHAKEN)]
    for start in range(_STARTS):
        numbers = cluster(vectors, num_clusters, seed=seed + start)
        if len(numbers.unique()) < num_clusters:
            continue
        if all(torch.equal(cluster(each, num_clusters, seed=seed + start), numbers) for each in shaken):
            return numbers
    logger.warning("the semantic split hangs on rounding: on another machine, tasks may have other facts")
    return cluster(vectors, num_clusters, seed=seed)
