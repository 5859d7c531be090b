"""Layers by themselves: a linear or convolution layer with the batch norm and the activation that follow it.

The graph is cut before each layer: the gradient of its weights comes from its own output and from nothing above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine.convolution import Convolution
from tripletmas.protection.engine.layout import Layout
from tripletmas.protection.engine.rule import Rule
from tripletmas.protection.engine.rules import Linear, MatMul

_NAMES = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign"),
    *("sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "logsigmoid", "threshold", "rrelu", "softshrink"),
    *("hardshrink", "tanhshrink", "clamp", "clamp_min", "clip"),
)
ACTIVATIONS = {
    getattr(place, name + ending, None) for place in (F, torch, Tensor) for name in _NAMES for ending in ("", "_")
} - {None}


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
        self._ending: dict[int, int] = {}  # id of a tensor with which a layer ends so far -> the layer
        self._versions: dict[int, int] = {}  # of those tensors, when the layer ended with them
        self._inner: dict[int, int] = {}  # id of one that went into its batch norm or activation -> the layer
        self._kept: list[Tensor] = []  # so that no id is used twice

    def squared_lengths(self) -> Tensor:
        """Of each sample's output of each layer, (n, layers)."""
        return torch.stack(self._lengths, dim=1) if self._lengths else torch.zeros(self._num_samples, 0)

    def enter(self, function: Callable, rule: Rule) -> bool:
        """Cut the graph before a layer; False for what is none."""
        if isinstance(rule, (Linear, MatMul, Convolution)):
            rule.input = rule.input.detach()
            return True
        return function is F.batch_norm and id(rule.input) in self._ending

    def leave(self, rule: Rule, names: tuple[str, ...], output: Tensor, layout: Layout) -> None:
        """The output of a layer, or of its batch norm."""
        layer = self._ending.get(id(rule.input))
        if layer is None:
            layer = len(self.parameters)
            self.parameters.append(set())
            self._lengths.append(output)
            self._layouts.append(layout)
            self._end(layer, output)
        else:
            self._extend(layer, rule.input, output)
        self.parameters[layer] |= set(names)

    def passed(self, function: Callable, args: tuple, output: Any) -> None:
        """A call without weights: an activation belongs to the layer before it."""
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if function in ACTIVATIONS and isinstance(output, Tensor):
            if id(source) in self._ending:
                self._extend(self._ending[id(source)], args[0], output)
            elif id(source) in self._inner:
                self.ambiguous |= self.parameters[self._inner[id(source)]]
        elif source is None or id(source) not in self._ending:
            return
        elif source._version != self._versions[id(source)]:
            del self._ending[id(source)]  # changed in place, as by a residual connection: no longer the layer's own
        elif _is_alias(output, source):
            self._ending[id(output)] = self._ending[id(source)]  # as dropout and contiguous() may return it
            self._versions[id(output)] = output._version
            self._kept.append(output)

    def _extend(self, layer: int, source: Tensor, output: Tensor) -> None:
        del self._ending[id(source)]
        if output is not source:
            self._inner[id(source)] = layer
        self._end(layer, output)

    def _end(self, layer: int, output: Tensor) -> None:
        self._ending[id(output)] = layer
        self._versions[id(output)] = output._version
        self._kept.append(output)
        # of a copy: what comes next may change the output in place
        by_sample = self._layouts[layer].by_sample(output.clone(), self._num_samples)
        self._lengths[layer] = by_sample.flatten(1).square().sum(1)


def _is_alias(output: Any, source: Tensor) -> bool:
    if not isinstance(output, Tensor) or output is source or output.shape != source.shape:
        return False
    return output.data_ptr() == source.data_ptr() and output.stride() == source.stride()
