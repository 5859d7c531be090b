"""A sample of the points of a store: which, and what of theirs a model can be shown.

It is a function of the ids and the seed: the points whose id, hashed with the seed, comes first. So it does not depend
on how a store is read, and points that come later change little of it.

Shapes: n points, dim.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics.progress import told
from tripletmas.basics.sentences import listed
from tripletmas.data.images import ImageFiles
from tripletmas.data.preparation import Preparation
from tripletmas.stores.store import ROWS, Block, Id, Store

LEAST = 40  # pairs: half of them fit a map, and are cut into five folds for that
_SPARE = 0.2  # so many more are drawn, of which some may be missing
_ANY = Preparation((8, 8))  # what a picture is checked by does not matter
_UNIT = 1e-3  # lengths within 1 by this are those of unit vectors, also after rounding to half precision


@dataclass(frozen=True, eq=False)
class Drawn:
    """Points that were drawn of a store, in the order in which they were drawn, and what was seen of all its points.

    Attributes:
        ids: (n,).
        vectors: (n, dim) as they are stored.
        columns: name -> (n,) values.
        points: how many the store holds that have a vector.
        without: how many have none.
        are_unit: whether all vectors are of unit length.
        labels: class -> how many points have it; {} where the store has no such column.
        unusable: how many more have one that is not finite, or zero.
    """

    ids: list[Id]
    vectors: Tensor
    columns: dict[str, list[object]]
    points: int
    without: int
    unusable: int
    are_unit: bool
    labels: Counter[str]


def draw(
    store: Store,
    name: str,
    count: int,
    *,
    seed: int = 0,
    columns: Sequence[str] = (),
    label: str | None = None,
    leave_unusable: bool = False,
) -> Drawn:
    """At most `count` points of a store, and some to spare, without replacement.

    Args:
        name: of the vector.
        columns: that are read of them.
        label: the column of classes, which are counted.
        leave_unusable: points whose vector is zero, or not finite, are left out; else the first is an error.

    Raises:
        ValueError: naming such a point; if no point has a vector.
    """
    most = count + max(20, int(count * _SPARE))
    drawn: list[_Entry] = []
    seen = _Seen(f"{store.place}: the vector {name!r} of point", label, leave_unusable)
    wanted: list[str] = list(dict.fromkeys([*columns, *([label] if label else [])]))
    for block in told(store.scan(name, columns=wanted), "read block", -(-len(store) // ROWS)):
        _take(drawn, most, block, seen.usable(block), seed)
    if not seen.points:
        raise ValueError(f"{store.place} holds no point with a vector {name!r}")
    drawn.sort(key=lambda entry: -entry[0])
    ids, vectors = [each for _, each, _, _ in drawn], torch.stack([vector for _, _, vector, _ in drawn])
    values = {each: [of[each] for *_, of in drawn] for each in wanted}
    return Drawn(ids, vectors, values, seen.points, seen.without, seen.unusable, seen.are_unit, seen.labels)


def _take(drawn: list[_Entry], most: int, block: Block, rows: Iterable[int], seed: int) -> None:
    """Those rows of a block that are among the first `most` of all, in place of others; `drawn` is a heap."""
    for row in rows:
        key = _key(block.ids[row], seed)
        if len(drawn) < most or key < -drawn[0][0]:
            values = {name: column[row] for name, column in block.columns.items()}
            entry = (-key, block.ids[row], block.vectors[row], values)
            (heapq.heappush if len(drawn) < most else heapq.heapreplace)(drawn, entry)


_Entry = tuple[int, Id, Tensor, dict[str, Any]]  # minus its place in the order, a point, its vector, its columns


class _Seen:
    """What is counted of all points as they come by."""

    def __init__(self, what: str, label: str | None, leave_unusable: bool):
        self._what, self._label, self._leave = what, label, leave_unusable
        self.points = self.without = self.unusable = 0
        self.are_unit = True
        self.labels: Counter[str] = Counter()

    def usable(self, block: Block) -> list[int]:
        """Count a block, and know its rows that have a vector.

        Raises:
            ValueError: naming the point whose vector is not finite, or zero.
        """
        without = block.without_vector()
        lengths = block.vectors.norm(dim=1)
        bad = (~(lengths > 0) | lengths.isinf()) & ~without
        if bool(bad.any()) and not self._leave:
            row = int(bad.nonzero()[0])
            how = "is zero" if float(lengths[row]) == 0 else "holds NaN or infinity"
            raise ValueError(f"{self._what} {block.ids[row]!r} {how}: mend it, or --leave-unusable leaves it as it is")
        good = ~(bad | without)
        rows = good.nonzero().flatten().tolist()
        self.points += len(rows)
        self.without += int(without.sum())
        self.unusable += int(bad.sum())
        self.are_unit = self.are_unit and bool(((lengths[good] - 1).abs() < _UNIT).all())
        if self._label:
            values = block.columns[self._label]
            self.labels.update(str(values[row]) for row in rows if values[row] is not None)
        return rows


def _key(each: Id, seed: int) -> int:
    """Where a point stands in the order in which points are drawn."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {each!r}".encode(), digest_size=8).digest(), "big")


def readable(names: Sequence[str], count: int, *, pictures: bool) -> tuple[list[int], int, str]:
    """(the positions of the first `count` items that are there; how many are not, before these; why the first is not).

    Args:
        names: paths of pictures, or texts; "" for a point that has none.
    """
    kept: list[int] = []
    missing, first = 0, ""
    for position, each in enumerate(names):
        if len(kept) == count:
            break
        try:
            if not each:
                raise ValueError("a point that has none")
            if pictures:
                ImageFiles.at([each], _ANY).check(0)
            kept.append(position)
        except ValueError as error:
            missing, first = missing + 1, first or str(error)
    return kept, missing, first


def check_enough(count: int, asked: int, missing: int, first: str, what: str) -> None:
    """Raises ValueError where a sample is too small to fit a map and to measure it."""
    if asked < LEAST:
        raise ValueError(f"--sample must be >= {LEAST}: half of it fits a map, and half measures it; got {asked}")
    if count < LEAST:
        gone = f": {missing} of those that were drawn cannot be read, the first: {first}" if missing else ""
        raise ValueError(f"there are {count} {what} to be had for the sample, and {LEAST} are the least{gone}")


def columns_of(store: Store, *, texts: bool) -> tuple[str, str | None]:
    """The names of the columns of a store that hold a path, or a text, and a class; None where it has no classes.

    Raises:
        ValueError: if it has none for the first.
    """
    what = "text" if texts else "path"
    known, name = store.columns(), store.place.column(what, what)
    if name not in known:
        given = "--csv FILE --text COLUMN" if texts else "--images FOLDER"
        have = f", only {listed(known)}" if known else ""
        raise ValueError(
            f"{store.place} has no column {name!r}{have}: name the one that holds each {what} by ?{what}=COLUMN, or "
            f"give {given}"
        )
    return name, label_column(store)


def label_column(store: Store) -> str | None:
    """The column of a store that holds classes; None where it has none.

    Raises:
        ValueError: if the place names one that is not there.
    """
    name, known = store.place.column("label", "label"), store.columns()
    if name not in known and "label" in store.place.columns:
        raise ValueError(f"{store.place} has no column {name!r}: there are {listed(known)}")
    return name if name in known else None
