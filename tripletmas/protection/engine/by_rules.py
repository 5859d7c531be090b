"""The gradients of all samples of a batch at once, for weights with rules: watched, differentiated, checked.

The last sample of every batch is passed alone before the batch, to learn in which layout each layer sees the samples.
The first time that samples of a size, type and layout take a way through the model, and whenever one of these differs,
its gradients are compared with those of a pass that nobody watches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params, device_of, read_off
from tripletmas.protection.batches import Forward, apply, chosen, num_samples, rows
from tripletmas.protection.engine.blocks import Blocks
from tripletmas.protection.engine.kinds import Several
from tripletmas.protection.engine.rule import Rule, is_near, magnitude_
from tripletmas.protection.engine.trace import Trace
from tripletmas.protection.engine.watch import Call, Enough, Probe, Watch, Weight

Scalar = Callable[[Tensor], Tensor]  # the outputs of all samples (n, ...) -> (n, m), each row of its sample alone

# The activations of a batch that is differentiated at once stay below this many numbers; larger batches are parted.
_ACTIVATIONS = {"cpu": 2**28, "cuda": 2**31}
# A model may take so many ways through the samples of one batch (a mask that is all ones, or is not).
_MOST_WAYS = 8

# How far a sample's gradient may be from the one it has alone, relative to its own norm (a rounding error can switch a
# ReLU) and to the largest of all parameters: more is an error, and nobody's rounding.
_GRADIENT_TOLERANCE = {torch.float64: (1e-6, 1e-12), torch.float32: (2e-2, 1e-4)}


class Part(NamedTuple):
    """Samples of a batch, by number, that a model treats alike, and the calls of the last of them alone."""

    inputs: Any
    samples: Sequence[int]
    calls: list[Call]


class ByRules:
    """Adds |gradient|^power of every sample, of the parameters for which there are rules.

    Args:
        scalar: None measures each linear and convolution layer by itself: the squared length of its own output.

    Attributes:
        without_rule: names of the parameters that must be measured in another way -> why.
        lengths: for layers by themselves, the total squared length by the names of a layer's parameters.
    """

    def __init__(
        self, model: nn.Module, call: Forward, scalar: Scalar | None, power: int, parameters: dict[str, nn.Parameter]
    ):
        self.without_rule: dict[str, str] = {}
        self.lengths: dict[frozenset[str], float] = {}
        self._model, self._call, self._scalar, self._power = model, call, scalar, power
        self._parameters = parameters
        self._read: list[bool | int | float] = []  # off the sample that was passed alone last
        self._checked: set[tuple] = set()  # ways through the model on which gradients were found right

    def is_no_use(self) -> bool:
        return len(self.without_rule) == len(self._parameters)

    def parts(self, inputs: Any) -> Iterator[Part]:
        """Parts of a batch that are small enough, and whose samples are treated alike; each must be added at once."""
        for alike, calls in self._alike(inputs):
            n = len(alike)
            numbers = 2 * n * sum(call.alone.numel() for call in calls if call.alone is not None)
            most = _ACTIVATIONS.get(device_of(self._model).type, _ACTIVATIONS["cuda"])
            size = -(-n // max(1, min(-(-numbers // most), n // 2)))
            for start in range(0, n, size):
                samples = alike[start : start + size]
                yield Part(chosen(inputs, samples), samples, calls if size == n else self._probed(inputs, samples[-1]))

    def add(self, part: Part, totals: Params) -> Tensor | None:
        """totals[name] += sum_k |gradient_k|^power of the parameters with rules, for the samples of a part.

        Returns:
            The scalars of every sample, (n, m); None, and nothing added, if these samples cannot be measured so.
        """
        inputs, n = part.inputs, len(part.samples)
        if self.is_no_use() or (n == 1 and self._scalar is not None):  # a sample alone needs no rules
            return None
        blocks = Blocks(n) if self._scalar is None else None
        trace = Trace(self._model, self._parameters, n, part.calls, self._read, blocks)
        try:
            output = self._watched(trace, inputs)
            if output is None:
                return None
            alone = n == 1 or bool(is_near(output[-1:].detach(), self._alone))
            if not alone and bool(torch.isfinite(output).all()):
                return self._give_up("the samples of a batch influence each other")
            scalars = self._scalar(output) if self._scalar is not None else self._squared_lengths(trace, blocks)
            return self._differentiated(trace, scalars, rows(inputs, n - 1, n), totals)
        finally:
            trace.close()

    # --- the forward pass

    def _alike(self, inputs: Any) -> Iterator[tuple[list[int], list[Call]]]:
        """Samples for which the model takes the same way, and its calls: off each of them, alone, it reads the same
        values. All of a batch, if it reads none."""
        rest, known = list(range(num_samples(inputs))), {}
        for _ in range(_MOST_WAYS):
            calls = self._probed(inputs, rest[-1]) if len(rest) > 1 else []
            others = [each for each in rest[:-1] if calls and not self._reads_the_same(inputs, each, known)]
            yield [each for each in rest if each not in others], calls
            if not others:
                return
            rest = others
        self._give_up("the model reads values off its data, and most samples have their own")
        yield rest, []

    def _probed(self, inputs: Any, sample: int) -> list[Call]:
        """The calls that are given weights when this sample is passed alone; none if rules are no use."""
        if self.is_no_use():
            return []
        probe = self._probe()
        output = self._watched(probe, rows(inputs, sample, sample + 1))
        if output is None:
            return []
        self._alone, self._read = output.detach(), probe.read
        return probe.calls

    def _probe(self, stop_after: int | None = None) -> Probe:
        return Probe(self._model, self._parameters, unrolls=self._scalar is not None, stop_after=stop_after)

    def _reads_the_same(self, inputs: Any, sample: int, known: dict[int, list]) -> bool:
        """Whether the model reads the same values off a sample as off the one that was passed alone last.

        Args:
            known: what was read off samples, as far as they were looked at; more is added.
        """
        count = len(self._read)
        if len(known.setdefault(sample, [])) < count:
            probe = self._probe(stop_after=count)
            with suppress(Enough):
                self._watched(probe, rows(inputs, sample, sample + 1))
            known[sample] = probe.read
        return known[sample][:count] == self._read

    def _watched(self, watch: Watch, inputs: Any) -> Tensor | None:
        """The output of a watched forward pass; None if watching is no use."""
        try:
            with watch:
                output = self._call(self._model, inputs)
        except (ValueError, torch.OutOfMemoryError):
            raise  # our own words about the output; and no mistake
        except Exception as error:  # of any kind: if it is a mistake of the model's, the slow path shows it
            return self._give_up(f"watching it failed: {error}")
        watch.ended()
        return self._give_up(watch.not_by_rules) if watch.not_by_rules else output

    def _squared_lengths(self, trace: Trace, blocks: Blocks | None) -> Tensor:
        """Of all layers together, (n, 1)."""
        assert blocks is not None
        lengths = blocks.squared_lengths()
        for names, length in zip(blocks.parameters, lengths.detach().double().sum(0).tolist(), strict=True):
            self.lengths[frozenset(names)] = self.lengths.get(frozenset(names), 0.0) + length
        trace.without_rule |= blocks.ambiguous
        return lengths.sum(1, keepdim=True)

    def _give_up(self, reason: str) -> None:
        self.without_rule |= dict.fromkeys(self._parameters, reason)

    # --- the backward pass

    def _differentiated(self, trace: Trace, scalars: Tensor, last: Any, totals: Params) -> Tensor | None:
        leaves = _leaves_reached(scalars)
        self._note_without_rule(trace, {id(leaf) for leaf in leaves})
        ruled = {name: value for name, value in self._parameters.items() if name not in self.without_rule}
        way = (trace.way(), _form(last))
        if self._scalar is None or trace.num_samples == 1 or way in self._checked:
            Backward(trace, ruled, totals, self._power).run(scalars, leaves)
            return scalars.detach()
        own = {name: torch.zeros_like(totals[name]) for name in ruled}
        backward = Backward(trace, ruled, own, self._power, keep_last=True)
        backward.run(scalars, leaves)
        if not self._may_be_added(scalars, backward.last, ruled, last):
            return self._give_up("a sample has other gradients in a batch than alone")
        self._checked.add(way)
        for name, value in own.items():
            totals[name] += value
        return scalars.detach()

    def _may_be_added(self, scalars: Tensor, found: Params, ruled: dict[str, nn.Parameter], last: Any) -> bool:
        """The first time on this way: where gradients are not right, nothing may be added."""
        return not bool(torch.isfinite(scalars).all()) or self._is_right(found, ruled, last)

    def _note_without_rule(self, trace: Trace, reached: set[int]) -> None:
        for name, value in self._parameters.items():
            if name in trace.without_rule or id(value) in reached:
                self.without_rule.setdefault(name, "no rule for how it is used")

    def _is_right(self, found: Params, parameters: dict[str, nn.Parameter], last: Any) -> bool:
        """Whether these are the gradients that a sample has by itself, in a pass that nobody watches."""
        assert self._scalar is not None
        scalar = self._scalar(self._call(self._model, last)).sum()
        truth = _gradients(scalar, parameters)
        sizes = read_off([value.norm() for value in truth.values()])
        errors = read_off([(found.get(name, 0) - value).norm() for name, value in truth.items()])
        for value, size, error in zip(truth.values(), sizes, errors, strict=True):
            near, noise = _GRADIENT_TOLERANCE.get(value.dtype, _GRADIENT_TOLERANCE[torch.float32])
            if not error <= near * size + noise * max(sizes):  # nan is not right either
                return False
        return True


def _gradients(scalar: Tensor, parameters: dict[str, nn.Parameter]) -> Params:
    """Of a scalar by each of the parameters, dense; zeros where it does not depend on one."""
    if not parameters or not scalar.requires_grad:
        return {name: torch.zeros_like(value) for name, value in parameters.items()}
    found = torch.autograd.grad(scalar, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return {name: each.to_dense() for name, each in zip(parameters, found, strict=True)}


class Backward:
    """Adds |gradient|^power of every sample, of the parameters that a trace has rules for, to `totals`.

    Args:
        parameters: those to measure, by name; the trace may know more.
        keep_last: keep the last sample's gradients, of the sum of its scalars, in `last`.
    """

    def __init__(
        self, trace: Trace, parameters: dict[str, nn.Parameter], totals: Params, power: int, *, keep_last: bool = False
    ):
        self._trace, self._parameters, self._totals, self._power = trace, parameters, totals, power
        self.last: Params = {}
        self._keeps_last = keep_last
        self._is_last_column = False
        self._waiting: list[tuple[Weight, Rule, str]] = []  # with their gradient, until the other uses have theirs
        weights = [weight for use in trace.uses.values() for weight in use.weights.values()]
        # a weight that is computed from parameters counts as if it were used twice: see `_add_waiting`
        uses = Counter(name for each in weights for name in each.parameters * (1 if each.is_parameter else 2))
        self._once = {name for name in parameters if uses[name] == 1}
        self._several = {name for name in parameters if uses[name] > 1}

    def run(self, scalars: Tensor, leaves: list[Tensor]) -> None:
        """Differentiate the scalars, (n, m), column by column, with respect to all leaves of their graph."""
        if not leaves:
            return
        self._trace.arrived = self._arrived
        columns = scalars.sum(0)
        for number, column in enumerate(columns):
            self._is_last_column = number + 1 == len(columns)
            torch.autograd.grad(column, leaves, retain_graph=not self._is_last_column)
            self._add_waiting()

    @torch.no_grad()
    def _arrived(self, number: int, grad: Tensor) -> None:
        rule, weights, layout, _ = self._trace.uses[number]
        once = [role for role, weight in weights.items() if weight.parameters[0] in self._once]
        several = [role for role, weight in weights.items() if not self._several.isdisjoint(weight.parameters)]
        if not once and not several:
            return
        dtype = next(iter(weights.values())).tensor.dtype  # under an autocast of the model's own they may differ
        if rule.input.is_floating_point():
            rule.input = rule.input.to(dtype)
        rule.backward(grad.to(dtype), layout, self._trace.num_samples)
        for role in once:
            name = weights[role].parameters[0]
            if self._keeps_last:
                self._add_to_last(name, rule.of_sample(role, self._trace.num_samples - 1))
            rule.add(role, self._totals[name], self._power)
        self._waiting += [(weights[role], rule, role) for role in several]
        if self._is_last_column and not several:
            del self._trace.uses[number]  # its tensors are not needed any longer

    @torch.no_grad()
    def _add_waiting(self) -> None:
        """Weights that are used twice, or computed from parameters: sample by sample, the gradients of all uses are
        summed before the magnitude is taken."""
        waiting, self._waiting = self._waiting, []
        computed = {name for weight, _, _ in waiting if not weight.is_parameter for name in weight.parameters}
        uses: dict[str, list[tuple[Rule, str]]] = {}
        for weight, rule, role in waiting:
            if computed.isdisjoint(weight.parameters):
                uses.setdefault(weight.parameters[0], []).append((rule, role))
        for name, calls in uses.items():
            several = Several(calls, self._trace.num_samples)
            if self._keeps_last:
                self._add_to_last(name, several.of_sample("", self._trace.num_samples - 1))
            several.add("", self._totals[name], self._power)
        self._add_computed([each for each in waiting if not computed.isdisjoint(each[0].parameters)], computed)

    def _add_computed(self, waiting: list[tuple[Weight, Rule, str]], names: set[str]) -> None:
        """Parameters from which weights are computed: through what is computed, one sample after the other."""
        own = {name: torch.zeros_like(self._totals[name]) for name in self._parameters if name in names}
        if not own:
            return
        for sample in range(self._trace.num_samples):
            self._add_uses(own, [(weight, rule.of_sample(role, sample)) for weight, rule, role in waiting])
            for name, gradient in own.items():
                if self._keeps_last and sample == self._trace.num_samples - 1:
                    self._add_to_last(name, gradient)
                self._totals[name] += magnitude_(gradient, self._power)
                gradient.zero_()

    def _add_uses(self, own: Params, gradients: list[tuple[Weight, Tensor]]) -> None:
        """Add a sample's gradients with respect to weights to those of the parameters that these are or come from."""
        for weight, gradient in gradients:
            if weight.is_parameter:
                own[weight.parameters[0]] += gradient
        computed = [(weight.tensor, gradient) for weight, gradient in gradients if not weight.is_parameter]
        if not computed:
            return
        pulled = torch.autograd.grad(
            [tensor for tensor, _ in computed],
            [self._parameters[name] for name in own],
            [gradient.reshape(tensor.shape) for tensor, gradient in computed],
            retain_graph=True,
            materialize_grads=True,
        )
        for total, gradient in zip(own.values(), pulled, strict=True):
            total += gradient

    def _add_to_last(self, name: str, gradient: Tensor) -> None:
        self.last[name] = self.last[name] + gradient if name in self.last else gradient.clone()


def _form(sample: Any) -> tuple:
    """Of what a model is given for one sample: the sizes, types and layouts of its tensors."""
    found: list[tuple] = []
    apply(lambda tensor: found.append((tensor.shape, tensor.dtype, tensor.stride()[1:])) or tensor, sample)
    return tuple(found)


def _leaves_reached(scalars: Tensor) -> list[Tensor]:
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
