"""Importance by Memory Aware Synapses: how much the length of the embedding reacts to every weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from tripletmas.basics.distributed import together
from tripletmas.basics.weights import Params
from tripletmas.protection.batches import Forward
from tripletmas.protection.importance.accumulator import ImportanceAccumulator
from tripletmas.protection.replicas import as_one


def mas_importance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    relative: bool = False,
    layer: str | None = None,
    forward: Forward | None = None,
    output: Literal["squared_length", "vector"] = "squared_length",
    approximate: Literal["batch"] | None = None,
) -> Params:
    """Omega = (1/n) sum_k |d ||F(x_k)||^2 / d theta|: squared length of the raw embedding F, absolute value per sample.

    The model is measured in eval mode, outside autocast, half-precision weights in float32, and left as it was; labels
    are ignored; neither the batch size nor a short last batch matters. Where F is multiplied by c, Omega is multiplied
    by c^2. It takes about one forward and one backward pass over the data; parameters that are used in a way for which
    there is no fast rule are as exact and slower, and the logger "tripletmas" says which.

    Of several processes each gives its own samples, and gets the mean over those of all: all must call, unless inside
    `tripletmas.alone()`. Samples that torch's DistributedSampler repeats at the end count once.

    Args:
        batches: any iterable of tensors, (inputs, labels, ...) tuples, dicts as the model's forward takes them or with
            one tensor under a usual name (image, pixel_values, data, ...), or lists of texts for a model that has a
            tokenizer.
        relative: divide by the mean squared length of the embeddings, so that the scale of F no longer matters and
            one strength means the same for all models. This is ours, not the paper's.
        layer: name of the submodule to measure in place of the model's output, for a model that ends in a
            normalisation: a normalised embedding has constant length, so nothing would be important. Sentence encoders
            are measured before theirs.
        forward: how to call the model on a batch, (model, batch) -> embeddings (n, dim). Without it the embedding is
            what the model returns, or what its name tells: sentence_embedding, image_embeds or text_embeds,
            pooler_output, logits.
        output: "vector" is the paper's first form, sum_i |d F_i(x_k) / d theta|, one backward pass for each output
            and no square (relative then divides by the root of the mean squared length). The paper found no
            significant difference.
        approximate: "batch" is |d sum_k ||F(x_k)||^2 / d theta| of each batch, divided by n: the absolute value after
            the sum, as the authors' code and most other public code have it. It depends on the batch size, and
            gradients of different samples cancel. Only for comparison with other people's numbers.

    Returns:
        Importance >= 0 of every trainable parameter, in its shape, by canonical name.

    Raises:
        ValueError: without any sample; with no trainable parameter; for an unknown layer; for an output that is no
            tensor of one row a sample; if it or a gradient is not finite; if nothing is important. The message says
            what to do.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, equation 2 with the squared l2 norm of the output. The
    authors' code takes the absolute value of a batch's summed gradient by default; the paper, and this, per sample.

    >>> import torch
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 3.0)          # d (w x)^2 / d w = 2 w x^2 = 6 x^2
    >>> mas_importance(layer, [torch.tensor([[1.0], [2.0]])])["weight"].item()
    15.0
    """
    with as_one(model) as spread:
        with together("measuring importance"):
            running = ImportanceAccumulator(
                model, relative=relative, layer=layer, forward=forward, output=output, approximate=approximate
            )
            running.update_all(batches)
        importance = running.importance()
    return spread(importance)
