"""Local importance: every layer by itself, with no gradient from above. On ReLU layers it is Hebb's rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from tripletmas.basics.distributed import together
from tripletmas.basics.weights import Params
from tripletmas.protection.batches import Forward
from tripletmas.protection.engine.per_sample import PerSampleGradients
from tripletmas.protection.replicas import as_one


def local_mas_importance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    relative: bool = False,
    forward: Forward | None = None,
    left_out: Sequence[str] = (),
) -> Params:
    """Omega of each layer by itself: (1/n) sum_k |d ||F_l(y_k)||^2 / d theta|, with y_k the layer's input.

    F_l is a linear or convolution layer with the activation that follows it, and with the batch norm in between: in
    eval mode that is a fixed scale and shift of each channel, measured as part of the layer (ours; the paper's networks
    have none). On a ReLU layer without batch norm it is Hebb's rule, 2 y_i y_j: what goes in times what comes out. No
    gradient passes from one layer to another, so it needs no backward pass through the model. The absolute value is
    taken per sample, as in `mas_importance`; it matters where inputs or outputs are signed. Of several processes it is
    the mean over the samples of all, as there.

    Args:
        batches: any iterable of tensors, (inputs, labels, ...) tuples or dicts.
        relative: divide each layer's importance by the mean squared length of that layer's own output. This is ours.
        forward: how to call the model on a batch, (model, batch) -> a tensor with one row a sample.
        left_out: names of modules or parameters that get no importance, and so no protection.

    Returns:
        Importance >= 0 of every trainable parameter that is not left out, in its shape, by canonical name.

    Raises:
        ValueError: for layers of other kinds that are not left out, by name; and as `mas_importance` says.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, the local version (l-MAS). The authors' code has none.

    >>> import torch
    >>> layer = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    >>> _ = nn.init.constant_(layer[0].weight, 3.0)       # 2 y_i y_j = 2 (3 x) x = 6 x^2
    >>> local_mas_importance(layer, [torch.tensor([[1.0], [2.0]])])["0.weight"].item()
    15.0
    """
    with as_one(model) as spread:
        with together("measuring importance"):
            engine = PerSampleGradients(model, None, forward=forward, left_out=left_out)
            engine.update(batches)
        sums, num_samples, lengths = engine.finished()
    importance = {name: total / num_samples for name, total in sums.items()}
    if not any(bool(value.any()) for value in importance.values()):
        raise ValueError("the local importance is zero everywhere: every layer's output is zero on these data")
    if not relative:
        return spread(importance)
    for name, value in importance.items():
        # a layer that is used several times has the length of all its outputs together
        own = sum(length for names, length in lengths.items() if name in names)
        if own > 0:
            importance[name] = value * (num_samples / own)
    return spread(importance)
