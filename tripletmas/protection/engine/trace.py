"""Watch a forward pass: which functions are given weights, and hand their gradients to rules.

Functions are watched, not modules: a weight is seen wherever it is used, in a module of the user's own, in a function,
or in two places. Where a rule applies, the function gets the weight without its graph, and the gradient with respect to
what it returns goes to the rule. A weight that autograd still reaches from the output was used, if only in one place,
in a way for which there is no rule: the caller looks for such weights in the graph and measures them in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from tripletmas.protection.engine.blocks import Blocks
from tripletmas.protection.engine.layout import Layout, find_layout, layouts_by_shape
from tripletmas.protection.engine.rules import RULES, Copies, Rule

_ELEMENTWISE = ("add", "sub", "mul", "div", "true_divide", "maximum", "minimum", "where", "addcmul", "lerp", "pow")
_OPERATORS = ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv")
BROADCASTING = {
    *(getattr(torch, name) for name in _ELEMENTWISE),
    *(getattr(Tensor, method, None) for name in _ELEMENTWISE for method in (name, f"{name}_")),
    *(getattr(Tensor, f"__{name}__", None) for name in _OPERATORS),
} - {None}
EXPANDING = {Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to, Tensor.repeat}
# Python values read off a tensor: what the model does next may depend on which samples are in the batch.
READING = {
    *(getattr(Tensor, f"__{name}__") for name in ("bool", "int", "float", "index", "contains")),
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, torch.equal, Tensor.equal, torch.is_nonzero),
    *(Tensor.is_nonzero, torch.allclose, Tensor.allclose),
    # the number of rows depends on values
    *(torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere, torch.masked_select, Tensor.masked_select),
    *(torch.unique, Tensor.unique, torch.unique_consecutive, Tensor.unique_consecutive, torch.bincount),
    Tensor.bincount,
}
# Gradients inside the forward pass would not see weights that were detached for a rule.
DIFFERENTIATING = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}


class Call(NamedTuple):
    """A call that was given weights.

    Attributes:
        parameters: names of those that its weights are, or are computed from.
        alone: what it returned for one sample alone, if that was a tensor.
    """

    function: Callable
    parameters: tuple[str, ...]
    alone: Tensor | None = None


class Weight(NamedTuple):
    """What a rule was given as a weight: a parameter, or a tensor that is computed from parameters alone."""

    tensor: Tensor
    parameters: tuple[str, ...]
    is_parameter: bool


class Use(NamedTuple):
    """A call with a rule, and its weights by role."""

    rule: Rule
    weights: dict[str, Weight]
    versions: list[int]  # of the rule's input and weights when they were used


class _Watch(TorchFunctionMode):
    """Finds the calls that are given weights.

    Args:
        parameters: the parameters that are measured, by name.
        constants: tensors that do not depend on the samples: all parameters and buffers.
    """

    def __init__(self, parameters: dict[str, Tensor], constants: Sequence[Tensor]):
        super().__init__()
        self.calls: list[Call] = []
        self.not_by_rules: str | None = None  # why no weight of this model can be measured by rules
        self._weights = {id(tensor): Weight(tensor, (name,), True) for name, tensor in parameters.items()}
        self._constants: dict[int, tuple[Tensor, int]] = {}  # with the version in which they are constant
        self._keep_constants(constants)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        tensors = list(_tensors(args, kwargs))
        weights = [self._weights[id(each)] for each in tensors if id(each) in self._weights]
        constant = all(id(each) in self._weights or self._is_constant(each) for each in tensors)
        if not weights or not torch.is_grad_enabled():
            output = func(*args, **kwargs)
            self.passed(func, args, output)
            if constant:
                self._keep_constants(_tensors((output,), {}))
            elif self._reads_data(func, args, tensors):
                self.not_by_rules = "the model reads values off its data, on which it may branch"
            elif func in DIFFERENTIATING:
                self.not_by_rules = "the model differentiates in its forward pass"
            return output
        if func in DIFFERENTIATING:
            self.not_by_rules = "the model differentiates in its forward pass"
        if _tensors_are_packed():
            self.not_by_rules = "saved tensors are packed or computed again (checkpointing)"
        call = Call(func, tuple(sorted({name for each in weights for name in each.parameters})))
        return self.weighted(call, constant and func not in EXPANDING, args, kwargs)

    def weighted(self, call: Call, constant: bool, args: tuple, kwargs: dict) -> Any:
        """A call with weights; `constant`: it has no other arguments that may depend on the samples."""
        raise NotImplementedError

    def passed(self, function: Callable, args: tuple, output: Any) -> None:
        """A call without weights was made."""

    def _reads_data(self, function: Callable, args: tuple, tensors: list[Tensor]) -> bool:
        """Whether a Python value, or a number of rows, comes from values that may depend on the samples."""
        if function in (torch.where, Tensor.where, torch.repeat_interleave, Tensor.repeat_interleave):
            return (len(tensors) == 1) == (function in (torch.where, Tensor.where))
        if function is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            masks = [each for each in index if isinstance(each, Tensor) and each.dtype == torch.bool]
            return not all(map(self._is_constant, masks))
        return function in READING

    def _keep_constants(self, tensors: Iterable[Tensor]) -> None:
        """Remember tensors that do not depend on the samples; what is written into one, or a view of it, is noticed."""
        self._constants |= {id(each): (each, each._version) for each in tensors if not each.is_inference()}

    def _is_constant(self, tensor: Tensor) -> bool:
        return id(tensor) in self._constants and tensor._version == self._constants[id(tensor)][1]

    def _keep_derived(self, output: Any, call: Call) -> None:
        """Remember that tensors are computed from parameters alone."""
        for tensor in _tensors((output,), {}):
            if id(tensor) in self._weights:
                continue  # the parameter itself
            if tensor.requires_grad:
                self._weights[id(tensor)] = Weight(tensor, call.parameters, False)
            else:
                self._keep_constants([tensor])


class Probe(_Watch):
    """Records what calls return for one sample alone."""

    def weighted(self, call: Call, constant: bool, args: tuple, kwargs: dict) -> Any:
        output = call.function(*args, **kwargs)
        if constant:
            self._keep_derived(output, call)
        # a copy: the next function may change it in place
        self.calls.append(call._replace(alone=output.detach().clone() if isinstance(output, Tensor) else None))
        return output


class Trace(_Watch):
    """Connects the calls of a batch's forward pass with rules.

    Args:
        num_samples: samples in the batch.
        expected: the calls of one of its samples alone; a batch of one needs none.
        sample: the number of that one sample in the batch.
        blocks: to measure each layer by itself.

    Attributes:
        without_rule: names of parameters that were seen in a call without a rule.
        anchor: a zero on which everything watched depends: to differentiate with respect to it calls `arrived`.
        arrived: gets the number of a use, its layout, and the gradient with respect to its output.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        constants: Sequence[Tensor],
        num_samples: int,
        expected: Sequence[Call],
        sample: int,
        blocks: Blocks | None = None,
    ):
        super().__init__(parameters, constants)
        self._as_expected = True
        self.without_rule: set[str] = set()
        self.uses: list[Use | None] = []
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
            output = call.function(*args, **kwargs)
            self._keep_derived(output, call)
            return output
        if call.function in RULES:
            output = self._by_rule(number, args, kwargs)
        elif self._blocks is not None:
            output = None
        elif call.function in EXPANDING:
            output = self._by_expanding(number, args, kwargs)
        elif call.function in BROADCASTING:
            output = self._by_broadcasting(number, args, kwargs)
        else:
            output = None
        if output is None:
            self.without_rule.update(call.parameters)
            return call.function(*args, **kwargs)
        return output

    def _by_rule(self, number: int, args: tuple, kwargs: dict) -> Tensor | None:
        rule = RULES[self.calls[number].function](*args, **kwargs)
        if rule is None or id(rule.input) in self._weights:
            return None
        weights = {role: self._weights[id(each)] for role, each in rule.weights.items() if id(each) in self._weights}
        if not weights:
            return None  # a weight in a role that is none for this rule
        if self._blocks is not None and not self._blocks.enter(self.calls[number].function, rule):
            return None
        detached = {
            role: weights[role].tensor.detach() if role in weights else each for role, each in rule.weights.items()
        }
        output = rule.run(detached)
        if output._is_view():  # as of older versions of torch: a change in place would lose the hook of a view
            output = torch.ops.aten._unsafe_view(output, output.shape)
        if not output.requires_grad:
            output = output.add_(self._zero(output))
        layout = self._layout(number, output)
        if layout is None or not rule.accepts(layout):
            self.without_rule.update(self.calls[number].parameters)
        else:
            self._watch(layout, output, rule, weights)
            if self._blocks is not None:
                self._blocks.leave(rule, self.calls[number].parameters, output, layout)
        return output

    def passed(self, function: Callable, args: tuple, output: Any) -> None:
        if self._blocks is not None:
            self._blocks.passed(function, args, output)

    def close(self) -> None:
        """Let go of the graph: its hooks know this trace, which knows the graph; nobody else ends that circle."""
        for handle in self._handles:
            handle.remove()
        self.uses, self.arrived, self._blocks = [], _nothing, None
        self._weights, self._constants = {}, {}

    def has_expected_calls(self) -> bool:
        """Whether the calls were those of a sample alone; if not, this pass says nothing."""
        return self.num_samples == 1 or (self._as_expected and len(self.calls) == len(self._expected))

    def inputs_changed(self) -> bool:
        """Whether an input or weight was changed in place after its layer used it, so that its rule has lost it."""
        return any(use is not None and _versions(use.rule, use.weights) != use.versions for use in self.uses)

    def _by_expanding(self, number: int, args: tuple, kwargs: dict) -> Tensor | None:
        weight = self._weights.get(id(args[0]))
        if weight is None:
            return None
        output = self.calls[number].function(args[0].detach() + self._zero(args[0]), *args[1:], **kwargs)
        layout = self._layout(number, output)
        if layout is None or not _is_copied(weight.tensor, layout.dim, output.shape):
            self.without_rule.update(self.calls[number].parameters)
        else:
            self._watch(layout, output, Copies(weight.tensor), {"weight": weight})
        return output

    def _by_broadcasting(self, number: int, args: tuple, kwargs: dict) -> Tensor | None:
        tensors = list(_tensors(args, kwargs))
        shape = torch.broadcast_shapes(*(each.shape for each in tensors))
        dim = self._dim(number, shape)
        weights = {id(each): self._weights[id(each)] for each in tensors if id(each) in self._weights}
        if dim is None or not all(_is_copied(each.tensor, dim, shape) for each in weights.values()):
            return None
        copies = {key: self._copied(weight.tensor, dim, shape) for key, weight in weights.items()}
        output = self.calls[number].function(
            *(copies.get(id(each), each) for each in args),
            **{name: copies.get(id(each), each) for name, each in kwargs.items()},
        )
        layout = self._layout(number, output)
        if layout is None:
            self.without_rule.update(self.calls[number].parameters)
            return output
        for key, weight in weights.items():
            self._watch(layout, copies[key], Copies(weight.tensor), {"weight": weight})
        return output

    def _copied(self, tensor: Tensor, dim: int, shape: torch.Size) -> Tensor:
        """The tensor with as many dimensions as the shape, and as long as it along `dim`."""
        size = [1] * (len(shape) - tensor.ndim) + list(tensor.shape)
        size[dim] = shape[dim]
        return (tensor.detach() + self._zero(tensor)).expand(size)

    def _watch(self, layout: Layout, output: Tensor, rule: Rule, weights: dict[str, Weight]) -> None:
        use = Use(rule, weights, _versions(rule, weights))
        self._handles.append(output.register_hook(partial(self._grad_of, len(self.uses), layout)))
        self.uses.append(use)

    def _grad_of(self, use: int, layout: Layout, grad: Tensor) -> None:
        self.arrived(use, layout, grad)

    def _zero(self, like: Tensor) -> Tensor:
        if self.anchor is None:
            self.anchor = torch.zeros((), device=like.device, requires_grad=True)
        return self.anchor.to(like.dtype)

    def _layout(self, number: int, output: Tensor) -> Layout | None:
        if self.num_samples == 1:
            return Layout(0)
        alone = self._expected[number].alone
        return None if alone is None else find_layout(alone, output.detach(), self.num_samples, self.sample)

    def _dim(self, number: int, shape: torch.Size) -> int | None:
        if self.num_samples == 1:
            return 0
        alone = self._expected[number].alone
        candidates = [] if alone is None else layouts_by_shape(alone.shape, shape, self.num_samples)
        return candidates[0].dim if candidates else None


# Attention checks for watchers itself and would then be seen as one call. A copy of the function that does not check is
# seen as the linear maps it is made of.
_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
_attention.__kwdefaults__ = F.multi_head_attention_forward.__kwdefaults__


def _versions(rule: Rule, weights: dict[str, Weight]) -> list[int]:
    return [rule.input._version, *(weight.tensor._version for weight in weights.values())]


def _tensors_are_packed() -> bool:
    autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    hooks = getattr(autograd, "_top_saved_tensors_default_hooks", None)  # newer versions of torch have it
    return hooks is not None and hooks(True) is not None


def _nothing(use: int, layout: Layout, grad: Tensor) -> None:
    """What is done with a gradient before anybody wants it."""


def _is_copied(tensor: Tensor, dim: int, shape: torch.Size) -> bool:
    """Whether the tensor, aligned with the last dimensions of the shape, is the same for all samples along `dim`."""
    own = dim - (len(shape) - tensor.ndim)
    if tensor.ndim > len(shape) or (own >= 0 and tensor.shape[own] != 1):
        return False
    aligned = shape[len(shape) - tensor.ndim :]
    return all(size in (1, whole) for size, whole in zip(tensor.shape, aligned, strict=True))


def _tensors(args: tuple, kwargs: dict) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (each for each in value if isinstance(each, Tensor))
