"""Many images or texts embedded part by part, each on the disk before the next begins.

The vectors are never all in memory, and what was embedded before a process was killed is not embedded again: a part is
named by the model, by how it shows an item, and by the items, images with their size and the moment when they were
changed. The parts of other ones, as of a model that has learned since, are not looked at.

Shapes: m items that can be read, dim.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tripletmas.basics import distributed
from tripletmas.basics.files import read_tensors, save_tensors
from tripletmas.basics.progress import told
from tripletmas.data.images import ImageFiles
from tripletmas.data.vector_parts import identity_of
from tripletmas.runs.models import RunModel, embed_readable, embed_texts, kept_of, tell_negatives

PART = (
    2048  # items of one, as nearly as whole batches give it: with other batches, vectors would differ in their last bit
)
_HEADER = "embedded part"


@dataclass(frozen=True, eq=False)
class EmbeddedParts:
    """Raw vectors (m, dim) of those of the items that can be read, in their order, in the files of a folder.

    Args:
        kept: the positions of these items.
    """

    folder: Path
    files: tuple[Path, ...]
    kept: list[int]

    def blocks(self) -> Iterator[Tensor]:
        """The vectors, part after part."""
        for file in self.files:
            yield read_tensors(file, "build the index again, which embeds what is missing", large=True)[0]["vectors"]

    def some(self, most: int) -> tuple[Tensor, list[int]]:
        """At most so many vectors, evenly spaced, and the positions of their items."""
        step, at, found = -(-len(self.kept) // most) or 1, 0, []
        for block in self.blocks():
            found.append(block[-at % step :: step].clone())
            at += len(block)
        return torch.cat(found), self.kept[::step]

    def delete(self) -> None:
        """Delete the folder: the vectors are elsewhere now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def rows_of_part(model: RunModel) -> int:
    """How many items are embedded at a time; fewer need no parts."""
    return max(1, PART // model.batch_size) * model.batch_size


def embed_in_parts(
    model: RunModel,
    items: ImageFiles | Sequence[str],
    folder: str | Path,
    *,
    invert: bool = False,
    skip_unreadable: bool = False,
    option: str = "--skip-unreadable",
) -> EmbeddedParts:
    """Embed images, or texts, into the files of a folder; what is there already is not embedded again.

    Of several processes all call it; the main one writes, and it alone can read the vectors.

    Args:
        folder: which no other process writes to.
        invert, skip_unreadable, option: see `runs.models.embed_images`.

    Raises:
        NoneReadable: if no image can be read.
        ValueError: naming the image that cannot be read, or whose embedding is not finite.
        OSError: if a part cannot be written, as when the disk is full; those that are there stay.
    """
    folder, count, rows = Path(folder), len(items), rows_of_part(model)
    files, unreadable, there = [], {}, 0
    bar = tqdm(range(0, count, rows), desc="embed parts", leave=False, disable=None)
    for start in told(bar, "in all, embedded", count, size=lambda start: min(rows, count - start)):
        part = _subset(items, range(start, min(start + rows, count)))
        file = folder / f"{_name_of(model, part, invert)}.safetensors"
        noted = _read(file)
        if noted is None:
            noted = _embed(model, part, file, invert=invert, skip_unreadable=skip_unreadable, option=option)
        else:
            there += 1
        if noted and not skip_unreadable:
            raise ValueError(f"{noted[min(noted)]} ({option} leaves out what cannot be read)")
        files.append(file)
        unreadable |= {start + position: sentence for position, sentence in noted.items()}
    if there and distributed.is_main():
        print(f"{folder}: {there} of {len(files)} parts were embedded already")
    kept = kept_of(count, unreadable)
    if isinstance(items, ImageFiles):
        tell_negatives(model, items, kept, invert=invert)
    return EmbeddedParts(folder, tuple(files), kept)


def _subset(items: ImageFiles | Sequence[str], positions: range) -> ImageFiles | Sequence[str]:
    return items.subset(positions) if isinstance(items, ImageFiles) else items[positions.start : positions.stop]


def _name_of(model: RunModel, part: ImageFiles | Sequence[str], invert: bool) -> str:
    items: object = part
    if isinstance(part, ImageFiles):
        items = [(path, _stamp(part, position)) for position, path in enumerate(part.paths)]
    content = [identity_of(model.hash, model.shown), model.batch_size, invert, items]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _stamp(images: ImageFiles, position: int) -> tuple[int, int] | None:
    try:
        return images.stamp(position)
    except ValueError:  # to embed it will tell
        return None


def _read(file: Path) -> dict[int, str] | None:
    """What could not be read of a part that is there, position -> why; None where it is to be embedded."""
    found = None
    if distributed.is_main() and file.is_file():
        try:
            _, noted = read_tensors(file, "", header=_HEADER, large=True)
            found = {int(position): str(sentence) for position, sentence in noted.items()}
        except (ValueError, AttributeError):  # damaged: it is embedded anew
            found = None
    return distributed.broadcast_object(found)


def _embed(
    model: RunModel, part: ImageFiles | Sequence[str], file: Path, *, invert: bool, skip_unreadable: bool, option: str
) -> dict[int, str]:
    noted: dict[int, str] = {}
    if isinstance(part, ImageFiles):
        vectors, noted = embed_readable(model, part, invert=invert, skip_unreadable=skip_unreadable, option=option)
        vectors = vectors[[position for position in range(len(part)) if position not in noted]] if noted else vectors
    else:
        vectors = embed_texts(model, part)
    with distributed.together("writing a part"):
        if distributed.is_main():
            save_tensors(file, {"vectors": vectors}, {_HEADER: {str(each): noted[each] for each in sorted(noted)}})
    return noted
