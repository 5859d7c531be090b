"""Memory Aware Synapses, in its global and its local form."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from tripletmas.protection.batches import Forward
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.protection import MAS, LocalMAS, Protection
from tripletmas.strategies.consolidate import Consolidate


def mas(
    *,
    strength: float = 0.3,
    decay: float = 1.0,
    relative: bool = True,
    output: Literal["embedding", "logits", "parts"] = "embedding",
    batch_gradients: int | None = None,
) -> Consolidate:
    """Memory Aware Synapses: importance is how much the length of the output reacts to a weight, without labels.

    Penalty: strength * sum_i Omega_i (theta_i - theta*_i)^2, Omega = (1/n) sum_k |d ||F(x_k)||^2 / d theta|.
    Stores two copies of the weights; costs a forward and a backward pass over the data after each task.

    Args:
        strength: weight of the penalty; 0 is finetune.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.
        relative: measure importance relative to the mean squared length of the output, so that one strength
            suits all models; false is the unit of the paper.
        batch_gradients: take the magnitude of the summed gradient of so many samples, as most public code does, in
            place of each sample's; inexact, for comparison only. null is exact.
        output: what F is: the embedding; in recognition also the logits of the task's head, as in the paper; for facts
            also only those parts of the embedding (subject, predicate, object) that a fact of the image has.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018; the relative unit is ours.
    """
    if batch_gradients is None:
        return Consolidate(
            lambda model, forward: MAS(model, strength, decay=decay, relative=relative, forward=forward), output=output
        )

    def protect(model: nn.Module, forward: Forward | None) -> Protection:
        estimate = partial(mas_importance, relative=relative, forward=forward, approximate="batch")
        return Protection(model, strength=strength, decay=decay, estimate=estimate)

    return Consolidate(protect, output=output, batch_size=batch_gradients, shuffled=True)


def local_mas(
    *, strength: float = 0.3, decay: float = 1.0, relative: bool = True, left_out: tuple[str, ...] = ()
) -> Consolidate:
    """Local MAS: importance of each layer by itself, without a backward pass; on ReLU layers it is Hebb's rule.

    Penalty and memory are those of mas; costs a forward pass over the data after each task.

    Args:
        strength: weight of the penalty; 0 is finetune.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.
        relative: measure each layer's importance relative to the mean squared length of its own output.
        left_out: modules or parameters that are not protected; those of other kinds than linear and convolution
            layers, with their batch norm, have to be listed.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, the local version; the relative unit is ours.
    """
    return Consolidate(
        lambda model, _: LocalMAS(model, strength, decay=decay, relative=relative, left_out=left_out), try_first=True
    )
