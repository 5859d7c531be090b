"""The passes over a store that give every point its moved vector, and make sure that none was missed.

Shapes: n points, dim of the old vectors, new dim of the new ones.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor

from tripletmas.basics.files import read_json, save_json
from tripletmas.basics.progress import told
from tripletmas.stores.identity import Upgrade
from tripletmas.stores.store import ROWS, Block, Id, Store

logger = logging.getLogger(__name__)

_REMEDY = "delete it, and the vectors are written again from the first"
_SECONDS = 0.5  # at most, between two notes of how far writing has come
_EQUAL = 2e-3  # of the largest value of a vector: what half precision in a store may cost
_LOOKS = 5  # at a store that changes all the time


class Move(Protocol):
    """What brings vectors of the old model to where the new one would have them."""

    def apply(self, vectors: Tensor) -> Tensor:
        """Vectors (n, dim) moved to (n, new dim); the same bytes for the same block, whenever it is called."""
        ...


@dataclass(frozen=True)
class Applied:
    """What `apply_move` did.

    Attributes:
        points: that the store holds.
        written: vectors, by this call.
        found: of these, on points that came or changed while it wrote.
        without: points that have no old vector, and got no new one.
        unusable: points whose old vector holds NaN or is zero, and that got no new one.
        seconds: that it took.
    """

    points: int
    written: int
    found: int
    without: int
    unusable: int
    seconds: float


class Unusable(ValueError):
    """A vector that no map can move."""


@final
class Writing:
    """Writes the moved vectors, and notes of each block how far it is and a checksum of what was moved."""

    def __init__(
        self,
        store: Store,
        upgrade: Upgrade,
        move: Move,
        progress: Path,
        size: int,
        anew: Set[Id],
        leave_unusable: bool,
    ):
        self._store, self._upgrade, self._move, self._progress = store, upgrade, move, progress
        self._anew, self._leave = anew, leave_unusable
        said = read_json(progress, _REMEDY) if progress.exists() else {}
        self._after, self._size = said.get("after"), said.get("size", size)
        self._sums: list[int] = said.get("sums", [])
        self._done = bool(said.get("written"))
        self._written = self._found = self._without = self._unusable = 0

    def run(self) -> Applied:
        """All passes."""
        started = time.perf_counter()
        self._write()
        self._look()
        seconds = time.perf_counter() - started
        return Applied(len(self._store), self._written, self._found, self._without, self._unusable, seconds)

    def _write(self) -> None:
        """The first pass; nothing, where it was done already."""
        if self._done:
            return
        self._note(written=False)
        noted = time.monotonic()
        for block in self._blocks(self._after, "moved block"):
            ids, rows = self._moved(block)
            self._store.write(self._upgrade.new, ids, rows)
            self._written += len(ids)
            self._after = block.ids[-1]
            self._sums.append(_sum(block))
            if time.monotonic() - noted > _SECONDS:
                noted = time.monotonic()
                self._note(written=False)
        self._note(written=True)

    def _look(self) -> None:
        """Further passes, until one finds nothing to be written."""
        for _ in range(_LOOKS):
            self._without = self._unusable = 0
            if not self._look_once():
                return
        logger.warning("%s changes faster than it is read: apply again later, before the switch", self._store.place)

    def _look_once(self) -> bool:
        """Whether there was something to be written."""
        found, blocks = self._found, self._blocks(None, "checked block")
        pairs = with_other(self._store, blocks, self._upgrade.new, size=self._size)
        for number, (block, there) in enumerate(pairs):
            if number < len(self._sums) and self._sums[number] == _sum(block) and self._is_whole(block, there):
                continue
            self._mend(block, there)
        return self._found > found

    def _is_whole(self, block: Block, there: Block) -> bool:
        """Whether all points of a block that was moved as it is have their new vector; counts those that have none."""
        bare, bad = self._bare(block)
        whole = there.ids == block.ids and not bool((there.vectors[:, 0].isnan() & ~(bare | bad)).any())
        if whole:
            self._without += int(bare.sum())
            self._unusable += int(bad.sum())
        return whole

    def _mend(self, block: Block, there: Block) -> None:
        """Write the moved vectors of a block that are not there."""
        # points that were embedded anew, and lost that vector since: who replaces a point takes all its vectors
        lost = {there.ids[row] for row in there.vectors[:, 0].isnan().nonzero().flatten().tolist()}
        ids, rows = self._moved(block, lost & self._anew)
        row_of = {each: row for row, each in enumerate(there.ids)}
        kept = [row for row, each in enumerate(ids) if each in row_of]
        ids, rows = [ids[row] for row in kept], rows[kept]
        other = (~_are_equal(there.vectors[[row_of[each] for each in ids]], rows)).nonzero().flatten().tolist()
        if other:
            self._store.write(self._upgrade.new, [ids[row] for row in other], rows[other])
            self._written += len(other)
            self._found += len(other)

    def _blocks(self, after: Id | None, what: str) -> Iterator[Block]:
        blocks = self._store.scan(self._upgrade.old, after=after, size=self._size)
        return told(blocks, what, -(-len(self._store) // self._size))

    def _moved(self, block: Block, lost: Set[Id] = frozenset()) -> tuple[list[Any], Tensor]:
        """The points of a block that get a moved vector, and these; of those embedded anew the ones that are lost."""
        bare, bad = self._bare(block)
        self._without += int(bare.sum())
        self._unusable += int(bad.sum())
        moved = self._move.apply(block.vectors)  # of the whole block: its bytes depend on how many are moved at once
        if not (self._anew or bool((bare | bad).any())):
            return block.ids, moved
        have = (~(bad | bare)).nonzero().flatten().tolist()
        keep = [row for row in have if block.ids[row] not in self._anew or block.ids[row] in lost]
        return [block.ids[row] for row in keep], moved[keep]

    def _bare(self, block: Block) -> tuple[Tensor, Tensor]:
        """(the points of a block that have no vector, those whose vector cannot be moved), (n,) bool each."""
        lengths = torch.linalg.vector_norm(block.vectors, dim=1)
        nothing = torch.zeros(len(lengths), dtype=torch.bool)
        if bool(((lengths > 0) & lengths.isfinite()).all()):
            return nothing, nothing
        bare = block.without_vector()
        bad = (~block.vectors.isfinite().all(dim=1) | (block.vectors == 0).all(dim=1)) & ~bare
        if bool(bad.any()) and not self._leave:
            row = int(bad.nonzero()[0])
            how = "is zero" if bool((block.vectors[row] == 0).all()) else "holds NaN or infinity"
            raise Unusable(f"{self._store.place}: the vector {self._upgrade.old!r} of point {block.ids[row]!r} {how}")
        return bare, bad

    def _note(self, *, written: bool) -> None:
        save_json(self._progress, {"after": self._after, "size": self._size, "written": written, "sums": self._sums})


def with_other(store: Store, blocks: Iterator[Block], name: str, *, size: int = ROWS) -> Iterator[tuple[Block, Block]]:
    """Blocks of a scan from the first point on, each with another vector of its points: of those still there."""
    others: Iterator[Block] | None = store.scan(name, size=size)
    for block in blocks:
        there = next(others, None) if others else None
        if there is None or there.ids != block.ids:
            others = None  # points came or went between the two: read by their ids from here on
            there = store.read(name, block.ids)
        yield block, there


def count_without(store: Store, name: str, other: str) -> int:
    """How many points have a vector `name` that a map could move, and no vector `other`."""
    count = 0
    for block, there in with_other(store, store.scan(name), other):
        lengths = torch.linalg.vector_norm(block.vectors, dim=1)
        usable = ((lengths > 0) & lengths.isfinite()).tolist()
        row_of = {each: row for row, each in enumerate(block.ids)}
        bare = there.vectors[:, 0].isnan().tolist()
        count += sum(none and usable[row_of[each]] for each, none in zip(there.ids, bare, strict=True))
    return count


def _sum(block: Block) -> int:
    """A checksum of the points of a block and of their vectors."""
    content: Any = block.vectors.contiguous().numpy()  # a buffer, which its type says from Python 3.12 on only
    return zlib.crc32(content, zlib.crc32(repr(block.ids).encode())) if block.vectors.numel() else 0


def _are_equal(stored: Tensor, rows: Tensor) -> Tensor:
    """Which vectors (n, dim) of a store are these, (n,) bool; one that is missing is not."""
    if not len(rows):
        return torch.ones(0, dtype=torch.bool)
    return ((stored - rows).abs().amax(dim=1) <= _EQUAL * rows.abs().amax(dim=1)) & stored.isfinite().all(dim=1)
