"""The backward pass of a watched batch: gradients of outputs go to the rules, and from there to the sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tripletmas.importance.accumulate import magnitude_
from tripletmas.importance.layout import Layout
from tripletmas.importance.trace import Trace
from tripletmas.params import Params


class Backward:
    """Adds |per-sample gradient|^power of the parameters that the trace has rules for to `totals`.

    Args:
        parameters: those to measure, by name; the trace may know more.
    """

    def __init__(self, trace: Trace, parameters: Mapping[str, nn.Parameter], totals: Params, power: int, n: int):
        self._trace, self._parameters, self._totals, self._power, self._n = trace, parameters, totals, power, n
        self._waiting: list[int] = []  # uses that have their gradient and wait for the other ones
        num_uses: dict[str, int] = {}
        computed_from: set[str] = set()
        for use in trace.uses:
            for weight in use.weights.values():
                for name in weight.parameters:
                    num_uses[name] = num_uses.get(name, 0) + 1
                    if not weight.is_parameter:
                        computed_from.add(name)
        # the gradients that one sample has through several uses are summed before the magnitude is taken
        self._summed = {name for name in num_uses if num_uses[name] > 1 or name in computed_from} & parameters.keys()
        self._direct = (num_uses.keys() & parameters.keys()) - self._summed

    def run(self, scalars: Tensor, others: list[nn.Parameter]) -> None:
        """Differentiate the scalars, (n, m), column by column.

        Args:
            others: leaves of the graph that the trace does not know: through them, too, gradients may come.
        """
        anchor = self._trace.anchor
        if anchor is None or not scalars.requires_grad:
            return
        self._trace.arrived = self._arrived
        columns = scalars.sum(0)
        for number, column in enumerate(columns):
            again = number + 1 < len(columns)
            torch.autograd.grad(column, [anchor, *others], retain_graph=again, allow_unused=True)
            self._add_summed()

    @torch.no_grad()
    def _arrived(self, number: int, layout: Layout, grad: Tensor) -> None:
        use = self._trace.uses[number]
        names = {role: weight.parameters for role, weight in use.weights.items()}
        direct = [role for role in names if names[role][0] in self._direct]
        summed = any(name in self._summed for each in names.values() for name in each)
        if direct or summed:
            use.rule.backward(grad, layout, self._n)
        for role in direct:
            use.rule.add(role, self._totals[names[role][0]], self._power)
        if summed:
            self._waiting.append(number)

    @torch.no_grad()
    def _add_summed(self) -> None:
        """Weights that are used twice, or through tensors computed from them: sample by sample, all uses together."""
        uses = [
            (weight, self._trace.uses[number].rule.each(role))
            for number in self._waiting
            for role, weight in self._trace.uses[number].weights.items()
            if any(name in self._summed for name in weight.parameters)
        ]
        self._waiting = []
        if not uses:
            return
        weights = [weight for weight, _ in uses]
        names = [name for name in self._parameters if any(name in weight.parameters for weight in weights)]
        own = {name: torch.zeros_like(self._totals[name]) for name in names}
        for gradients in zip(*(each for _, each in uses), strict=True):
            for gradient in own.values():
                gradient.zero_()
            for weight, gradient in zip(weights, gradients, strict=True):
                if weight.is_parameter:
                    own[weight.parameters[0]] += gradient
            self._add_pulled(own, [pair for pair in zip(weights, gradients, strict=True) if not pair[0].is_parameter])
            for name in own.keys() & self._summed:
                self._totals[name] += magnitude_(own[name].clone(), self._power)

    def _add_pulled(self, own: Params, pairs: list[Any]) -> None:
        """Through tensors that are computed from parameters, back to these."""
        if not pairs:
            return
        pulled = torch.autograd.grad(
            [weight.tensor for weight, _ in pairs],
            [self._parameters[name] for name in own],
            [gradient.reshape(weight.tensor.shape) for weight, gradient in pairs],
            retain_graph=True,
            allow_unused=True,
        )
        for name, gradient in zip(own, pulled, strict=True):
            if gradient is not None:
                own[name] += gradient


def leaves_reached(scalars: Tensor) -> set[int]:
    """The ids of the leaves of the graph of these scalars."""
    seen: set[Any] = set()
    leaves: set[int] = set()
    waiting: list[Any] = [scalars.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting.extend(next_node for next_node, _ in node.next_functions)
    return leaves
