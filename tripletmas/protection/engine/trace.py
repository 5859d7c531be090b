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
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tripletmas.protection.engine.blocks import Blocks
from tripletmas.protection.engine.rule import Layout, Rule, find_layout, layouts_by_shape
from tripletmas.protection.engine.rules import RULES, Copies
from tripletmas.protection.engine.watch import EXPANDING, Call, Watch, Weight, tensors_in

_ELEMENTWISE = ("add", "sub", "mul", "div", "true_divide", "maximum", "minimum", "where", "addcmul", "lerp", "pow")
_OPERATORS = ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv")
_BROADCASTING = {
    *(getattr(torch, name) for name in _ELEMENTWISE),
    *(getattr(Tensor, method, None) for name in _ELEMENTWISE for method in (name, f"{name}_")),
    *(getattr(Tensor, f"__{name}__", None) for name in _OPERATORS),
} - {None}


class Use(NamedTuple):
    """A call with a rule, and its weights by role."""

    rule: Rule
    weights: dict[str, Weight]
    versions: list[int]  # of the rule's input and weights when they were used

    def is_changed(self) -> bool:
        return _versions(self.rule, self.weights) != self.versions


class Trace(Watch):
    """Connects the calls of a batch's forward pass with rules.

    Args:
        num_samples: samples in the batch.
        expected: the calls of one of its samples alone; a batch of one needs none.
        sample: the number of that one sample in the batch.
        blocks: to measure each layer by itself.

    Attributes:
        uses: calls with rules, by number.
        without_rule: names of parameters that were seen in a call without a rule.
        anchor: a zero on which everything watched depends: to differentiate with respect to it calls `arrived`.
        arrived: gets the number of a use, its layout, and the gradient with respect to its output.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        constants: Sequence[Tensor],
        num_samples: int,
        expected: Sequence[Call],
        sample: int,
        blocks: Blocks | None = None,
    ):
        super().__init__(parameters, constants)
        self._as_expected = True
        self.without_rule: set[str] = set()
        self.uses: dict[int, Use] = {}
        self.anchor: Tensor | None = None
        self.arrived: Callable[[int, Layout, Tensor], None] = _nothing
        self.num_samples, self.sample, self._expected = num_samples, sample, expected
        self._blocks = blocks
        self._handles: list[RemovableHandle] = []

    def weighted(self, call: Call, constant: bool, args: tuple, kwargs: dict) -> Any:
        number = len(self.calls)
        self.calls.append(call)
        if self.num_samples > 1 and (number >= len(self._expected) or self._expected[number][:2] != call[:2]):
            self._as_expected = False
            return call.function(*args, **kwargs)
        if constant:
            return self._derived(call, args, kwargs)
        output = self._measured(call.function, args, kwargs)
        if output is None:
            self.without_rule.update(call.parameters)
            return call.function(*args, **kwargs)
        return output

    def passed(self, function: Callable, args: tuple, output: Any) -> None:
        if self._blocks is not None:
            self._blocks.passed(function, args, output)

    def close(self) -> None:
        """Let go of the graph: its hooks know this trace, which knows the graph; nobody else ends that circle."""
        for handle in self._handles:
            handle.remove()
        self.uses, self.arrived, self._blocks = {}, _nothing, None
        self._weights, self._constants = {}, {}

    def has_expected_calls(self) -> bool:
        """Whether the calls were those of a sample alone; if not, this pass says nothing."""
        return self.num_samples == 1 or (self._as_expected and len(self.calls) == len(self._expected))

    def inputs_changed(self) -> bool:
        """Whether an input or weight was changed in place after its layer used it, so that its rule has lost it."""
        return any(use.is_changed() for use in self.uses.values())

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
        if rule is None or id(rule.input) in self._weights:
            return None
        weights = {role: self._weights[id(each)] for role, each in rule.weights.items() if id(each) in self._weights}
        if not weights:
            return None  # a weight in a role that is none for this rule
        instead = {id(weight.tensor): weight.tensor.detach() for weight in weights.values()}
        if self._blocks is not None:
            whole = rule.input
            if not self._blocks.enter(function, rule):
                return None
            instead[id(whole)] = rule.input
        output = _called(function, args, kwargs, instead)
        if output._is_view():  # as of older versions of torch: a change in place would lose the hook of a view
            output = torch.ops.aten._unsafe_view(output, output.shape)
        if not output.requires_grad:
            output = output.add_(self._zero(output))
        layout = self._connect(output, [(output, rule, weights)])
        if layout is not None and self._blocks is not None:
            self._blocks.leave(rule, self.calls[-1].parameters, output, layout)
        return output

    def _by_expanding(self, function: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        weight = self._weights.get(id(args[0]))
        if weight is None:
            return None
        output = function(args[0].detach() + self._zero(args[0]), *args[1:], **kwargs)
        self._connect(output, [(output, Copies(weight.tensor, output.shape), {"weight": weight})])
        return output

    def _by_broadcasting(self, function: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        tensors = list(tensors_in(args, kwargs))
        shape = torch.broadcast_shapes(*(each.shape for each in tensors))
        layout = self._layout_by_shape(shape)
        weights = {id(each): self._weights[id(each)] for each in tensors if id(each) in self._weights}
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
            self._handles.append(tensor.register_hook(partial(self._grad_of, len(self.uses), layout)))
            self.uses[len(self.uses)] = Use(rule, weights, _versions(rule, weights))
        return layout

    def _grad_of(self, use: int, layout: Layout, grad: Tensor) -> None:
        self.arrived(use, layout, grad)

    def _zero(self, like: Tensor) -> Tensor:
        if self.anchor is None:
            self.anchor = torch.zeros((), device=like.device, requires_grad=True)
        return self.anchor.to(like.dtype)

    def _layout(self, output: Tensor) -> Layout | None:
        if self.num_samples == 1:
            return Layout(0)
        alone = self._expected[len(self.calls) - 1].alone
        return None if alone is None else find_layout(alone, output.detach(), self.num_samples, self.sample)

    def _layout_by_shape(self, shape: torch.Size) -> Layout | None:
        """One of those in which an output of this shape may be; all have the same dimension."""
        if self.num_samples == 1:
            return Layout(0)
        alone = self._expected[len(self.calls) - 1].alone
        return next(iter(layouts_by_shape(alone.shape, shape, self.num_samples)), None) if alone is not None else None


def _called(function: Callable, args: tuple, kwargs: dict, instead: dict[int, Tensor]) -> Tensor:
    """The call with other tensors in place of some of its arguments, by id."""
    others = {name: instead.get(id(each), each) for name, each in kwargs.items()}
    return function(*(instead.get(id(each), each) for each in args), **others)


def _versions(rule: Rule, weights: dict[str, Weight]) -> list[int]:
    return [rule.input._version, *(weight.tensor._version for weight in weights.values())]


def _nothing(use: int, layout: Layout, grad: Tensor) -> None:
    """What is done with a gradient before anybody wants it."""
