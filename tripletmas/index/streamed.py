"""Changes of an image index whose vectors do not all come into memory: they go block after block into its next file.

What the file holds is what the same change of `changes` would hold, saved; of an index that faiss has to hold in memory
(`Settings.comes_in_blocks` is false) there is no other way than that.

Shapes: n vectors, m new vectors, b vectors of a block, r rows, dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tripletmas.basics import mapped
from tripletmas.index.changes import (
    check_lengths,
    check_new,
    extended,
    paths_below,
    prepared,
    reduced,
    tidied,
)
from tripletmas.index.images import ImageIndex, Part, Settings

Blocks = Callable[[], Iterator[Tensor]]  # (b, dim) after (b, dim), from the first on, as often as it is called


@dataclass(frozen=True, eq=False)
class Streamed:
    """An index that is there when it has been saved.

    Args:
        about: all that it will hold but for its vectors, which are zeros here.
        blocks: its vectors, as they are stored.
    """

    about: ImageIndex
    blocks: Blocks

    def __len__(self) -> int:
        return len(self.about)

    def stale(self, model: str) -> tuple[int, ...]:
        """See `ImageIndex.stale`."""
        return self.about.stale(model)

    def save(self, path: str | Path) -> None:
        """See `ImageIndex.save`; also raises ValueError where a vector is not finite."""
        self.about.save(path, blocks=self.blocks)


def built(
    path: str | Path,
    settings: Settings,
    blocks: Blocks,
    names: Sequence[str],
    part: Part,
    *,
    class_names: Sequence[str | None] | None = None,
    run: str = "",
    root: str = "",
) -> None:
    """Write an index file of raw vectors (n, dim) that come in blocks, which need not fit into memory.

    Args:
        settings: of a kind that comes in blocks: exact, or on the disk.
        names: of the n images, below the root; they are kept in memory, about 100 bytes each.
        part: which model made the vectors.

    Raises:
        ValueError: as `changes.add_images`; for a kind that faiss holds in memory; if there are not n vectors.
        OSError: if it cannot be written, as when the disk is full; what was at `path` is untouched.
    """
    classes = [None] * len(names) if class_names is None else class_names
    added(ImageIndex.empty(settings, run), blocks, names, classes, part, root=root).save(path)


def added(
    index: ImageIndex,
    blocks: Blocks,
    names: Sequence[str],
    class_names: Sequence[str | None],
    part: Part,
    *,
    root: str = "",
    texts: Sequence[str] = (),
) -> Streamed:
    """As `changes.add_images`, where the raw vectors (m, dim) come in blocks."""
    _check_kind(index)
    paths = paths_below(root, names)
    check_lengths(len(paths), paths, class_names)
    check_new(index, paths)
    zeros = _zeros(index, len(index) + len(paths))
    larger = extended(index, zeros, paths, class_names, part, root=root, texts=texts)

    def both() -> Iterator[Tensor]:
        yield from mapped.blocks(index.vectors)
        at = 0
        for block in blocks():
            yield prepared(index, block, paths[at : at + len(block)])
            at += len(block)

    return Streamed(tidied(larger), both)


def removed(index: ImageIndex, rows: Tensor) -> Streamed:
    """As `changes.remove_images` of these rows (r,)."""
    _check_kind(index)
    keep = torch.ones(len(index), dtype=torch.bool)
    keep[rows] = False
    smaller = reduced(index, keep, _zeros(index, int(keep.sum())))

    def kept() -> Iterator[Tensor]:
        at = 0
        for block in mapped.blocks(index.vectors):
            yield block[keep[at : at + len(block)]]
            at += len(block)

    return Streamed(tidied(smaller if len(smaller) else replace(smaller, serialized=None)), kept)


def moved(
    index: ImageIndex, drifts: Mapping[int, Callable[[Tensor], Tensor]], to: str, maps: Sequence[str]
) -> Streamed:
    """As `changes.move_parts`; the drifts are given a part's vectors block after block."""
    _check_kind(index)
    parts = list(index.parts)
    for number in drifts:
        parts[number] = replace(parts[number], moved_to=to, maps=(*parts[number].maps, *maps))

    def after() -> Iterator[Tensor]:
        at = 0
        for block in mapped.blocks(index.vectors):
            numbers, changed = index.part[at : at + len(block)], block.clone()
            for number in numbers.unique().tolist():
                rows = (numbers == number).nonzero().flatten()
                if number in drifts:
                    changed[rows] = prepared(index, drifts[number](block[rows]), _Paths(index, rows + at))
            at += len(block)
            yield changed

    return Streamed(
        tidied(replace(index, vectors=_zeros(index, len(index)), parts=tuple(parts), serialized=None)), after
    )


class _Paths(Sequence[str]):
    """The paths of some rows, looked up when they are asked for."""

    def __init__(self, index: ImageIndex, rows: Tensor):
        self._index, self._rows = index, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        return self._index.paths[int(self._rows[position])]


def _zeros(index: ImageIndex, count: int) -> Tensor:
    """Of the shape of so many vectors, without their memory."""
    return torch.zeros(1, 1).expand(count, index.settings.dim)


def _check_kind(index: ImageIndex) -> None:
    if not index.settings.comes_in_blocks:
        raise ValueError(
            f"faiss holds an index of kind {index.settings.kind!r} in memory: take the kind exact, or lists on the "
            "disk (on_disk), where it is to come in blocks"
        )
