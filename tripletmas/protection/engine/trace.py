"""Hand the gradients of a watched forward pass to rules.

Where a rule applies, the function gets the weight without its graph, and the gradient with respect to what it returns
goes to the rule. A weight that autograd still reaches from the output was used, if only in one place, in a way for
which there is no rule: the caller looks for such weights in the graph and measures them in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tripletmas.basics.weights import read_off
from tripletmas.protection.engine.blocks import Blocks
from tripletmas.protection.engine.kinds import Copies, Linear
from tripletmas.protection.engine.rule import Layout, Rule, is_near, layouts_by_shape
from tripletmas.protection.engine.rules import RULES
from tripletmas.protection.engine.watch import EXPANDING, Call, Watch, Weight, tensors_in

_ELEMENTWISE = ("add", "sub", "mul", "div", "true_divide", "maximum", "minimum", "where", "addcmul", "lerp", "pow")
_OPERATORS = ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv")
_BROADCASTING = {
    *(getattr(torch, name) for name in _ELEMENTWISE),
    *(getattr(Tensor, method, None) for name in _ELEMENTWISE for method in (name, f"{name}_")),
    *(getattr(Tensor, f"__{name}__", None) for name in _OPERATORS),
} - {None}


class Use(NamedTuple):
    """A call with a rule, its weights by role, and the samples' place in what it returned."""

    rule: Rule
    weights: dict[str, Weight]
    layout: Layout
    versions: list[tuple[Tensor, int]]  # the rule's input and weights, as they were when they were used


class Trace(Watch):
    """Connects the calls of a batch's forward pass with rules.

    Args:
        num_samples: samples in the batch.
        expected: the calls of its last sample alone; a batch of one needs none.
        read: what was read off that sample alone.
        blocks: to measure each layer by itself.

    Attributes:
        uses: calls with rules, by number.
        without_rule: names of parameters that were seen in a call without a rule.
        arrived: gets the number of a use and the gradient with respect to its output, when the outputs of the model
            are differentiated with respect to all leaves of their graph.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        num_samples: int,
        expected: Sequence[Call],
        read: Sequence[bool | int | float],
        blocks: Blocks | None,
    ):
        super().__init__(model, parameters, unrolls=blocks is None)
        self.num_samples, self._expected, self._expected_read, self._blocks = num_samples, expected, read, blocks
        self.uses: dict[int, Use] = {}
        self.without_rule: set[str] = set()
        self.arrived: Callable[[int, Tensor], None] | None = None
        # what is computed from parameters alone, but for each sample: to the rest of the pass a weight, whose gradients
        # were handed to a rule where it was made
        self._made: dict[int, Tensor] = {}
        self._alone: Tensor | None = None  # what the present call returned for the last sample alone
        # whether a call returned that in the batch, too, and names of its parameters: looked at in the end, all at once
        self._near: list[tuple[Tensor, tuple[str, ...]]] = []
        self._as_expected = True
        self._anchor: Tensor | None = None  # a zero on which everything watched depends, so that its graph has a leaf
        self._handles: list[RemovableHandle] = []

    def weighted(self, call: Call, constant: bool, args: tuple, kwargs: dict) -> Any:
        number = len(self.calls)
        weights = filter(None, map(self._weight, tensors_in(args, kwargs)))
        names = {name for weight in weights for name in weight.parameters}
        self.calls.append(call._replace(parameters=tuple(sorted(names))))
        if self.num_samples > 1 and (number >= len(self._expected) or self._expected[number][:2] != call[:2]):
            self._as_expected = False
            return call.function(*args, **kwargs)
        self._alone = self._expected[number].alone if self.num_samples > 1 else None
        return self._constant(call, args, kwargs) if constant else self._used(call.function, args, kwargs)

    def _weight(self, tensor: Tensor) -> Weight | None:
        """The weight that this tensor is, if its gradients still have to be handed on."""
        return None if id(tensor) in self._made else self._weights.get(id(tensor))

    def _constant(self, call: Call, args: tuple, kwargs: dict) -> Any:
        if self._made.keys().isdisjoint(map(id, tensors_in(args, kwargs))):
            output = self._derived(call, args, kwargs)
            if self._alone is None or self._alone.shape == output.shape:
                return output
        # a constant was copied for each sample before weights were applied to it
        output = self._used(call.function, args, kwargs)
        for each in tensors_in((output,), {}):
            self._weights[id(each)] = Weight(each, call.parameters, False)
            self._made[id(each)] = each
        return output

    def _used(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        output = self._measured(function, args, kwargs) if self.calls[-1].parameters else None
        if output is None:
            self.without_rule.update(self.calls[-1].parameters)
            return function(*args, **kwargs)
        return output

    def passed(self, function: Callable, args: tuple, output: Any) -> None:
        if self._blocks is not None:
            self._blocks.passed(function, args, output)

    def ended(self) -> None:
        self._read_near()
        used = [each for use in self.uses.values() for each in use.versions]
        if any(tensor._version != version for tensor, version in used):
            self.not_by_rules = "an input or weight is changed in place after a layer used it"
        elif self.num_samples > 1 and self.read != self._expected_read:
            self.not_by_rules = "the model reads values off its data that are others for a sample alone"
        elif self.num_samples > 1 and not (self._as_expected and len(self.calls) == len(self._expected)):
            self.not_by_rules = "a batch is processed by other calls than a sample alone"

    def way(self) -> tuple:
        """Of this pass: what was read, what was called with which weights, and where the samples were."""
        calls = tuple(call[:2] for call in self.calls)
        return tuple(self.read), calls, tuple(use.layout for use in self.uses.values())

    def _read_near(self) -> None:
        """Take out what was not near to what it must be; all of it is waited for at once."""
        for is_right, (_, names) in zip(read_off([each for each, _ in self._near]), self._near, strict=True):
            self.without_rule.update(() if is_right else names)

    def close(self) -> None:
        """Let go of the graph: its hooks know this trace, which knows the graph; nobody else ends that circle."""
        for handle in self._handles:
            handle.remove()
        self.uses, self.arrived, self._blocks, self._near = {}, None, None, []
        self._weights, self._constants, self._made = {}, {}, {}

    # --- a call with weights: what it returns with its weights detached, and a rule to get the gradient; None without

    def _measured(self, function: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        if function in RULES:
            return self._by_rule(function, args, kwargs)
        if self._blocks is not None:
            return None
        if function in EXPANDING:
            return self._by_expanding(function, args, kwargs)
        return self._by_broadcasting(function, args, kwargs) if function in _BROADCASTING else None

    def _by_rule(self, function: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        rule = RULES[function](*args, **kwargs)
        if rule is None or self._weight(rule.input):
            return None
        weights = {role: weight for role, each in rule.weights.items() if (weight := self._weight(each))}
        if not weights:
            return None  # a weight in a role that is none for this rule
        instead = {id(weight.tensor): weight.tensor.detach() for weight in weights.values()}
        input = rule.input
        if self._blocks is not None and not self._blocks.enter(function, rule):
            return None
        _lay_out(rule)
        output = self._with_hook(_called(function, args, kwargs, instead | {id(input): rule.input}))
        layout = self._connect(output, [(output, rule, weights)])
        if layout is not None and self._blocks is not None:
            self._blocks.leave(rule, self.calls[-1].parameters, output, layout)
        return output

    def _with_hook(self, output: Tensor) -> Tensor:
        """The output as a tensor that can have a hook."""
        if output._is_view():  # as of older versions of torch: a change in place would lose the hook of a view
            output = torch.ops.aten._unsafe_view(output, output.shape)
        return output if output.requires_grad else output.add_(self._zero(output))

    def _by_expanding(self, function: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        weight = self._weight(args[0])
        if weight is None:
            return None
        output = function(args[0].detach() + self._zero(args[0]), *args[1:], **kwargs)
        self._connect(output, [(output, Copies(weight.tensor, output.shape), {"weight": weight})])
        return output

    def _by_broadcasting(self, function: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        tensors = list(tensors_in(args, kwargs))
        shape = torch.broadcast_shapes(*(each.shape for each in tensors))
        layout = next(iter(self._layouts(shape)), None)
        weights = {id(each): weight for each in tensors if (weight := self._weight(each))}
        rules = {key: Copies(weight.tensor, shape) for key, weight in weights.items()}
        if layout is None or not all(rule.accepts(layout) for rule in rules.values()):
            return None
        copies = {key: self._copied(weight.tensor, layout.dim, shape) for key, weight in weights.items()}
        output = _called(function, args, kwargs, copies)
        self._connect(output, [(copies[key], rules[key], {"weight": weight}) for key, weight in weights.items()])
        return output

    def _copied(self, tensor: Tensor, dim: int, shape: torch.Size) -> Tensor:
        """The tensor with as many dimensions as the shape, and as long as it along `dim`."""
        size = [1] * (len(shape) - tensor.ndim) + list(tensor.shape)
        size[dim] = shape[dim]
        return (tensor.detach() + self._zero(tensor)).expand(size)

    def _connect(self, output: Tensor, uses: list[tuple[Tensor, Rule, dict[str, Weight]]]) -> Layout | None:
        """Give rules the gradients with respect to tensors, where they know the samples' place in the output."""
        layout = self._layout(output)
        if layout is None or not all(rule.accepts(layout) for _, rule, _ in uses):
            self.without_rule.update(self.calls[-1].parameters)
            return None
        for tensor, rule, weights in uses:
            self._handles.append(tensor.register_hook(partial(self._arrive, len(self.uses))))
            used = (rule.input, *(weight.tensor for weight in weights.values()))
            self.uses[len(self.uses)] = Use(rule, weights, layout, [(each, each._version) for each in used])
        return layout

    def _arrive(self, use: int, grad: Tensor) -> None:
        if self.arrived is not None:
            self.arrived(use, grad)

    def _zero(self, like: Tensor) -> Tensor:
        if self._anchor is None:
            self._anchor = torch.zeros((), device=like.device, requires_grad=True)
        return self._anchor.to(like.dtype)

    def _layout(self, output: Tensor) -> Layout | None:
        """Where the samples are in what the present call returned: values tell in which order, and that the other
        samples have no influence on the last; None if nowhere, or if two orders are possible."""
        candidates, alone, n = self._layouts(output.shape), self._alone, self.num_samples
        if alone is not None:
            found = [each.by_sample(output.detach(), n)[-1] for each in candidates]
            near = [is_near(last, alone.movedim(each.dim, 0)) for each, last in zip(candidates, found, strict=True)]
            if len(candidates) == 1 and self._blocks is None:
                self._near.append((near[0], self.calls[-1].parameters))
            else:
                candidates = [each for each, is_it in zip(candidates, near, strict=True) if is_it]
        return candidates[0] if len(candidates) == 1 else None

    def _layouts(self, shape: torch.Size) -> list[Layout]:
        """Those in which a tensor of this shape may have the samples; all are along the same dimension."""
        if self.num_samples == 1:
            return [Layout(0)]
        return [] if self._alone is None else layouts_by_shape(self._alone.shape, shape, self.num_samples)


def _lay_out(rule: Rule) -> None:
    """With a weight that has no graph torch multiplies (positions, n, in), as a view, position by position: that takes
    twice as long as one product."""
    if isinstance(rule, Linear):
        rule.input = rule.input.contiguous()


def _called(function: Callable, args: tuple, kwargs: dict, instead: dict[int, Tensor]) -> Tensor:
    """The call with other tensors in place of some of its arguments, by id."""
    others = {name: instead.get(id(each), each) for name, each in kwargs.items()}
    return function(*(instead.get(id(each), each) for each in args), **others)
