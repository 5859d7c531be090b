"""Watch a forward pass: which functions are given weights.

Functions are watched, not modules: a weight is seen wherever it is used, in a module of the user's own, in a function,
or in two places. What is computed from weights alone is a weight, too. Noticed is also what the model does with its
data that rules for weights cannot know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tripletmas.protection.engine.recurrence import unrolled

EXPANDING = {Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to, Tensor.repeat}
# One Python value read off a tensor: what the model does next may depend on which samples are in the batch.
_READING = {
    *(getattr(Tensor, f"__{name}__") for name in ("bool", "int", "float", "index", "contains")),
    *(Tensor.item, torch.equal, Tensor.equal, torch.is_nonzero, Tensor.is_nonzero, torch.allclose, Tensor.allclose),
}
# Many values are read, or the number of rows depends on them: in a batch it is never what it is for a sample alone.
_READING_ROWS = {
    *(Tensor.tolist, Tensor.numpy, Tensor.__array__),
    *(torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere, torch.masked_select, Tensor.masked_select),
    *(torch.unique, Tensor.unique, torch.unique_consecutive, Tensor.unique_consecutive, torch.bincount),
    Tensor.bincount,
}
# Gradients inside the forward pass would not see weights that were detached for a rule.
_DIFFERENTIATING = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}


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


class Watch(TorchFunctionMode):
    """Finds the calls that are given weights. Abstract: a `Probe`, a `Trace` or `LayerInputs`.

    Args:
        parameters: those of the model's that are measured, by name.
        unrolls: whether recurrent layers are seen as the linear maps that they are made of.

    Attributes:
        calls: so far, in order.
        read: values that Python read off tensors that may depend on the samples, in order; it may branch on them.
        not_by_rules: why no weight of this model can be measured by rules, if so.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], *, unrolls: bool):
        super().__init__()
        self._unrolls = unrolls
        self.calls: list[Call] = []
        self.read: list[bool | int | float] = []
        self.not_by_rules: str | None = None
        self._weights = {id(tensor): Weight(tensor, (name,), True) for name, tensor in parameters.items()}
        # tensors that do not depend on the samples, with the version in which they do not
        self._constants: dict[int, tuple[Tensor, int]] = {}
        self._keep_constants([*model.parameters(), *model.buffers()])

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        tensors = list(tensors_in(args, kwargs))
        weights = [self._weights[id(each)] for each in tensors if id(each) in self._weights]
        constant = all(id(each) in self._weights or self._is_constant(each) for each in tensors)
        is_weighted = bool(weights) and self.counts()
        instead = unrolled(func, args, kwargs) if is_weighted and self._unrolls else None
        if instead is not None:
            with self:
                return instead(*args)
        self.not_by_rules = self._trouble(func, args, tensors, is_weighted, constant) or self.not_by_rules
        if is_weighted:
            call = Call(func, tuple(sorted({name for each in weights for name in each.parameters})))
            return self.weighted(call, constant and func not in EXPANDING, args, kwargs)
        output = func(*args, **kwargs)
        if not constant and func in _READING:
            self.read.append(output)
        self.passed(func, args, output)
        if constant:
            self._keep_constants(tensors_in((output,), {}))
        return output

    def counts(self) -> bool:
        """Whether what is called now is looked at."""
        return torch.is_grad_enabled()

    def weighted(self, call: Call, constant: bool, args: tuple, kwargs: dict) -> Any:
        """A call with weights; `constant`: it has no other arguments that may depend on the samples."""
        raise NotImplementedError

    def passed(self, function: Callable, args: tuple, output: Any) -> None:
        """A call without weights was made."""

    def ended(self) -> None:
        """The forward pass is over."""

    def _trouble(
        self, function: Callable, args: tuple, tensors: list[Tensor], is_weighted: bool, constant: bool
    ) -> str | None:
        if function in _DIFFERENTIATING:
            return "the model differentiates in its forward pass"
        if is_weighted:
            return "saved tensors are packed or computed again (checkpointing)" if _tensors_are_packed() else None
        if not constant and self._reads_rows(function, args, tensors):
            return "the model reads values off its data, on which it may branch"
        return None

    def _reads_rows(self, function: Callable, args: tuple, tensors: list[Tensor]) -> bool:
        """Whether Python values, or a number of rows, come from values that may depend on the samples."""
        if function in (torch.where, Tensor.where):
            return len(tensors) == 1
        if function in (torch.repeat_interleave, Tensor.repeat_interleave):
            return len(tensors) > 1
        if function is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            masks = [each for each in index if isinstance(each, Tensor) and each.dtype == torch.bool]
            return not all(map(self._is_constant, masks))
        return function in _READING_ROWS

    def _keep_constants(self, tensors: Iterable[Tensor]) -> None:
        """Remember tensors that do not depend on the samples; what is written into one, or a view of it, is noticed."""
        self._constants |= {id(each): (each, each._version) for each in tensors if not each.is_inference()}

    def _is_constant(self, tensor: Tensor) -> bool:
        return id(tensor) in self._constants and tensor._version == self._constants[id(tensor)][1]

    def _derived(self, call: Call, args: tuple, kwargs: dict) -> Any:
        """A call that computes from parameters alone: what it returns is a weight, too."""
        output = call.function(*args, **kwargs)
        for tensor in tensors_in((output,), {}):
            if id(tensor) in self._weights:
                continue  # the parameter itself
            if tensor.requires_grad:
                self._weights[id(tensor)] = Weight(tensor, call.parameters, False)
            else:
                self._keep_constants([tensor])
        return output


class Enough(BaseException):  # no `Exception`, which the model may catch
    """As many values were read as were asked for."""


class Probe(Watch):
    """Records what calls return for one sample alone.

    Args:
        stop_after: raise `Enough` as soon as so many values have been read.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Tensor], *, unrolls: bool, stop_after: int | None = None
    ):
        super().__init__(model, parameters, unrolls=unrolls)
        self._stop_after = stop_after

    def passed(self, function: Callable, args: tuple, output: Any) -> None:
        if self._stop_after is not None and len(self.read) >= self._stop_after:
            raise Enough

    def weighted(self, call: Call, constant: bool, args: tuple, kwargs: dict) -> Any:
        output = self._derived(call, args, kwargs) if constant else call.function(*args, **kwargs)
        # a copy: the next function may change it in place
        self.calls.append(call._replace(alone=output.detach().clone() if isinstance(output, Tensor) else None))
        return output


# Attention checks for watchers itself and would then be seen as one call. A copy of the function that does not check is
# seen as the linear maps it is made of.
_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
_attention.__kwdefaults__ = F.multi_head_attention_forward.__kwdefaults__


def _tensors_are_packed() -> bool:
    autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    hooks = getattr(autograd, "_top_saved_tensors_default_hooks", None)  # newer versions of torch have it
    return hooks is not None and hooks(True) is not None


def tensors_in(args: tuple, kwargs: dict) -> Iterator[Tensor]:
    """The tensors among the arguments of a call, and in lists of them."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (each for each in value if isinstance(each, Tensor))
