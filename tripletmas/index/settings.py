"""What an index of images, or of texts, knows of all its vectors: how they are compared, and who made them.

A vector is comparable to those of one model only. So an index knows, part by part, the model that embedded its vectors
(`Part.model`) and the model whose space they lie in (`Part.moved_to`: the same one, unless a drift map moved them),
both by the hash of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what searches is imported where it is made: who asks what a file holds needs no torch
    from torch import Tensor

    from tripletmas.index.base import Index
    from tripletmas.index.lists import Listing, MappedLists


@dataclass(frozen=True)
class Transform:
    """How an image becomes what the model is shown; vectors of images that were made otherwise do not compare.

    Args:
        size: (height, width) in pixels; one number, as in older files, is both.
        channels: 1 for grey, 3 for RGB.
        invert: black is shown as white, and white as black.
        interpolation, crop: how the image is brought to that size.
        mean, deviation: what the values of each channel are normalised by; None where they are not.
    """

    size: tuple[int, int]
    channels: int
    invert: bool = False
    interpolation: str = "bilinear"
    crop: float = 1.0
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def __post_init__(self):
        size: Any = self.size
        object.__setattr__(self, "size", (size, size) if isinstance(size, int) else tuple(size))
        for name in ("mean", "deviation"):
            values = getattr(self, name)
            object.__setattr__(self, name, None if values is None else tuple(values))


@dataclass(frozen=True)
class Reading:
    """How a text becomes what the model is shown; vectors of texts that were read otherwise do not compare.

    Args:
        tokenizer: a checksum of all that the ids of tokens depend on.
        max_length: so many tokens are read of a text, and the rest is not.
    """

    tokenizer: str
    max_length: int


@dataclass(frozen=True)
class Settings:
    """What is the same for all vectors of an index; see `make_index`.

    Args:
        on_disk: the lists of an IVF kind stay in the file when they are searched; see `lists.MappedLists`.
    """

    dim: int
    transform: Transform | Reading
    metric: str = "inner_product"
    normalize: bool = True
    kind: str = "exact"
    nprobe: int | None = None
    ef_search: int | None = None
    on_disk: bool = False

    @property
    def comes_in_blocks(self) -> bool:
        """Whether an index of this kind can be written without all vectors in memory."""
        return self.on_disk or self.kind == "exact"

    def make_index(self, data: Tensor | None = None) -> Index:
        """An empty index, or the one that serialized to these data."""
        if self.on_disk:
            return self.mapped_lists(None, None, None)
        from tripletmas.index.making import make_index

        return make_index(
            self.dim,
            kind=self.kind,
            metric=self.metric,
            normalize=self.normalize,
            nprobe=self.nprobe,
            ef_search=self.ef_search,
            data=data,
        )

    def mapped_lists(self, trained: Tensor | None, sizes: Tensor | None, content: Tensor | None) -> MappedLists:
        """An index over these lists, which lie in a file; see `lists`."""
        if self.ef_search is not None:
            raise ValueError(f"an index on the disk has lists and no ef_search, got {self.ef_search}; leave it out")
        from tripletmas.index.lists import MappedLists

        return MappedLists(
            self.dim,
            kind=self.kind,
            metric=self.metric,
            normalize=self.normalize,
            nprobe=self.nprobe,
            trained=trained,
            sizes=sizes,
            content=content,
        )

    def listing(self, blocks: Callable[[], Iterator[Tensor]], count: int, trained: Tensor | None) -> Listing:
        """What makes lists in a file of so many vectors; see `lists`."""
        from tripletmas.index.lists import Listing

        return Listing.of(self.dim, self.kind, self.metric, blocks=blocks, count=count, trained=trained)


@dataclass(frozen=True)
class Part:
    """Where some of the vectors come from.

    Args:
        model: hash of the weights that embedded the images (`basics.weights.weight_hash`).
        after_task: after which task of its run that model was, from 0.
        moved_to: hash of the weights whose space the vectors lie in now; `model` itself unless they were compensated.
        maps: the kind of drift map of each refresh that moved them, in order; one refresh may span several tasks.
    """

    model: str
    after_task: int
    moved_to: str
    maps: tuple[str, ...] = ()
