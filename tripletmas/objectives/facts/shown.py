"""What a report shows of facts, kept in the run directory as a grid: what single facts find, when learned and now.

Beside it stand tables: which facts were forgotten, by order and by word. Scores are average precision among the test
images of all tasks seen at the time. Facts and images are kept by their names, so that data which grow do not change
what was said of them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.images import thumbnail
from tripletmas.data.tasks import Stream
from tripletmas.index.exact import ExactIndex
from tripletmas.objectives.embedded import EmbeddedTasks
from tripletmas.objectives.facts.fact import PARTS, Fact, parse_fact
from tripletmas.objectives.facts.losses import FactLoss
from tripletmas.objectives.facts.scoring import fact_vectors, image_vectors, score_facts
from tripletmas.objectives.grid import (
    Folder,
    Grid,
    Hit,
    Row,
    Table,
    are_pictures,
    read_found,
    write_found,
    write_grid,
)
from tripletmas.objectives.metrics import chance_map
from tripletmas.objectives.retrieval.shown import write_followed

_NEAREST = 5
_FORGOTTEN, _DRAWN = 12, 8  # facts with pictures: those that lost most, and some drawn at random
_WORST, _WORDS = 20, 12  # rows of a table
_PRECISION, _CHANCE = "average precision", "chance"
_ORDERS = {1: "first: subject", 2: "second: subject, predicate", 3: "third: subject, predicate, object"}
_COLUMNS = ("chance", "when learned", "now", "lost")


@dataclass(frozen=True)
class _Scored:
    """A fact that some test image shows, the task it was learned in (from 0), and what it found then and now."""

    fact: Fact
    task: int
    learned: Row
    now: Row

    @property
    def numbers(self) -> tuple[float, ...]:
        """What the columns of a table hold."""
        learned, now = (row.values[_PRECISION][0] for row in (self.learned, self.now))
        return self.now.values[_CHANCE][0], learned, now, learned - now

    @property
    def lost(self) -> float:
        return self.numbers[-1]


def write_shown(run: Folder, number: int, seen: Stream, embedded: EmbeddedTasks, loss: FactLoss) -> None:
    """Keep what a report shows after task `number`, the last of those seen."""
    write_followed(run, number, seen, embedded)
    images = concatenate([task.query for task in seen])
    vectors = torch.cat([part.vectors for part in embedded.galleries])[images_once(seen)]
    write_found(run, number, _found(loss, vectors, images, seen))
    scored = _scored(seen, [read_found(run, task) for task in range(number + 1)])
    place = {name: position for position, name in enumerate(names_of(images))}
    rows = _pictured(scored, place) if are_pictures(images) else []
    shown = dict.fromkeys(hit.name for row in rows for hits in row.found for hit in hits)
    pictures = {name: thumbnail(images[place[name]][0]) for name in shown}
    note = f"Language view: {loss.language.words}."
    write_grid(run, Grid(("when it was learned", "now"), tuple(rows), _tables(scored), note, pictures))


def names_of(images: LabelledDataset) -> tuple[str, ...]:
    """The file of each image, or its number where it has none."""
    return images.paths or tuple(f"test image {index}" for index in images.indices.tolist())


def _found(loss: FactLoss, vectors: Tensor, images: LabelledDataset, seen: Stream) -> list[Row]:
    """The five best images of each fact that was learned; its average precision, if some image shows it."""
    language, truth = loss.language, images.truth
    asked = torch.zeros(len(language.facts), dtype=torch.bool)
    asked[[label for task in seen for label in task.classes]] = True
    columns = asked.nonzero().flatten()
    none = torch.zeros(len(vectors), dtype=torch.bool)  # only facts ask
    precision = score_facts(vectors, truth, language.vectors, language.mask, asked=asked, of_images=none)
    index = ExactIndex.over(image_vectors(vectors).contiguous(), normalize=False)
    facts = fact_vectors(language.vectors[columns], language.mask[columns])
    scores, items = index.search(facts, min(_NEAREST, len(vectors)))
    names, chance = names_of(images), chance_map(truth)
    rows = []
    for column, own, of_own in zip(columns.tolist(), items.tolist(), scores.tolist(), strict=True):
        hits = [Hit(names[i], score, right=bool(truth[i, column])) for i, score in zip(own, of_own, strict=True)]
        values = {_PRECISION: (float(precision.per_fact["map"][column]),), _CHANCE: (float(chance[column]),)}
        measured = {} if math.isnan(values[_PRECISION][0]) else values
        rows.append(Row(images.class_names[column], (tuple(hits),), values=measured))
    return rows


def _scored(seen: Stream, found: Sequence[dict[str, Row]]) -> list[_Scored]:
    """The facts that were scored when they were learned, and are now."""
    names = seen[0].query.class_names
    task_of = {names[label]: number for number, task in enumerate(seen) for label in task.classes}
    scored = []
    for name, now in found[-1].items():
        learned = found[task_of[name]].get(name)
        if learned and learned.values and now.values:
            scored.append(_Scored(parse_fact(name), task_of[name], learned, now))
    return scored


def _pictured(scored: Sequence[_Scored], known: Mapping[str, int]) -> list[Row]:
    """The facts that lost most, and some drawn from the others, with those of their images that are still there."""
    forgotten = [each for each in sorted(scored, key=lambda each: -each.lost) if each.lost > 0][:_FORGOTTEN]
    others = [each for each in scored if each not in forgotten]
    generator = torch.Generator().manual_seed(zlib.crc32(b"shown facts"))
    drawn = [others[i] for i in torch.randperm(len(others), generator=generator).tolist()[:_DRAWN]]
    rows = []
    for each in [*forgotten, *drawn]:
        _, learned, now, _ = each.numbers
        hits = [tuple(hit for hit in row.found[0] if hit.name in known) for row in (each.learned, each.now)]
        group = "Forgotten most" if each in forgotten else "Drawn at random"
        values = {_PRECISION: (learned, now)}
        rows.append(Row(each.now.name, tuple(hits), str(each.fact), each.task, group, values))
    return rows


def _tables(scored: Sequence[_Scored]) -> tuple[Table, ...]:
    """Means by order and by word, and the facts that lost most."""
    orders = _grouped(scored, lambda each: each.fact.order)
    means = _means({**{_ORDERS[order]: orders[order] for order in sorted(orders)}, "all": list(scored)})
    caption, columns = "Average precision of facts by {}", ("facts", *_COLUMNS)
    tables = [Table(caption.format("order"), ("order", *columns), means, "By order")]
    title, text = "By word", "The subjects, predicates and objects whose facts lost most on average."
    for part in PARTS:
        words = _means(_grouped(scored, lambda each, part=part: getattr(each.fact, part)))
        words = sorted(words, key=lambda row: (-float(row[-1]), row[0]))[:_WORDS]
        tables.append(Table(caption.format(part), (part, *columns), tuple(words), title, text))
        title = text = ""
    worst = [each for each in sorted(scored, key=lambda each: (-each.lost, each.task))[:_WORST] if each.lost > 0]
    rows = tuple((str(each.fact), each.task + 1, *each.numbers) for each in worst)
    tables.append(Table("The facts that lost most", ("fact", "task", *_COLUMNS), rows, "Forgotten most, in numbers"))
    return tuple(table for table in tables if table.rows)


def _grouped(scored: Iterable[_Scored], key: Callable[[_Scored], Any]) -> dict[Any, list[_Scored]]:
    """The facts by a key; those without one, such as facts without an object, are in no group."""
    groups: dict[Any, list[_Scored]] = {}
    for each in scored:
        if found := key(each):
            groups.setdefault(found, []).append(each)
    return groups


def _means(groups: Mapping[str, Sequence[_Scored]]) -> tuple[tuple[str | float, ...], ...]:
    """A row for each group: how many facts it has, and the means of their numbers."""
    return tuple(
        (name, len(members), *(fmean(column) for column in zip(*(each.numbers for each in members), strict=True)))
        for name, members in groups.items()
        if members
    )


def images_once(seen: Stream) -> Tensor:
    """(n,) where each test image of these tasks is first, among those of all tasks one after the other."""
    first: dict[int, int] = {}
    for position, index in enumerate(torch.cat([task.query.indices for task in seen]).tolist()):
        first.setdefault(index, position)
    return torch.tensor(list(first.values()))
