"""The readers by name, and sequences of data sets: tasks are whole sets, brought to one size and number of channels.

Shapes: n samples; an image is uint8 (channels, size, size), values 0..255.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.data import datasets, folders, hugging_face, photographs, text_tables
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.images import IN_MEMORY_BYTES
from tripletmas.data.source import Source

READERS: dict[str, Callable[..., Source]] = {
    "digits": datasets.digits,
    "omniglot": datasets.omniglot,
    "mnist": datasets.mnist,
    "fashion-mnist": datasets.fashion_mnist,
    "cifar10": datasets.cifar10,
    "cifar100": datasets.cifar100,
    "svhn": datasets.svhn,
    "cub200": photographs.cub200,
    "cars196": photographs.cars196,
    "sop": photographs.sop,
    "flowers102": photographs.flowers102,
    "aircraft": photographs.aircraft,
    "folder": folders.folder,
    "csv": folders.csv,
    "texts": text_tables.texts,
    "jsonl": text_tables.jsonl,
    "hf": hugging_face.hf,
}

Samples = Tensor | Sequence[Tensor]

_CHUNK = 1024  # images that are converted at once: what is needed in between is that small


def sequence(
    *,
    parts: list[str | dict[str, Any]],
    root: str = "data",
    size: int = 28,
    channels: int | None = None,
    download: bool = False,
) -> Source:
    """Several data sets, one after the other: each is a task, in the order given.

    A class is '<part>/<class>', and its group is the part. Where a part has no test part, a stream holds out a share of
    it. Images of a part are decoded, or converted, at the start where they take less than 1 GiB at the common size.

    Args:
        parts: names of data sets, or mappings such as `{name: folder, as: scenes, root: data/scenes}`, whose other keys
            are options of that data set; `as` names a part, and with it its task: to use a data set twice. `groups`
            are those of the part's groups (alphabets, task folders) that are used; without it all.
        root: given to each public data set that does not set its own.
        size: height and width in pixels: the short side is resized, the centre square cut out.
        channels: 1 for grey, 3 for RGB. None: what all parts have.
        download: given to each part that does not set its own.
    """
    if not parts:
        raise ValueError("parts must name at least one data set, such as [digits, omniglot]")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
    if size < 1:
        raise ValueError(f"size must be >= 1 pixel, got {size}")
    common = {"root": root, "size": size, "channels": channels, "download": download}
    sources: dict[str, Source] = {}
    for part in parts:
        name, reader, groups, options = _unfolded(part)
        if name in sources:
            raise ValueError(f"two parts are called {name!r}: give one another name, {{name: {reader}, as: ...}}")
        source = READERS[reader](**_completed(name, reader, options, common))
        sources[name] = source if groups is None else _with_groups(name, source, groups)
    return _joined(sources, size, _common_channels(sources) if channels is None else channels)


def _unfolded(part: str | Mapping[str, Any]) -> tuple[str, str, list[str] | None, dict[str, Any]]:
    """(what the part is called, its reader, the groups that are used of it, the options given to the reader)."""
    options = {"name": part} if isinstance(part, str) else dict(part)
    reader = options.pop("name", None)
    if not isinstance(reader, str):
        raise ValueError(f"a part is a name or a mapping with the key 'name', got {part!r}")
    if reader not in READERS:
        raise ValueError(f"unknown part {reader!r}{suggestion(reader, READERS)}")
    name = str(options.pop("as", reader))
    groups: Any = options.pop("groups", None)
    known = inspect.signature(READERS[reader]).parameters
    for option in options:
        if option not in known:
            raise ValueError(f"part {name!r} has no option {option!r}{suggestion(option, ['as', 'groups', *known])}")
    if groups is None:
        return name, reader, None, options
    if not isinstance(groups, (list, tuple)) or not groups:
        raise ValueError(f"part {name!r}: groups must be a list of names, got {groups!r}")
    return name, reader, [str(group) for group in groups], options


def _completed(name: str, reader: str, options: dict[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a part, and those that all parts share where its reader has them and it does not set its own."""
    known = inspect.signature(READERS[reader]).parameters
    completed = dict(options)
    for option, value in common.items():
        # A user's own images have a root of their own; the one that public data sets share has a default.
        own = option == "root" and option in known and not isinstance(known[option].default, str)
        if option in known and value is not None and not own:
            completed.setdefault(option, value)
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in completed:
            raise ValueError(f"part {name!r} needs the option {option!r}: {{name: {reader}, {option}: ...}}")
    return completed


def _with_groups(name: str, source: Source, groups: Sequence[str]) -> Source:
    """The source with these groups only."""
    known = source.train.members
    if known is None:
        raise ValueError(f"part {name!r} has no groups of classes, so groups {listed(groups)} cannot be chosen")
    for group in groups:
        if group not in known:
            raise ValueError(f"part {name!r} has no group {group!r}{suggestion(group, sorted(known))}")
    return source.of_groups(groups)


def _common_channels(sources: Mapping[str, Source]) -> int:
    counts = {name: _channels_of(name, source.train) for name, source in sources.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"parts have different channel counts ({found}): set channels to 1 or 3")
    return next(iter(counts.values()))


def _channels_of(name: str, train: LabelledDataset) -> int:
    shape = train.sample_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"part {name!r} has samples of shape {shape}; a sequence needs images (1 or 3 channels, height, width)"
        )
    return shape[0]


def _joined(sources: Mapping[str, Source], size: int, channels: int) -> Source:
    """One data set of all parts, whose train, test and gallery are views of the same samples."""
    blocks, views = _laid_out(sources)
    classes = [(name, each) for name, source in sources.items() for each in source.train.class_names]
    groups = [name for name, _ in classes]
    labels = torch.zeros(sum(map(len, blocks)), dtype=torch.int64)
    paths = [""] * len(labels)
    positions: dict[str, list[Tensor]] = {}
    for name, kind, view, where in views:
        positions.setdefault(kind, []).append(where)
        labels[where] = view.labels + groups.index(name)
        for position, path in zip(where.tolist(), _paths(name, view), strict=True):
            paths[position] = path
    samples = _samples(blocks, size, channels)
    whole = LabelledDataset(samples, labels, ["/".join(each) for each in classes], groups=groups, paths=paths)
    joined = Source.of(whole, {kind: torch.cat(of_kind) for kind, of_kind in positions.items()})
    untested = tuple(name for name, source in sources.items() if source.test is None)
    return replace(joined, hold_out=untested, group_order=tuple(sources))


def _laid_out(sources: Mapping[str, Source]) -> tuple[list[Samples], list[tuple[str, str, LabelledDataset, Tensor]]]:
    """The samples of all parts one after the other; and (part, train, test or gallery, the view, its positions there).

    A part's samples lie together: parts that are added at the end leave those before them where they are.
    """
    with_gallery = [name for name, source in sources.items() if source.gallery is not None]
    if 0 < len(with_gallery) < len(sources):
        raise ValueError(
            f"all parts or none must have a gallery, but of them {listed(with_gallery)} have one: leave it out"
        )
    blocks, starts, views = [], {}, []
    for name, source in sources.items():
        for kind, view in (("train", source.train), ("test", source.test), ("gallery", source.gallery)):
            if view is None:
                continue
            key = (name, id(view.samples))  # which views of a part may share
            if key not in starts:
                starts[key] = sum(map(len, blocks))
                blocks.append(view.samples)
            views.append((name, kind, view, view.indices + starts[key]))
    return blocks, views


def _paths(name: str, view: LabelledDataset) -> Sequence[str]:
    """The file of each sample; of what is no file its number."""
    return view.paths or [f"{name}[{index}]" for index in view.indices.tolist()]


class Joined(Sequence[Tensor]):
    """The images of several data sets one after the other, each brought to one size and channel count when read."""

    def __init__(self, blocks: Sequence[Samples], *, size: int, channels: int):
        self.blocks = tuple(blocks)
        self.size = size
        self.channels = channels
        self._ends = list(accumulate(map(len, self.blocks)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} images, no number {index}")
        block = bisect_right(self._ends, index)
        start = self._ends[block - 1] if block else 0
        return fitted(self.blocks[block][index - start], self.size, self.channels)


def _samples(blocks: Sequence[Samples], size: int, channels: int) -> Samples:
    """All images in one tensor where every data set lies in memory and is not too large at this size."""
    ready = [_in_memory(block, size, channels) for block in blocks]
    tensors = [block for block in ready if isinstance(block, Tensor)]
    fit = all(block.dtype == torch.uint8 and block.shape[1:] == (channels, size, size) for block in tensors)
    return torch.cat(tensors) if fit and len(tensors) == len(ready) else Joined(ready, size=size, channels=channels)


def _in_memory(block: Samples, size: int, channels: int) -> Samples:
    if not isinstance(block, Tensor) or len(block) * channels * size**2 > IN_MEMORY_BYTES:
        return block
    return torch.cat([fitted(chunk, size, channels) for chunk in block.split(_CHUNK)])


def fitted(images: Tensor, size: int, channels: int) -> Tensor:
    """Images (..., 1 or 3, height, width) as uint8 (..., channels, size, size).

    The short side is resized with antialiasing and the centre square cut out. Grey becomes colour by repetition, colour
    grey with the luma weights of torchvision. Floating images have values in [0, 1].
    """
    from torchvision.transforms.v2 import functional  # here, because it takes a second

    if images.is_floating_point():
        if not 0 <= float(images.min()) <= float(images.max()) <= 1:
            raise ValueError(f"images must lie in [0, 1], got {float(images.min()):g} to {float(images.max()):g}")
        images = (images * 255).round().to(torch.uint8)
    if channels == 1 and images.shape[-3] == 3:
        images = functional.rgb_to_grayscale(images)
    if images.shape[-2:] != (size, size):
        images = functional.resize(images, [size], antialias=True)
        images = functional.center_crop(images, [size, size])
    if channels == 3 and images.shape[-3] == 1:
        images = images.expand(*images.shape[:-3], 3, size, size)
    return images.contiguous()
