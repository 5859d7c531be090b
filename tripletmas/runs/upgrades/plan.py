"""The plan of an upgrade: what each way keeps and costs, told by a sample that both models embed. Nothing is changed.

Half of the sample fits the maps, and chooses among them by pairs that are held out; the other half measures. Both are
drawn from the whole store, so that what is measured is what is to be expected of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tripletmas.data.images import ImageFiles
from tripletmas.data.tokens import Tokenizer
from tripletmas.index.base import unit
from tripletmas.index.images import Transform
from tripletmas.runs.models import NoneReadable, RunModel, embed_images, embed_texts, identity_by
from tripletmas.runs.upgrades.expected import AS_IT_IS, OLD, OVERLAP, RECALL, Expected, expect
from tripletmas.runs.upgrades.fitted import Fitted, fit
from tripletmas.runs.upgrades.kept import Plan, Way
from tripletmas.runs.upgrades.neighbours import NO_LABEL
from tripletmas.runs.upgrades.sample import (
    LEAST,
    Drawn,
    check_enough,
    columns_of,
    draw,
    label_column,
    readable,
)
from tripletmas.runs.upgrades.shown import (
    Items,
    agreeing,
    check_models,
    known_again,
)
from tripletmas.runs.upgrades.whole import Pairs, Points, search_whole
from tripletmas.stores.identity import Identity, read_notes
from tripletmas.stores.store import COSINE, L2, Id, Store, VectorField

_BYTES = 4  # of a number of a vector


@dataclass(frozen=True, eq=False)
class Embedded:
    """Vectors of items by both models.

    Attributes:
        kept: the positions of the items that can be read.
        old, new: (n, dim), (n, new_dim), raw.
        old_seconds, new_seconds: of an item.
    """

    kept: list[int]
    old: Tensor
    new: Tensor
    old_seconds: float
    new_seconds: float


@dataclass(frozen=True, eq=False)
class Sampled:
    """A sample of a store.

    Attributes:
        ids: (n,) of the points.
        stored: (n, dim) their vectors.
        items: what the models are shown of them.
        missing: how many were drawn that cannot be read.
    """

    ids: list[Id]
    stored: Tensor
    items: Items
    missing: int

    def rows(self, rows: Sequence[int]) -> Sampled:
        """Some of them."""
        ids, stored = [self.ids[row] for row in rows], self.stored[list(rows)]
        return Sampled(ids, stored, self.items.rows(rows), self.missing + len(self.ids) - len(rows))


def make_plan(
    store: Store,
    field: VectorField,
    old: RunModel,
    new: RunModel,
    *,
    sample: int = 1000,
    shares: Sequence[float] = (0.1,),
    given: Items | None = None,
    seed: int = 0,
    invert: bool = False,
    leave_unusable: bool = False,
) -> Plan:
    """What is to be expected of each way to bring a store from one model to another.

    Args:
        field: of the old vectors.
        sample: how many points both models embed.
        shares: of the points, that may be embedded again after all were moved.
        given: the pictures or texts of points, from which the sample is drawn; None: as the store's own column says.
        invert: show black as white, and white as black.
        leave_unusable: points whose vector is zero, or not finite, are left as they are.

    Raises:
        ValueError: if the store has not the vectors of the old model, the models are one, or not for what it holds, the
            sample is too small, or its pictures are not to be had.
    """
    check_enough(LEAST, sample, 0, "", "")
    was = _identity_of(store, field, old)
    texts = isinstance(old.shown, Tokenizer)
    check_models(old, new, texts)
    if was is not None and isinstance(was.shown, Transform):
        invert = was.shown.invert
    started = time.perf_counter()
    drawn, sampled = _sampled(store, field, sample, given, texts, seed, leave_unusable)
    reading = (time.perf_counter() - started) / max(drawn.points, 1)
    embedded = embed_by_both(old, new, sampled.items, invert=invert)
    sampled = sampled.rows(embedded.kept)
    normalize = was.normalize if was else field.metric == COSINE or (field.metric is None) or drawn.are_unit
    if given is not None:
        sampled, embedded = _known(store, field, sampled, embedded)
    rows, cosine = agreeing(sampled.stored, embedded.old, of=str(store.place), normalize=normalize)
    sampled, new_vectors = sampled.rows(rows.tolist()), embedded.new[rows]
    check_enough(len(rows), sample, sampled.missing, "its vector is another one", sampled.items.what)
    metric = was.metric if was else "l2" if field.metric == L2 else "inner_product"
    identity = identity_by(old, metric=metric, normalize=normalize, invert=invert)
    expected, fitted, moving = _measured(store, field, sampled, new_vectors, drawn, identity, shares, seed)
    costs = _Costs(drawn.points, new.dim, reading, moving, embedded.new_seconds, len(rows))
    return Plan(
        place=str(store.place),
        field=field.name,
        points=drawn.points,
        without=drawn.without + drawn.unusable,
        was=identity,
        becomes=identity_by(new, metric=metric, normalize=normalize, invert=invert),
        what=sampled.items.what,
        sample=len(rows),
        missing=sampled.missing,
        cosine=cosine,
        seed=seed,
        fitted=fitted,
        whole_recall=bool(drawn.labels),
        ways=tuple(_ways(expected, shares, costs)),
    )


def embed_by_both(old: RunModel, new: RunModel, items: Items, *, invert: bool = False) -> Embedded:
    """The vectors of items by both models, of those that can be read, which are counted.

    Raises:
        ValueError: if none can be read.
    """
    try:
        first, kept, seconds = _embedded(old, items, invert)
        second, kept_again, new_seconds = _embedded(new, items.rows(kept), invert)
    except NoneReadable as error:
        raise ValueError(f"no picture of the sample can be read: {error}") from None
    return Embedded([kept[row] for row in kept_again], first[kept_again], second, seconds, new_seconds)


def _embedded(model: RunModel, items: Items, invert: bool) -> tuple[Tensor, list[int], float]:
    """(raw vectors, positions of what could be read, seconds of an item)."""
    started = time.perf_counter()
    if items.are_texts:
        vectors, kept = embed_texts(model, items.names), list(range(len(items.names)))
    else:
        images = ImageFiles.at(items.names, model.prepared)
        vectors, kept = embed_images(model, images, invert=invert, skip_unreadable=True)
    return vectors, kept, (time.perf_counter() - started) / max(len(kept), 1)


def _identity_of(store: Store, field: VectorField, old: RunModel) -> Identity | None:
    """What is noted of the old vectors; a ValueError where it is not the old model."""
    if field.dim != old.dim:
        raise ValueError(
            f"{store.place}: vectors of {field.name!r} have dim {field.dim}, and --old {old.run} gives {old.dim}: name "
            "the model that made them"
        )
    noted = read_notes(store).identities.get(field.name)
    if noted is not None and noted.model != old.hash:
        raise ValueError(
            f"{store.place}: vectors of {field.name!r} were made by the model {noted.model[:12]} ({noted.source}), and "
            f"--old {old.run} is {old.hash[:12]}"
        )
    return noted


def _sampled(
    store: Store, field: VectorField, count: int, given: Items | None, texts: bool, seed: int, leave: bool
) -> tuple[Drawn, Sampled]:
    """What is drawn of a store, and the sample of `count`; of given items the points are not known yet."""
    if given is not None:
        drawn = draw(store, field.name, 0, seed=seed, label=label_column(store), leave_unusable=leave)
        order = torch.randperm(len(given.names), generator=torch.Generator().manual_seed(seed)).tolist()
        items = given.rows(order)
    else:
        column, label = columns_of(store, texts=texts)
        drawn = draw(store, field.name, count, seed=seed, columns=[column], label=label, leave_unusable=leave)
        labels = drawn.columns[label] if label else [None] * len(drawn.ids)
        names = tuple("" if each is None else str(each) for each in drawn.columns[column])
        items = Items(names, tuple(None if each is None else str(each) for each in labels), texts)
    kept, missing, first = readable(items.names, count, pictures=not texts)
    check_enough(len(kept), count, missing, first, items.what)
    if given is not None:
        nothing = Sampled([0] * len(items.names), torch.zeros(len(items.names), field.dim), items, missing)
        return drawn, _kept(nothing, kept, missing)
    return drawn, _kept(Sampled(drawn.ids, drawn.vectors, items, missing), kept, missing)


def _kept(sampled: Sampled, rows: list[int], missing: int) -> Sampled:
    return replace(sampled.rows(rows), missing=missing)


def _known(store: Store, field: VectorField, sampled: Sampled, embedded: Embedded) -> tuple[Sampled, Embedded]:
    """The sample with the points that its items are, which are known again by their vectors."""
    ids, stored = known_again(store, field.name, embedded.old, sampled.items.what)
    rows = [row for row, each in enumerate(ids) if each is not None]
    known = Sampled([each for each in ids if each is not None], stored[rows], sampled.items.rows(rows), sampled.missing)
    return known, replace(embedded, old=embedded.old[rows], new=embedded.new[rows])


def _measured(
    store: Store,
    field: VectorField,
    sampled: Sampled,
    new: Tensor,
    drawn: Drawn,
    was: Identity,
    shares: Sequence[float],
    seed: int,
) -> tuple[dict[tuple[str | float, str], Expected], Fitted, float]:
    """(what is expected, the map and what it misses, the seconds that it takes for a point)."""
    n = len(sampled.ids)
    compared, wanted = (unit(each) if was.normalize else each for each in (sampled.stored, new))
    fitted = fit(compared[: n // 2], wanted[: n // 2], normalize=was.normalize, seed=seed)
    started = time.perf_counter()
    fitted.map.apply(sampled.stored)
    moving = (time.perf_counter() - started) / n
    named = drawn.labels or Counter(filter(None, sampled.items.labels))
    codes = {name: number for number, name in enumerate(named)}
    counts = torch.tensor(list(named.values())) if drawn.labels else None
    labels = torch.tensor(_coded(sampled.items.labels, codes))
    measuring = Pairs(torch.arange(n), compared, wanted, labels).rows(torch.arange(n // 2, n))
    held = search_whole(
        _points(store, field, sampled.ids, codes if drawn.labels else {}),
        measuring,
        fitted,
        metric=was.metric,
        counts=counts,
        shares=shares,
    )
    return expect(held, seed=seed), fitted, moving


def _points(store: Store, field: VectorField, ids: list[Id], codes: dict[str, int]) -> Iterator[Points]:
    """The whole store; points of the sample have their places there as numbers, and others follow them."""
    number_of = {each: number for number, each in enumerate(ids)}
    label = label_column(store) if codes else None
    following = len(ids)
    for block in store.scan(field.name, columns=[label] if label else []):
        numbers = []
        for each in block.ids:
            numbers.append(number_of.get(each, following))
            following += 1
        values = block.columns[label] if label else [None] * len(block.ids)
        yield Points(torch.tensor(numbers), block.vectors, torch.tensor(_coded(values, codes)))


def _coded(labels: Sequence[Any], codes: Mapping[str, int]) -> list[int]:
    """Classes as numbers."""
    return [NO_LABEL if each is None else codes.get(str(each), NO_LABEL) for each in labels]


@dataclass(frozen=True)
class _Costs:
    """What ways cost: seconds of a point to be read, moved, embedded by the new model."""

    points: int
    dim: int
    reading: float
    moving: float
    embedding: float
    sample: int

    def of(self, share: float) -> tuple[float, int, int, int]:
        """(seconds, vectors written, bytes, pictures read) where all are moved, and a share embedded again."""
        again = round(share * self.points)
        moving = (self.reading + self.moving) * self.points if share < 1 else 0.0
        return moving + self.embedding * again, self.points, self.points * self.dim * _BYTES, again


def _ways(expected: dict[tuple[str | float, str], Expected], shares: Sequence[float], costs: _Costs) -> Iterator[Way]:
    names: dict[str | float, str] = {OLD: "leave, with the old model", AS_IT_IS: "leave, and ask by the new model"}
    names |= {0.0: "map"} | {share: f"map, and re-embed {share:.0%}" for share in shares} | {1.0: "re-embed all"}
    for key, name in names.items():
        if (key, RECALL) in expected:
            cost = costs.of(key) if isinstance(key, float) else (0.0, 0, 0, 0)
            yield Way(name, key, expected[key, RECALL], expected[key, OVERLAP], *cost)
