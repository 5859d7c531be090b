"""Changes of an image index. Each gives a new one and leaves the old as it is.

Shapes: m new vectors, r rows of the index, dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import compress

import torch
from torch import Tensor

from tripletmas.basics.sentences import listed
from tripletmas.index.approximate import FaissIndex
from tripletmas.index.base import check_rows, unit
from tripletmas.index.images import NO_LABEL, ImageIndex, Part, Settings, prefix


def add_images(
    index: ImageIndex,
    vectors: Tensor,
    names: Sequence[str],
    class_names: Sequence[str | None],
    part: Part,
    *,
    root: str = "",
    texts: Sequence[str] = (),
) -> ImageIndex:
    """The index with more images: raw vectors (m, dim) of one model, names of files below `root`, names of classes.

    Args:
        texts: of an index of texts, the texts; their names are lines of the file `root`.

    Raises:
        ValueError: if the dimension differs, a value is not finite, a path is in the index already, or there are fewer
            vectors than an index that must be trained needs; the sentence names the first.
    """
    paths = paths_below(root, names)
    check_lengths(len(vectors), paths, class_names)
    check_new(index, paths)
    rows = prepared(index, vectors, paths)
    larger = extended(index, torch.cat([index.vectors, rows]), paths, class_names, part, root=root, texts=texts)
    searched = _in_memory(index)
    if searched is not None:
        searched.add(rows, larger.ids[len(index) :])
        larger = replace(larger, serialized=searched.serialize())
    return tidied(larger)


def paths_below(root: str, names: Sequence[str]) -> list[str]:
    """The paths of files, or of lines, below a root; without a root they are paths."""
    return [prefix(root) + name for name in names] if root else list(names)


def check_lengths(count: int, paths: Sequence[str], class_names: Sequence[str | None]) -> None:
    """Raises ValueError where these are not of so many vectors."""
    if not count == len(paths) == len(class_names):
        raise ValueError(f"{count} vectors, {len(paths)} paths and {len(class_names)} classes")


def extended(
    index: ImageIndex,
    vectors: Tensor,
    paths: Sequence[str],
    class_names: Sequence[str | None],
    part: Part,
    *,
    root: str,
    texts: Sequence[str],
) -> ImageIndex:
    """The index with more rows, of one part: all that it says of them; what faiss holds is as it was.

    Args:
        vectors: of the old rows and the new ones.
    """
    known, labels = _labelled(index, class_names)
    count = len(paths)
    return replace(
        index,
        vectors=vectors,
        ids=torch.cat([index.ids, torch.arange(index.next_id, index.next_id + count)]),
        part=torch.cat([index.part, torch.full((count,), len(index.parts), dtype=torch.int32)]),
        labels=torch.cat([index.labels, labels]),
        paths=(*index.paths, *paths),
        parts=(*index.parts, part),
        class_names=known,
        roots=tuple(dict.fromkeys((*index.roots, root))) if root else index.roots,
        next_id=index.next_id + count,
        texts=(*index.texts, *texts),
    )


def _in_memory(index: ImageIndex) -> FaissIndex | None:
    """What faiss holds of it in memory, new, so that it may be changed."""
    if index.settings.comes_in_blocks:
        return None
    searched = index.searchable()
    return searched if isinstance(searched, FaissIndex) else None


def _labelled(index: ImageIndex, class_names: Sequence[str | None]) -> tuple[tuple[str, ...], Tensor]:
    """The class names of the index and these new ones, and the labels (m,) of these."""
    known = dict.fromkeys((*index.class_names, *(name for name in class_names if name is not None)))
    label: dict[str | None, int] = {name: number for number, name in enumerate(known)}
    return tuple(known), torch.tensor([label.get(name, NO_LABEL) for name in class_names], dtype=torch.int64)


def check_new(index: ImageIndex, paths: Sequence[str]) -> None:
    """Whether none of these paths is in the index yet, or twice among them.

    Raises:
        ValueError: naming the first, and how many there are.
    """
    seen, twice = set(index.paths), []
    for path in paths:
        if path in seen:
            twice.append(path)
        seen.add(path)
    if twice:
        raise ValueError(
            f"{len(twice)} of {len(paths)} images are in the index already, the first is {twice[0]}: remove them "
            "first, or refresh the index"
        )


def remove_images(index: ImageIndex, rows: Tensor) -> ImageIndex:
    """The index without these rows (r,); an approximate one is rebuilt only if its kind cannot remove (HNSW)."""
    keep = torch.ones(len(index), dtype=torch.bool)
    keep[rows] = False
    smaller = reduced(index, keep, index.vectors[keep])
    searched = _in_memory(index)
    if not len(smaller) or searched is None:
        return tidied(replace(smaller, serialized=index.serialized if len(smaller) else None))
    try:
        searched.remove(index.ids[~keep])
    except ValueError:
        return tidied(_rebuilt(smaller))
    return tidied(replace(smaller, serialized=searched.serialize()))


def reduced(index: ImageIndex, keep: Tensor, vectors: Tensor) -> ImageIndex:
    """The rows that are to be kept, (n,) bool, with their vectors; what faiss holds is as it was."""
    kept = keep.tolist()
    return replace(
        index,
        vectors=vectors,
        ids=index.ids[keep],
        part=index.part[keep],
        labels=index.labels[keep],
        paths=tuple(compress(index.paths, kept)),
        texts=tuple(compress(index.texts, kept)),
    )


def move_parts(
    index: ImageIndex, drifts: Mapping[int, Callable[[Tensor], Tensor]], to: str, maps: Sequence[str]
) -> ImageIndex:
    """The index with the vectors of some parts moved into the space of the model `to`; no image is read.

    Args:
        drifts: number of a part -> what moves its vectors (r, dim), as they are stored; where the index normalises, the
            result is scaled to length 1 again.
        maps: the names of what the drifts consist of.

    Raises:
        ValueError: if a moved vector is not finite.
    """
    vectors, parts = index.vectors.clone(), list(index.parts)
    for number, drift in drifts.items():
        rows = index.of_parts([number])
        vectors[rows] = prepared(index, drift(index.vectors[rows]), [index.paths[row] for row in rows.tolist()])
        parts[number] = replace(parts[number], moved_to=to, maps=(*parts[number].maps, *maps))
    return tidied(_rebuilt(replace(index, vectors=vectors, parts=tuple(parts))))


def replace_vectors(index: ImageIndex, rows: Tensor, vectors: Tensor, part: Part) -> ImageIndex:
    """The index with other vectors for these rows (r,): their images embedded anew, raw, by the model of `part`.

    Raises:
        ValueError: if the dimension differs or a value is not finite.
    """
    stored, numbers = index.vectors.clone(), index.part.clone()
    stored[rows] = prepared(index, vectors, [index.paths[row] for row in rows.tolist()])
    numbers[rows] = len(index.parts)
    return tidied(_rebuilt(replace(index, vectors=stored, part=numbers, parts=(*index.parts, part))))


def all_replaced(index: ImageIndex, vectors: Tensor, settings: Settings, part: Part, *, run: str) -> ImageIndex:
    """The index of the same images with other vectors (n, dim) for all, of another model, in another space.

    Args:
        settings: how the new model is shown images, and how its vectors are compared.

    Raises:
        ValueError: if the dimension differs or a value is not finite.
    """
    other = replace(index, settings=settings, run=run, parts=(part,), part=torch.zeros_like(index.part))
    return _rebuilt(replace(other, vectors=prepared(other, vectors, list(index.paths))))


def with_ids(index: ImageIndex, ids: Tensor) -> ImageIndex:
    """The index with other ids (n,) of its images, in their order.

    Raises:
        ValueError: if they are not ascending numbers >= 0.
    """
    if ids.dtype != torch.int64 or ids.shape != index.ids.shape or bool((ids < 0).any() | (ids.diff() <= 0).any()):
        raise ValueError(f"ids must be int64 of shape ({len(index)},), ascending and >= 0")
    return _rebuilt(replace(index, ids=ids, next_id=int(ids[-1]) + 1 if len(ids) else 0))


def relocate_images(index: ImageIndex, rows: Tensor, root: str) -> ImageIndex:
    """The index with the images of these rows (r,) below another root, under the same names.

    Raises:
        ValueError: if two images would then have one path.
    """
    paths = list(index.paths)
    for row in rows.tolist():
        paths[row] = prefix(root) + index.name_of(row)
    if len(set(paths)) < len(paths):
        raise ValueError(f"below {root}, several images of the index would have one path")
    return replace(index, paths=tuple(paths), roots=tuple(dict.fromkeys((*index.roots, root))))


def prepared(index: ImageIndex, vectors: Tensor, paths: Sequence[str]) -> Tensor:
    """Raw vectors as they are stored."""
    check_rows(vectors, index.settings.dim, "vectors")
    rows = vectors.detach().to("cpu", torch.float32)
    bad = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{len(bad)} vectors hold NaN or infinity, of: {listed([paths[int(row)] for row in bad], most=3)}"
        )
    return unit(rows) if index.settings.normalize else rows


def _rebuilt(index: ImageIndex) -> ImageIndex:
    """With what faiss holds made anew from the vectors; an index that is trained is trained on them."""
    index = replace(index, serialized=None, list_sizes=None, lists=None)
    searched = _in_memory(index)
    if not len(index) or searched is None:
        return index
    searched.add(index.vectors, index.ids)
    return replace(index, serialized=searched.serialize())


def tidied(index: ImageIndex) -> ImageIndex:
    """Each part once, none without vectors; lists on the disk are of other vectors, and made anew."""
    used = index.part.unique().tolist()
    parts = tuple(dict.fromkeys(index.parts[number] for number in used))
    number_of = torch.full((len(index.parts),), -1, dtype=torch.int32)
    for number in used:
        number_of[number] = parts.index(index.parts[number])
    return replace(index, parts=parts, part=number_of[index.part.long()], list_sizes=None, lists=None)
