"""What an image index knows of its vectors: how they are compared, what the model was shown, which model it was."""

from __future__ import annotations

from dataclasses import dataclass

from tripletmas.index import Index, make_index


@dataclass(frozen=True)
class Transform:
    """What the model is shown of an image: a square of so many pixels, in grey (1) or RGB (3), inverted or not."""

    size: int
    channels: int
    invert: bool = False


@dataclass(frozen=True)
class Settings:
    """What is the same for all vectors of an index; see `make_index`."""

    dim: int
    transform: Transform
    metric: str = "inner_product"
    normalize: bool = True
    kind: str = "exact"
    nprobe: int | None = None
    ef_search: int | None = None

    def make_index(self) -> Index:
        return make_index(
            self.dim,
            kind=self.kind,
            metric=self.metric,
            normalize=self.normalize,
            nprobe=self.nprobe,
            ef_search=self.ef_search,
        )


@dataclass(frozen=True)
class Part:
    """Where some of the vectors come from.

    Args:
        model: hash of the weights that embedded the images (`params.weight_hash`).
        after_task: after which task of its run that model was, from 0.
        moved_to: hash of the weights whose space the vectors lie in now; `model` itself unless they were compensated.
        maps: the drift maps that moved them, in order.
    """

    model: str
    after_task: int
    moved_to: str
    maps: tuple[str, ...] = ()
