"""A labelled data set: samples, and labels that are readable without loading a sample.

Shapes: n samples; a sample is a float32 tensor, an image (channels, height, width) with values in [0, 1]; or a text,
int64 (2, length): the ids of its tokens, and ones, which say of a batch's zeros that they are no tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from tripletmas.data.preparation import Preparation

Transform = Callable[[Tensor], Tensor]


class Augmentation(NamedTuple):
    """A transform of samples as they lie, of bytes where these are bytes; others have floats."""

    change: Transform

    def __call__(self, sample: Tensor) -> Tensor:
        return self.change(sample)


class LabelledDataset(Dataset):
    """n samples with integer labels that point into the names of their classes.

    `dataset[i]` is one `(sample, label)`; `dataset[[i, j]]` is a whole batch `(samples, labels)`. Every part of a
    data set (train, test, the classes of a task) is a view that shares the samples and the class names, so labels
    mean the same in all of them. Where a sample can be of several classes, as an image of which several facts hold,
    labels are a row of booleans, one for each class, and a view has those of its own classes only: what is true of a
    sample besides is in `truth`.

    Args:
        samples: a tensor (n, ...) in memory, uint8 (0..255, scaled to [0, 1] when read) or floating, or any sequence
            whose items are such tensors of one shape, decoded when asked for. Those of int64 stay as they are.
        labels: (n,), integers in [0, len(class_names)); or (n, len(class_names)), booleans.
        class_names: the name of each label. Labels that users write as strings or as large numbers stay names.
        groups: the group of each *class* (an alphabet, the folder of a task), for streams of one task a group.
        sample_groups: the group of each *sample*, in place of `groups`, where a class lies in several.
        paths: the file of each sample, where samples are files; of a text its file and its line there.
        prepared: how each sample was made from an image; None where it was not, or nobody noted it.
        texts: each sample as a text, where samples are texts, whose lengths differ: a batch has that of its longest.

    Attributes:
        transform: applied to each sample when it is read, an `Augmentation` before bytes become floats; `plain` is the
            view without it.
        seed: a transform draws from torch's default generator as it and the sample's position decide; None: goes on.
        indices: which of the samples this view holds, in its order.
        within: of boolean labels, (len(class_names),) which classes this view is about; else None.
    """

    def __init__(
        self,
        samples: Tensor | Sequence[Tensor],
        labels: Tensor,
        class_names: Sequence[str],
        *,
        groups: Sequence[str] | None = None,
        sample_groups: Sequence[str] | None = None,
        paths: Sequence[str] | None = None,
        prepared: Preparation | None = None,
        texts: Sequence[str] | None = None,
    ):
        labels = torch.as_tensor(labels)
        if len(labels) != len(samples):
            raise ValueError(f"{len(samples)} samples, but {len(labels)} labels")
        _check_groups(groups, sample_groups, len(class_names), len(labels))
        several = labels.dtype == torch.bool
        self.samples = samples
        self.class_names = tuple(class_names)
        self.groups = None if groups is None else tuple(groups)
        self.transform: Transform | None = None
        self.seed: int | None = None
        self.indices = torch.arange(len(labels))
        self.within = torch.ones(len(class_names), dtype=torch.bool) if several else None
        self._all_labels = labels if several else labels.to(torch.int64)
        self._labels = self._all_labels
        self._all_paths = paths
        self.prepared = prepared
        self._all_texts = texts
        self._group_names = tuple(dict.fromkeys(sample_groups or ()))
        self._all_groups = None if sample_groups is None else _positions_in(self._group_names, sample_groups)
        _check_labels(self._all_labels, len(class_names))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int | Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(position, int):
            return self.__getitems__(position)
        (sample,), labels = self._read([position]), self._labels[position]
        return sample, labels if self.within is None else labels & self.within

    def __getitems__(self, positions: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """The batch (samples (b, ...), labels (b,)) at these positions; a DataLoader calls this once a batch."""
        positions = torch.as_tensor(positions, dtype=torch.int64)
        labels = self._labels[positions]
        return self._read(positions.tolist()), labels if self.within is None else labels & self.within

    def _read(self, positions: Sequence[int]) -> Tensor:
        """The samples at these positions, bytes as floats only once they lie together, which is faster."""
        if isinstance(self.samples, Tensor) and self.transform is None:
            return _as_float(self.samples[self.indices[list(positions)]])
        # first all of them, and then their transforms: by turns these and the decoder take a third longer
        read = [self.samples[index] for index in self.indices[list(positions)].tolist()]
        if self.transform is not None:
            state = torch.get_rng_state()
            read = [self._transformed(self.transform, *each) for each in zip(read, positions, strict=True)]
            if self.seed is not None:
                torch.set_rng_state(state)
        return _as_float(torch.stack(read if self._all_texts is None else _as_long_as_the_longest(read)))

    def _transformed(self, transform: Transform, sample: Tensor, position: int) -> Tensor:
        if self.seed is not None:  # the CPU's generator alone: torch.manual_seed would seed GPUs, too
            torch.default_generator.manual_seed(zlib.crc32(f"{self.seed} {position}".encode()))
        sample = sample.clone()  # what reads it may change it
        return transform(sample if isinstance(transform, Augmentation) else _as_float(sample))

    @property
    def labels(self) -> Tensor:
        """(n,) the label of each sample; or (n, classes) which of the view's own classes it is of."""
        return self._labels if self.within is None else self._labels & self.within

    @property
    def truth(self) -> Tensor:
        """As `labels`, of all classes, those that the view does not tell of included."""
        return self._labels

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that occur in this view, ascending."""
        if self.within is not None:
            return tuple(self.labels.any(dim=0).nonzero().flatten().tolist())
        return tuple(self.labels.unique().tolist())

    @property
    def members(self) -> dict[str, tuple[int, ...]] | None:
        """group -> the labels, ascending, that have samples in it; None where there are no groups."""
        found: dict[str, list[int]] = {}
        if self.groups is not None:
            for label in self.classes:
                found.setdefault(self.groups[label], []).append(label)
        elif self._all_groups is None:
            return None
        else:
            pairs = torch.stack([self._labels, self._all_groups[self.indices]], dim=1).unique(dim=0)
            for label, group in pairs.tolist():
                found.setdefault(self._group_names[group], []).append(label)
        return {group: tuple(labels) for group, labels in found.items()}

    def cells(self) -> list[tuple[int, str, Tensor]]:
        """(label, group, positions) of the samples of each class, in each group that it lies in; without any in ""."""
        names = self._group_names or ("",)
        of = self._labels
        if self._all_groups is not None:
            of = of * len(names) + self._all_groups[self.indices]
        order = of.argsort(stable=True)
        values, counts = of[order].unique_consecutive(return_counts=True)
        parts = zip(values.tolist(), order.split(counts.tolist()), strict=True)
        return [(value // len(names), names[value % len(names)], positions) for value, positions in parts]

    @property
    def paths(self) -> tuple[str, ...] | None:
        """The file of each sample of this view; None where samples are no files."""
        all_paths = self._all_paths
        return None if all_paths is None else tuple(all_paths[int(i)] for i in self.indices)

    @property
    def texts(self) -> tuple[str, ...] | None:
        """Each sample of this view as a text; None where samples are no texts."""
        all_texts = self._all_texts
        return None if all_texts is None else tuple(all_texts[int(i)] for i in self.indices)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample; () for texts, whose lengths differ."""
        if not len(self):
            raise ValueError("an empty data set has no sample whose shape could be told")
        if self._all_texts is not None:
            return ()
        return tuple(self[0][0].shape)

    def subset(self, positions: Tensor | Sequence[int]) -> LabelledDataset:
        """The view of the samples at these positions."""
        return self._view(self.indices[torch.as_tensor(positions, dtype=torch.int64)], self.transform)

    def of_classes(self, classes: Sequence[int]) -> LabelledDataset:
        """The view of the samples that are of one of these classes."""
        chosen = torch.as_tensor(classes, dtype=torch.int64)
        if self.within is None:
            return self.subset(torch.isin(self.labels, chosen).nonzero().flatten())
        about = self.about(classes)
        return about.subset(about.labels.any(dim=1).nonzero().flatten())

    def of_groups(self, groups: Sequence[str]) -> LabelledDataset:
        """The view of the samples that lie in one of these groups; as it is where samples have none of their own."""
        if self._all_groups is None:
            return self
        chosen = torch.tensor([number for number, name in enumerate(self._group_names) if name in groups])
        return self.subset(torch.isin(self._all_groups[self.indices], chosen).nonzero().flatten())

    def about(self, classes: Sequence[int]) -> LabelledDataset:
        """The view of the same samples whose boolean labels tell of these classes only."""
        assert self.within is not None, "a sample of one class cannot be without it"
        within = torch.zeros_like(self.within).index_fill(0, torch.as_tensor(classes, dtype=torch.int64), True)
        return self._view(self.indices, self.transform, self.within & within)

    def plain(self) -> LabelledDataset:
        """The same samples without augmentation."""
        return self._view(self.indices, None)

    def with_transform(self, transform: Transform | None, *, seed: int | None = None) -> LabelledDataset:
        """The same samples, read through `transform`, which draws by this seed."""
        return self._view(self.indices, transform, seed=seed)

    def with_samples(self, samples: Tensor | Sequence[Tensor]) -> LabelledDataset:
        """The same view of other samples, one for each that there is: texts as a model reads them."""
        assert len(samples) == len(self._all_labels)
        view = copy(self)
        view.samples = samples
        return view

    def _view(
        self, indices: Tensor, transform: Transform | None, within: Tensor | None = None, *, seed: int | None = None
    ) -> LabelledDataset:
        view = copy(self)
        view.indices, view.transform, view.seed, view._labels = indices, transform, seed, self._all_labels[indices]
        view.within = self.within if within is None else within
        return view

    def loader(
        self,
        batch_size: int = 256,
        *,
        batches: Sequence[Sequence[int]] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> DataLoader:
        """Batches `(samples, labels)`: those of `batches` if given, else all samples in order.

        What a transform draws is repeatable with a seed, with any number of workers.
        """
        if batches is None:
            batches = [list(range(i, min(i + batch_size, len(self)))) for i in range(0, len(self), batch_size)]
        return DataLoader(
            self if seed is None else self.with_transform(self.transform, seed=seed),
            batch_sampler=[list(batch) for batch in batches],
            collate_fn=tuple,  # a batch is read whole
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=None if seed is None else torch.Generator().manual_seed(seed),
        )


def concatenate(datasets: Sequence[LabelledDataset]) -> LabelledDataset:
    """One data set of all, in order, where all are views of the same samples.

    A sample that is in several, each with classes of its own, is there once, where it was first, with all of these.

    Raises:
        ValueError: if they are not, or if there is none.
    """
    if not datasets:
        raise ValueError("concatenate needs at least one data set")
    first = datasets[0]
    if any(other.samples is not first.samples for other in datasets):
        raise ValueError("only views of the same samples can be concatenated")
    indices = torch.cat([dataset.indices for dataset in datasets])
    if first.within is None:
        return first._view(indices, first.transform)
    within = torch.stack([torch.as_tensor(dataset.within) for dataset in datasets]).any(dim=0)
    return first._view(torch.tensor(list(dict.fromkeys(indices.tolist()))), first.transform, within)


def _check_groups(of_classes: Sequence | None, of_samples: Sequence | None, classes: int, samples: int) -> None:
    if of_classes is not None and len(of_classes) != classes:
        raise ValueError(f"groups name one group for each of the {classes} classes, got {len(of_classes)}")
    if of_samples is not None and (of_classes is not None or len(of_samples) != samples):
        raise ValueError("sample_groups name one group for each sample, and take the place of groups")


def _positions_in(names: Sequence[str], chosen: Sequence[str]) -> Tensor:
    return torch.tensor(list(map({name: place for place, name in enumerate(names)}.__getitem__, chosen)))


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.dtype == torch.bool:
        if labels.shape[1:] != (num_classes,):
            raise ValueError(f"boolean labels must be (n, {num_classes}), one for each class name")
    elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), one for each class name")


def _as_float(samples: Tensor) -> Tensor:
    if samples.dtype == torch.int64:
        return samples  # ids of tokens
    return samples.float() / 255 if samples.dtype == torch.uint8 else samples.float()


def _as_long_as_the_longest(texts: Sequence[Tensor]) -> list[Tensor]:
    """Texts (2, length) with zeros at their ends."""
    longest = max(text.shape[1] for text in texts)
    return [functional.pad(text, (0, longest - text.shape[1])) for text in texts]
