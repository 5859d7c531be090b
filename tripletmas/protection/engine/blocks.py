"""Layers by themselves: a linear or convolution layer with the batch norm and the activation that follow it.

The graph is cut before each layer: the gradient of its weights comes from its own output and from nothing above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine.convolution import Convolution
from tripletmas.protection.engine.kinds import Linear
from tripletmas.protection.engine.rule import Layout, Rule

_NAMES = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign"),
    *("sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "logsigmoid", "threshold", "rrelu", "softshrink"),
    *("hardshrink", "tanhshrink", "clamp", "clamp_min", "clip"),
)
_ACTIVATIONS = {
    getattr(place, name + ending, None) for place in (F, torch, Tensor) for name in _NAMES for ending in ("", "_")
} - {None}


class _End(NamedTuple):
    """A tensor with which a layer ends so far, or ended before its batch norm or activation."""

    layer: int
    tensor: Tensor  # kept, so that no id is used twice
    version: int
    is_last: bool = True


class Blocks:
    """The layers of one forward pass.

    Attributes:
        parameters: names of the parameters of each layer.
        ambiguous: names of parameters of layers whose output goes into more than one activation.
    """

    def __init__(self, num_samples: int):
        self.parameters: list[set[str]] = []
        self.ambiguous: set[str] = set()
        self._num_samples = num_samples
        self._lengths: list[Tensor] = []
        self._layouts: list[Layout] = []
        self._ends: dict[int, _End] = {}  # by the id of the tensor

    def squared_lengths(self) -> Tensor:
        """Of each sample's output of each layer, (n, layers)."""
        return torch.stack(self._lengths, dim=1) if self._lengths else torch.zeros(self._num_samples, 0)

    def enter(self, function: Callable, rule: Rule) -> bool:
        """Cut the graph before a layer; False for what is none."""
        if isinstance(rule, (Linear, Convolution)):
            rule.input = rule.input.detach()
            return True
        return function is F.batch_norm and self._end_at(rule.input) is not None

    def leave(self, rule: Rule, names: tuple[str, ...], output: Tensor, layout: Layout) -> None:
        """The output of a layer, or of its batch norm."""
        end = self._end_at(rule.input)
        if end is None:
            self.parameters.append(set())
            self._lengths.append(output)
            self._layouts.append(layout)
            self._note(len(self.parameters) - 1, output)
        else:
            self._extend(end, output)
        self.parameters[-1 if end is None else end.layer] |= set(names)

    def passed(self, function: Callable, args: tuple, output: Any) -> None:
        """A call without weights: an activation belongs to the layer before it."""
        end = self._ends.get(id(args[0])) if args else None
        if end is None:
            return
        if function in _ACTIVATIONS and isinstance(output, Tensor):
            if end.is_last:
                self._extend(end, output)
            else:
                self.ambiguous |= self.parameters[end.layer]
        elif end.is_last and end.tensor._version != end.version:
            del self._ends[id(end.tensor)]  # changed in place, as by a residual connection: no longer the layer's own
        elif end.is_last and _is_alias(output, end.tensor):
            # as dropout and contiguous() may return it
            self._ends[id(output)] = _End(end.layer, output, output._version)

    def _end_at(self, tensor: Tensor) -> _End | None:
        end = self._ends.get(id(tensor))
        return end if end is not None and end.is_last else None

    def _extend(self, end: _End, output: Tensor) -> None:
        self._ends[id(end.tensor)] = end._replace(is_last=False)
        self._note(end.layer, output)

    def _note(self, layer: int, output: Tensor) -> None:
        self._ends[id(output)] = _End(layer, output, output._version)
        # of a copy: what comes next may change the output in place
        by_sample = self._layouts[layer].by_sample(output.clone(), self._num_samples)
        self._lengths[layer] = by_sample.flatten(1).square().sum(1)


def _is_alias(output: Any, source: Tensor) -> bool:
    if not isinstance(output, Tensor) or output is source or output.shape != source.shape:
        return False
    return output.data_ptr() == source.data_ptr() and output.stride() == source.stride()
