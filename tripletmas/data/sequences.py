"""Sequences of data sets: the tasks are whole data sets, brought to one size and one number of channels.

Shapes: n samples; an image is uint8 (channels, size, size), values 0..255.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics.sentences import suggestion
from tripletmas.basics.weights import listed
from tripletmas.data.dataset import LabelledDataset, Source
from tripletmas.data.images import IN_MEMORY_BYTES
from tripletmas.data.readers import READERS

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
        name, reader, groups, options = _unfolded(part, common)
        if name in sources:
            raise ValueError(f"two parts are called {name!r}: give one another name, {{name: {reader}, as: ...}}")
        sources[name] = _with_groups(name, READERS[reader](**options), groups)
    counts = {name: _channels_of(name, source.train) for name, source in sources.items()}
    if channels is None and len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"parts have different channel counts ({found}): set channels to 1 or 3")
    return _joined(sources, size, next(iter(counts.values())) if channels is None else channels)


def _with_groups(name: str, source: Source, groups: Sequence[str] | None) -> Source:
    """The source with the classes of some of its groups only."""
    if groups is None:
        return source
    of_class = source.train.groups
    if of_class is None:
        raise ValueError(f"part {name!r} has no groups of classes, so groups {listed(groups)} cannot be chosen")
    for group in groups:
        if group not in of_class:
            raise ValueError(f"part {name!r} has no group {group!r}{suggestion(group, sorted(set(of_class)))}")
    labels = [label for label, group in enumerate(of_class) if group in groups]
    test, gallery = (None if part is None else part.of_classes(labels) for part in (source.test, source.gallery))
    return Source(source.train.of_classes(labels), test, gallery)


def _unfolded(
    part: str | Mapping[str, Any], common: Mapping[str, Any]
) -> tuple[str, str, list[str] | None, dict[str, Any]]:
    """(what the part is called, its reader, the groups that are used of it, the options of the reader)."""
    options = {"name": part} if isinstance(part, str) else dict(part)
    reader = options.pop("name", None)
    if not isinstance(reader, str):
        raise ValueError(f"a part is a name or a mapping with the key 'name', got {part!r}")
    if reader not in READERS:
        raise ValueError(f"unknown part {reader!r}{suggestion(reader, READERS)}")
    name = str(options.pop("as", reader))
    groups: Any = options.pop("groups", None)
    if groups is not None:
        if not isinstance(groups, (list, tuple)) or not groups:
            raise ValueError(f"part {name!r}: groups must be a list of names, got {groups!r}")
        groups = [str(group) for group in groups]
    known = inspect.signature(READERS[reader]).parameters
    for option in options:
        if option not in known:
            raise ValueError(f"part {name!r} has no option {option!r}{suggestion(option, ['as', 'groups', *known])}")
    for option, value in common.items():
        parameter = known.get(option)
        # A user's own images have a root of their own; the one that public data sets share has a default.
        if parameter is None or value is None or (option == "root" and not isinstance(parameter.default, str)):
            continue
        options.setdefault(option, value)
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"part {name!r} needs the option {option!r}: {{name: {reader}, {option}: ...}}")
    return name, reader, groups, options


def _channels_of(name: str, train: LabelledDataset) -> int:
    shape = train.sample_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"part {name!r} has samples of shape {shape}; a sequence needs images (1 or 3 channels, height, width)"
        )
    return shape[0]


def _joined(sources: Mapping[str, Source], size: int, channels: int) -> Source:
    """One data set of all parts, whose train, test and gallery are views of the same samples.

    A part's samples lie together: parts that are added at the end leave those before them where they are.
    """
    lacking = [name for name, source in sources.items() if source.gallery is None]
    if 0 < len(lacking) < len(sources):
        having = [name for name in sources if name not in lacking]
        raise ValueError(f"all parts or none must have a gallery, but of them {listed(having)} have one: leave it out")
    class_names = [f"{name}/{each}" for name, source in sources.items() for each in source.train.class_names]
    groups = [name for name, source in sources.items() for _ in source.train.class_names]
    views = [
        (name, kind, view)
        for name, source in sources.items()
        for kind, view in (("train", source.train), ("test", source.test), ("gallery", source.gallery))
        if view is not None
    ]
    blocks = {(name, id(view.samples)): view.samples for name, _, view in views}  # which views of a part may share
    starts = dict(zip(blocks, accumulate(map(len, blocks.values()), initial=0), strict=False))
    labels = torch.zeros(sum(map(len, blocks.values())), dtype=torch.int64)
    paths = [""] * len(labels)
    chosen: dict[str, list[Tensor]] = {"train": [], "test": [], "gallery": []}
    for name, kind, view in views:
        positions = view.indices + starts[name, id(view.samples)]
        chosen[kind].append(positions)
        labels[positions] = view.labels + groups.index(name)
        names = view.paths or [f"{name}[{index}]" for index in view.indices.tolist()]  # of what is no file
        for position, path in zip(positions.tolist(), names, strict=True):
            paths[position] = path
    samples = _samples(list(blocks.values()), size, channels)
    everything = LabelledDataset(samples, labels, class_names, groups=groups, paths=paths)
    parts = {kind: everything.subset(torch.cat(positions)) for kind, positions in chosen.items() if positions}
    untested = tuple(name for name, source in sources.items() if source.test is None)
    return Source(
        parts["train"],
        parts.get("test"),
        parts.get("gallery"),
        hold_out=untested if "test" in parts else (),
        group_order=tuple(sources),
    )


class Joined(Sequence[Tensor]):
    """The images of several data sets one after the other, each brought to one size and channel count when read."""

    def __init__(self, blocks: Sequence[Tensor | Sequence[Tensor]], *, size: int, channels: int):
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


def _samples(blocks: Sequence[Tensor | Sequence[Tensor]], size: int, channels: int) -> Tensor | Joined:
    """All images in one tensor where every data set lies in memory and is not too large at this size."""
    ready: list[Tensor | Sequence[Tensor]] = []
    for block in blocks:
        if isinstance(block, Tensor) and len(block) * channels * size**2 <= IN_MEMORY_BYTES:
            block = torch.cat([fitted(chunk, size, channels) for chunk in block.split(_CHUNK)])
        ready.append(block)
    tensors = [block for block in ready if isinstance(block, Tensor)]
    if len(tensors) == len(ready) and {(block.dtype, *block.shape[1:]) for block in tensors} == {
        (torch.uint8, channels, size, size)
    }:
        return torch.cat(tensors)
    return Joined(ready, size=size, channels=channels)


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
