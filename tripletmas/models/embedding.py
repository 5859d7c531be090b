"""Embed a data set: raw embeddings with their labels, and no sample twice by the same weights.

Shapes: n samples, dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tripletmas.basics import distributed
from tripletmas.basics.progress import told
from tripletmas.basics.shares import share
from tripletmas.basics.weights import eval_mode, state_of, weight_hash
from tripletmas.data.dataset import LabelledDataset


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Raw embeddings of n samples, (n, dim) float32 on the CPU, all finite, and their labels.

    Labels are (n,) int64, or, where a sample can be of several classes, (n, classes) bool.
    """

    vectors: Tensor
    labels: Tensor

    def __post_init__(self):
        vectors, labels = self.vectors, self.labels
        if vectors.ndim != 2 or vectors.dtype != torch.float32 or vectors.device.type != "cpu":
            raise ValueError(
                "vectors must be float32 of shape (n, dim) on the CPU, "
                f"got {vectors.dtype} of {tuple(vectors.shape)} on {vectors.device}"
            )
        # No conversion: labels that went through a float on their way here may already have collided.
        one, several = labels.shape == vectors.shape[:1], labels.ndim == 2 and len(labels) == len(vectors)
        fits = (one and labels.dtype == torch.int64) or (several and labels.dtype == torch.bool)
        if not fits or labels.device.type != "cpu":
            raise ValueError(
                f"labels must be int64 of shape ({len(vectors)},) on the CPU, "
                f"got {labels.dtype} of {tuple(labels.shape)} on {labels.device}"
            )
        bad = (~vectors.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise ValueError(f"vectors must be finite; row {int(bad[0])} holds NaN or infinity")

    def __len__(self) -> int:
        return len(self.labels)


def embed(
    model: nn.Module,
    dataset: LabelledDataset,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> Embeddings:
    """The raw embeddings of all samples, in their order, by the model in eval mode.

    Samples are read as the data set gives them: a data set that augments is to be passed as `dataset.plain()`.
    Afterwards every submodule is back in the mode it was in.

    Args:
        device: where the samples are moved; the model is not moved. None: where the model's parameters are.
        progress: show a bar, if the output is a terminal.

    Raises:
        ValueError: naming the sample (and its file) whose embedding is not finite; if the data set is empty; if the
            model does not return one vector a sample.
    """
    if not len(dataset):
        raise ValueError("an empty data set has no embeddings")
    if device is None:
        first = next(model.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
    pieces, start, order = [], 0, _order(dataset)
    together = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches = dataset.loader(batches=together, num_workers=num_workers)
    bar = tqdm(batches, desc="embed", leave=False, disable=None if progress else True)
    with eval_mode(model):
        for samples, _ in told(bar, "embedded batch", len(batches)):
            with torch.inference_mode():
                vectors = model(samples.to(device))
            if vectors.ndim != 2 or len(vectors) != len(samples):
                raise ValueError(
                    f"the model must return embeddings of shape (batch, dim): for {len(samples)} samples "
                    f"it returned {tuple(vectors.shape)}"
                )
            pieces.append(vectors.to("cpu", torch.float32))
            bad = (~pieces[-1].isfinite().all(dim=1)).nonzero()
            if len(bad):
                sample = order[start + int(bad[0])]
                file = f" ({dataset.paths[sample]})" if dataset.paths is not None else ""
                raise ValueError(f"the embedding of sample {sample}{file} holds NaN or infinity")
            start += len(samples)
    vectors = torch.cat(pieces)
    return Embeddings(vectors if dataset.texts is None else vectors[torch.tensor(order).argsort()], dataset.labels)


def embed_shared(
    model: nn.Module, dataset: LabelledDataset, *, batch_size: int = 256, num_workers: int = 0, progress: bool = False
) -> Embeddings:
    """As `embed`, where several processes work together each its share of the samples; all have the result."""
    if not distributed.is_on() or not len(dataset):
        return embed(model, dataset, batch_size=batch_size, num_workers=num_workers, progress=progress)
    own = list(share(len(dataset)))
    with distributed.together("embedding"):
        part = dataset.subset(own or [0])  # without any, one shows how long an embedding is
        found = embed(model, part, batch_size=batch_size, num_workers=num_workers, progress=progress)
    return Embeddings(distributed.gather_rows(found.vectors[: len(own)]), dataset.labels)


def _order(dataset: LabelledDataset) -> list[int]:
    """In which samples are read: texts by their lengths, so that batches hold little that is no token (2.2 times as
    fast on questions of bank customers)."""
    texts = dataset.texts
    return list(range(len(dataset))) if texts is None else sorted(range(len(texts)), key=lambda i: len(texts[i]))


@dataclass(eq=False)
class Embedder:
    """`embed` with its options, which remembers what the present weights gave.

    What was embedded is kept until a model with other weights is asked; that they are the same is told by their hash,
    so nobody has to say when they changed. Data that augment are embedded anew each time.

    Args:
        batch_size: samples that are embedded at once.
        num_workers: processes that load samples; 0 loads in this one.
        progress: show a bar, if the output is a terminal.
    """

    batch_size: int = 256
    num_workers: int = 0
    progress: bool = False
    _weights: str = field(default="", init=False)
    _kept: dict[tuple[int, bytes], tuple[Any, Tensor]] = field(default_factory=dict, init=False)

    def __call__(self, model: nn.Module, dataset: LabelledDataset) -> Embeddings:
        """The raw embeddings of all samples, as `embed` gives them."""
        if dataset.transform is not None:
            return self._embed(model, dataset)
        weights = weight_hash(state_of(model))
        if weights != self._weights:
            self._weights, self._kept = weights, {}
        key = (id(dataset.samples), dataset.indices.numpy().tobytes())
        if key not in self._kept:
            # the samples are kept with it: as long as they are, no others have their id
            self._kept[key] = (dataset.samples, self._embed(model, dataset).vectors)
        return Embeddings(self._kept[key][1], dataset.labels)

    def _embed(self, model: nn.Module, dataset: LabelledDataset) -> Embeddings:
        return embed_shared(
            model, dataset, batch_size=self.batch_size, num_workers=self.num_workers, progress=self.progress
        )
