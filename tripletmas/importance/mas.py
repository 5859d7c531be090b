"""Importance by Memory Aware Synapses: how much the length of the embedding reacts to every weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from tripletmas.importance.per_sample import Forward, PerSampleSums, sum_absolute_gradients
from tripletmas.params import Params, trainable

# A length that does not depend on the weights: equal for all samples, and with gradients that are rounding noise.
_EQUAL_LENGTHS = 1e-4
_ROUNDING_NOISE = 1e-2


def mas_importance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    relative: bool = False,
    layer: str | None = None,
    forward: Forward | None = None,
) -> Params:
    """Omega = (1/n) sum_k |d ||F(x_k)||^2 / d theta|: squared length of the raw embedding F, absolute value per sample.

    The model is measured in eval mode and left as it was; labels are ignored; neither the batch size nor a short
    last batch matters. Where F is multiplied by c, Omega is multiplied by c^2.

    Args:
        batches: any iterable of tensors, (inputs, labels, ...) tuples or dicts.
        relative: divide by the mean squared length of the embeddings, so that the scale of F no longer matters and
            one strength means the same for all models. This is ours, not the paper's.
        layer: name of the submodule to measure in place of the model's output, for a model that ends in a
            normalisation: a normalised embedding has constant length, so nothing would be important.
        forward: how to call the model on a batch, (model, batch) -> embeddings (n, dim).

    Returns:
        Importance >= 0 of every trainable parameter, in its shape, by canonical name.

    Raises:
        ValueError: if nothing is important (the message names the cause), and as `sum_absolute_gradients` says.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, equation 2 with the squared l2 norm of the output. The
    authors' code takes the absolute value of a batch's summed gradient by default; the paper, and this, per sample.

    >>> import torch
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 3.0)          # d (w x)^2 / d w = 2 w x^2 = 6 x^2
    >>> mas_importance(layer, [torch.tensor([[1.0], [2.0]])])["weight"].item()
    15.0
    """
    sums = sum_absolute_gradients(model, batches, _squared_length, layer=layer, forward=forward)
    _refuse_constant_length(model, sums, layer)
    scale = 1 / sums.num_samples
    if relative:
        scale /= float(sums.values().mean())
    return {name: total * scale for name, total in sums.gradients.items()}


def _squared_length(embedding: Tensor) -> Tensor:
    return embedding.square().sum()


def _refuse_constant_length(model: nn.Module, sums: PerSampleSums, layer: str | None) -> None:
    lengths = sums.values()
    mean = float(lengths.mean())
    weights = trainable(model)
    # theta . d||F||^2/d theta is of the order of ||F||^2 itself unless F is normalised, when it is rounding noise
    reaction = sum(float((total * weights[name].detach().abs()).sum()) for name, total in sums.gradients.items())
    equal = float(lengths.max() - lengths.min()) <= _EQUAL_LENGTHS * mean
    if not any(bool(total.any()) for total in sums.gradients.values()) or (
        equal and reaction <= _ROUNDING_NOISE * mean * sums.num_samples
    ):
        measured = f"the output of layer {layer!r}" if layer else "the model's output"
        raise ValueError(
            f"the importance is zero everywhere: the length of {measured} ({mean**0.5:.4g}) does not depend on any "
            "weight. If it ends in a normalisation, measure before it: layer='NAME' of the last layer before the "
            "normalisation (see model.named_modules()). If the output is zero, the model has collapsed."
        )
