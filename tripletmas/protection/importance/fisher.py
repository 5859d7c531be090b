"""Fisher information of a classifier, exact per sample; and mean squared gradients, for losses that are no such sum.

Shapes: n samples, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tripletmas.basics.distributed import rank, sum_numbers, sum_over_ranks, together
from tripletmas.basics.weights import Params, unwrap
from tripletmas.protection.batches import (
    Forward,
    each_batch,
    each_placed_batch,
    measured_parameters,
    measuring,
    num_samples,
)
from tripletmas.protection.calling import ModelCall
from tripletmas.protection.engine.per_sample import PerSampleGradients
from tripletmas.protection.replicas import as_one

FisherLabels = Literal["sampled", "true", "all"]


def fisher_importance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    labels: FisherLabels = "sampled",
    forward: Forward | None = None,
    seed: int = 0,
) -> Params:
    """The diagonal of the Fisher information, (1/n) sum_k E_y[(d log p(y|x_k) / d theta)^2], p = softmax(logits).

    The square is taken per sample, so that neither the batch size nor a short last batch matters. The model is measured
    in eval mode, outside autocast, half-precision weights in float32, and left as it was. Of several processes it is
    the mean over the samples of all, as in `mas_importance`.

    Args:
        batches: any iterable of (inputs, labels, ...) tuples or of dicts with "labels"; without labels also of tensors.
        labels: how the expectation over y is taken. "sampled": one y for each sample, drawn from p(y|x_k); unbiased.
            "true": y is the label; this is the empirical Fisher, another quantity, which goes to 0 as the model fits
            the labels. "all": the expectation itself, one backward pass for each class.
        forward: how to call the model on a batch, (model, batch) -> logits (n, c).
        seed: of the draws; each sample, in order, has its own, so that they do not depend on the batch size either, nor
            on the number of processes where a DistributedSampler deals the samples out (else each has other draws).

    Returns:
        Importance >= 0 of every trainable parameter, in its shape, by canonical name.

    Raises:
        ValueError: without any sample; for labels that are missing or none of the classes; for an output that is not
            (n, c); if it or a gradient is not finite; if the information is zero everywhere.

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017; on "sampled" against
    "true", Kunstner et al., Limitations of the empirical Fisher approximation, NeurIPS 2019.

    >>> layer = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)                  # p = 1/2: d log p(y|x) / d w = (+-1/2) x
    >>> fisher_importance(layer, [torch.tensor([[2.0]])])["weight"].flatten().tolist()
    [1.0, 1.0]
    """
    if labels not in ("sampled", "true", "all"):
        raise ValueError(f"labels must be 'sampled', 'true' or 'all', got {labels!r}")
    logits_of = ModelCall(model, None, forward)
    num_classes: list[int] = []

    def log_probabilities(model: nn.Module, batch: Any) -> Tensor:
        """(n, c), or (n, 1) of the one class that was chosen for each sample."""
        inputs, choice = batch
        logits = logits_of(model, inputs)
        if logits.ndim != 2:
            raise ValueError(f"a classifier's logits must have shape (samples, classes), got {tuple(logits.shape)}")
        num_classes[:] = [logits.shape[1]]
        values = functional.log_softmax(logits, dim=1)
        if labels == "all":
            return values
        classes = choice if labels == "true" else _drawn(values.detach().exp(), choice)
        chosen = torch.arange(values.shape[1], device=values.device) == classes[:, None]
        # no index: one outside the classes cannot be told on a GPU, where it would end the process
        return torch.where(chosen, values, 0).sum(1, keepdim=True)

    def with_choices() -> Iterator[tuple[Any, Tensor]]:
        draws = _Draws(seed)
        for batch, places in each_placed_batch(batches):
            inputs = logits_of.inputs_of(batch)
            # where on [0, 1) its draw falls goes with a sample as its label would, however samples are batched
            choice = _labels_in(batch, "labels='true'") if labels == "true" else draws.of(num_samples(inputs), places)
            yield inputs, choice
            if labels == "true" and len(choice) and not 0 <= int(choice.min()) <= int(choice.max()) < num_classes[0]:
                raise ValueError(
                    f"labels must lie in [0, {num_classes[0]}), one for each logit, got "
                    f"{int(choice.min())} to {int(choice.max())}"
                )

    scalar = _square_roots if labels == "all" else lambda chosen: chosen
    with as_one(model) as spread:
        with together("measuring importance"):
            engine = PerSampleGradients(model, scalar, power=2, forward=log_probabilities)
            engine.update(with_choices())
        sums, count, _ = engine.finished()
    return spread(_not_zero({name: total / count for name, total in sums.items()}))


class _Draws:
    """Numbers on [0, 1), one for each sample: by its place in the data set, or in the order of this process."""

    def __init__(self, seed: int):
        self._seed = seed
        self._next = torch.Generator().manual_seed(seed + rank())
        self._by_place = torch.zeros(0)

    def of(self, count: int, places: range | None) -> Tensor:
        """Those of a batch's samples."""
        if places is None:
            return torch.rand(count, generator=self._next)
        if places[-1] >= len(self._by_place):  # more of the same numbers
            generator = torch.Generator().manual_seed(self._seed)
            self._by_place = torch.rand(2 * places[-1] + 1, generator=generator)
        return self._by_place[places.start : places.stop : places.step][:count]


def squared_gradient_importance(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> Params:
    """The mean over batches of the squared gradient of a batch's loss, (1/b) sum_B (d loss(B) / d theta)^2.

    For losses over pairs and triplets, which are no sum over samples. This is NOT the Fisher information: a metric loss
    is no log-likelihood, and gradients of pairs in one batch cancel, so the result depends on the batch size and on
    which samples share a batch. The model is measured as in `fisher_importance`, and left as it was; of several
    processes it is the mean over the batches of all.

    Args:
        batches: (inputs, labels), batched as the loss needs them.
        loss: (embeddings (n, dim), labels (n,)) -> scalar.

    Returns:
        Importance >= 0 of every trainable parameter, in its shape, by canonical name.

    Raises:
        ValueError: without any batch; with no trainable parameter; if a gradient is not finite; if all are zero.
    """
    model = unwrap(model)
    with as_one(model) as spread:
        with together("measuring importance"):
            totals, num_batches = _squared_gradients(model, batches, loss)
        num_batches = sum_numbers(batches=num_batches)["batches"]
        totals = sum_over_ranks(totals)
    if not num_batches:
        raise ValueError("importance needs at least one batch, and there was none")
    for name, total in totals.items():
        if not torch.isfinite(total).all():
            raise ValueError(f"the squared gradient of parameter {name!r} is not finite")
    return spread(_not_zero({name: total / num_batches for name, total in totals.items()}))


def _squared_gradients(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Params, int]:
    """Their sum over the batches of this process, and how many these are."""
    parameters, call = measured_parameters(model), ModelCall(model, None, None)
    totals = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for name, p in parameters.items()
    }
    num_batches = 0
    with measuring(model) as moved:
        for batch in each_batch(batches):
            embeddings = call(model, moved(call.inputs_of(batch)))
            value = loss(embeddings, _labels_in(batch, "a loss").to(embeddings.device))
            num_batches += 1
            if not value.requires_grad:  # no pair in this batch adds to the loss
                continue
            gradients = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
            for total, gradient in zip(totals.values(), gradients, strict=True):
                total += gradient.to_dense().square()
    return totals, num_batches


def _labels_in(batch: Any, what: str) -> Tensor:
    if isinstance(batch, Mapping):
        found = batch.get("labels", batch.get("label"))
    else:
        found = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(found, Tensor) or found.is_floating_point():
        raise ValueError(f"{what} needs batches (inputs, labels), or dicts with 'labels', of integer labels")
    return found


def _drawn(probabilities: Tensor, where: Tensor) -> Tensor:
    """The class of each row (n,), drawn from its probabilities (n, c), given where on [0, 1) each draw falls (n,)."""
    below = probabilities.cumsum(1) <= where[:, None]
    return below.sum(1).clamp(max=probabilities.shape[1] - 1)  # a sum may end below 1 by rounding


def _square_roots(log_probabilities: Tensor) -> Tensor:
    """Numbers whose squared gradients are p_y (d log p_y / d theta)^2."""
    return log_probabilities.detach().exp().sqrt() * log_probabilities


def _not_zero(importance: Params) -> Params:
    if not any(bool(value.any()) for value in importance.values()):
        raise ValueError(
            "the importance is zero everywhere: no weight changes the loss. A metric loss with a margin: every triplet "
            "or pair of this data satisfies it; take a larger margin, a loss without a hinge, or mas, which measures "
            "the embedding, not the loss. A classifier: it is saturated (every probability is 0 or 1); train it less"
        )
    return importance
