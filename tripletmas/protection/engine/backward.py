"""The backward pass of a watched batch: gradients of outputs go to the rules, and from there to the sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params
from tripletmas.protection.engine.accumulate import magnitude_
from tripletmas.protection.engine.layout import Layout
from tripletmas.protection.engine.trace import Trace, Weight


class Backward:
    """Adds |per-sample gradient|^power of the parameters that the trace has rules for to `totals`.

    Args:
        parameters: those to measure, by name; the trace may know more.
        check: the number of a sample whose gradients, of the sum of its scalars, are kept in `checked`.
    """

    def __init__(
        self,
        trace: Trace,
        parameters: Mapping[str, nn.Parameter],
        totals: Params,
        power: int,
        n: int,
        check: int | None = None,
    ):
        self._trace, self._parameters, self._totals, self._power, self._n = trace, parameters, totals, power, n
        self._check, self._is_last = check, False
        self.checked: Params = {}
        self._waiting: list[int] = []  # uses that have their gradient and wait for the other ones
        num_uses: dict[str, int] = {}
        computed_from: set[str] = set()
        for use in trace.uses:
            for weight in use.weights.values() if use is not None else ():
                for name in weight.parameters:
                    num_uses[name] = num_uses.get(name, 0) + 1
                    if not weight.is_parameter:
                        computed_from.add(name)
        # the gradients that one sample has through several uses are summed before the magnitude is taken
        self._several = {name for name in num_uses if num_uses[name] > 1 or name in computed_from} & parameters.keys()
        self._once = (num_uses.keys() & parameters.keys()) - self._several

    def run(self, scalars: Tensor, leaves: list[Tensor]) -> None:
        """Differentiate the scalars, (n, m), column by column, with respect to all leaves of their graph."""
        if not leaves:
            return
        self._trace.arrived = self._arrived
        columns = scalars.sum(0)
        for number, column in enumerate(columns):
            self._is_last = number + 1 == len(columns)
            torch.autograd.grad(column, leaves, retain_graph=not self._is_last)
            self._add_waiting()

    @torch.no_grad()
    def _arrived(self, number: int, layout: Layout, grad: Tensor) -> None:
        use = self._trace.uses[number]
        assert use is not None
        names = {role: weight.parameters for role, weight in use.weights.items()}
        once = [role for role in names if names[role][0] in self._once]
        several = any(name in self._several for each in names.values() for name in each)
        if not once and not several:
            return
        dtype = next(iter(use.weights.values())).tensor.dtype  # under an autocast of the model's own they may differ
        if use.rule.input.is_floating_point():
            use.rule.input = use.rule.input.to(dtype)
        use.rule.backward(grad.to(dtype), layout, self._n)
        for role in once:
            if self._check is not None:
                self._keep_checked(names[role][0], use.rule.of_sample(role, self._check))
            use.rule.add(role, self._totals[names[role][0]], self._power)
        if several:
            self._waiting.append(number)
        elif self._is_last:
            self._trace.uses[number] = None  # its tensors are not needed any longer

    @torch.no_grad()
    def _add_waiting(self) -> None:
        """Weights that are used twice, or through tensors computed from them: sample by sample, all uses together."""
        uses = [use for use in (self._trace.uses[number] for number in self._waiting) if use is not None]
        self._waiting = []
        applied = [
            (weight, role, use.rule)
            for use in uses
            for role, weight in use.weights.items()
            if any(name in self._several for name in weight.parameters)
        ]
        involved = {name for weight, _, _ in applied for name in weight.parameters}
        own = {name: torch.zeros_like(self._totals[name]) for name in self._parameters if name in involved}
        for sample in range(self._n if own else 0):
            for gradient in own.values():
                gradient.zero_()
            pairs = [(weight, rule.of_sample(role, sample)) for weight, role, rule in applied]
            for weight, gradient in pairs:
                if weight.is_parameter:
                    own[weight.parameters[0]] += gradient
            self._add_pulled(own, [pair for pair in pairs if not pair[0].is_parameter])
            for name in own.keys() & self._several:
                if sample == self._check:
                    self._keep_checked(name, own[name])
                self._totals[name] += magnitude_(own[name].clone(), self._power)

    def _keep_checked(self, name: str, gradient: Tensor) -> None:
        self.checked[name] = self.checked[name] + gradient if name in self.checked else gradient.clone()

    def _add_pulled(self, own: Params, pairs: list[tuple[Weight, Tensor]]) -> None:
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


def leaves_reached(scalars: Tensor) -> list[Tensor]:
    """The leaves of the graph of these scalars: all tensors with respect to which they can be differentiated."""
    seen: set[Any] = set()
    leaves: list[Tensor] = []
    waiting: list[Any] = [scalars.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting.extend(next_node for next_node, _ in node.next_functions)
    return leaves
