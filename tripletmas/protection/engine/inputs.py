"""The inputs of every linear map inside a model, given to who sums them up while a forward pass is watched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from tripletmas.protection.engine.convolution import Convolution
from tripletmas.protection.engine.kinds import Embedding, Linear, Scale
from tripletmas.protection.engine.rule import Rule
from tripletmas.protection.engine.rules import RULES
from tripletmas.protection.engine.second_moments import input_parts, own_moment
from tripletmas.protection.engine.watch import Call, Watch, Weight, tensors_in
from tripletmas.protection.structured.linear_map import Kind, LinearMap


class Sums(Protocol):
    """Takes what each map sees; a map that is used twice in a pass gives twice."""

    def draw(self, each: LinearMap, columns: int, rows: int) -> Tensor | None:
        """The numbers of the inputs that count, of so many in a pass; None for all."""
        ...

    def add_inputs(self, each: LinearMap, inputs: Tensor, weight: float) -> None:
        """Inputs (groups, columns, rows), without the 1 of a bias, each of which stands for so many."""
        ...

    def add_moment(self, each: LinearMap, moment: Tensor) -> None:
        """The second moment (groups, columns, columns) of all that it saw."""
        ...


class LayerInputs(Watch):
    """Gives every linear map that a forward pass uses the inputs it sees, or their second moment.

    Functions are watched, not modules, so that no use of a weight is missed; what is a view of a parameter (rows of a
    packed weight, its transpose) is that parameter. A weight that is computed from parameters is none of theirs.

    Args:
        parameters: all of the model's, by canonical name.
        wanted: names of those that matter; a map without any of them is not given.
        sums: is given them.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], wanted: frozenset[str], sums: Sums):
        super().__init__(model, parameters, unrolls=False)
        self._parameters, self._wanted, self._sums = dict(parameters), wanted, sums

    def counts(self) -> bool:
        return True  # responses are held whether or not there is a gradient

    def weighted(self, call: Call, constant: bool, args: tuple, kwargs: dict) -> Any:
        rule = RULES[call.function](*args, **kwargs) if call.function in RULES else None
        if rule is not None:
            self._measure(rule)
        return self._derived(call, args, kwargs) if constant else call.function(*args, **kwargs)

    def _derived(self, call: Call, args: tuple, kwargs: dict) -> Any:
        output = call.function(*args, **kwargs)
        for tensor in tensors_in((output,), {}):
            if id(tensor) not in self._weights and any(_is_view(tensor, self._parameters[n]) for n in call.parameters):
                self._weights[id(tensor)] = Weight(tensor, call.parameters, False)
            elif id(tensor) not in self._weights:
                self._keep_constants([tensor])
        return output

    def _measure(self, rule: Rule) -> None:
        found = self._map_of(rule)
        if found is None or self._wanted.isdisjoint(found.parameters):
            return
        if isinstance(rule, Embedding | Scale):
            has = {"has_weight": found.weight is not None, "has_bias": found.bias is not None}
            self._sums.add_moment(found, own_moment(rule, **has))
        else:
            assert isinstance(rule, Linear | Convolution)
            for inputs, weight in input_parts(rule, partial(self._sums.draw, found)):
                self._sums.add_inputs(found, inputs, weight)

    def _map_of(self, rule: Rule) -> LinearMap | None:
        places = {role: self._place(tensor) for role, tensor in rule.weights.items()}
        known = {role: place for role, place in places.items() if place is not None}
        if not known or len(known) < len(places):
            return None
        first = next(iter(known.values()))
        if any(place.rows != first.rows for place in known.values()):
            known = {"weight": first}  # the bias is cut in another way than the weight: a response of its own
        weight, bias = (known[role].name if role in known else None for role in ("weight", "bias"))
        is_transposed = any(place.is_transposed for place in known.values())
        found = _kind_and_groups(rule, is_transposed, is_whole=first.rows == (0, None))
        return LinearMap(weight, bias, *found, *first.rows) if found else None

    def _place(self, tensor: Tensor) -> _Place | None:
        """The parameter that this is, or is a view of; None for what is neither."""
        weight = self._weights.get(id(tensor))
        if weight is None or len(weight.parameters) != 1:
            return None
        name = weight.parameters[0]
        whole = self._parameters[name]
        if tensor.shape == whole.shape and tensor.stride() == whole.stride():
            return _Place(name, (0, None), False)
        if tensor.ndim == 2 and tensor.shape == whole.shape[::-1] and tensor.stride() == whole.stride()[::-1]:
            return _Place(name, (0, None), True)
        if tensor.shape[1:] != whole.shape[1:] or tensor.stride() != whole.stride():
            return None
        start = int(tensor.storage_offset() - whole.storage_offset()) // whole.stride(0)
        return _Place(name, (start, start + len(tensor)), False)


class _Place(NamedTuple):
    """Which parameter a tensor is, or which rows of it, (first, last + 1) with None for all, or its transpose."""

    name: str
    rows: tuple[int, int | None]
    is_transposed: bool


def _kind_and_groups(rule: Rule, is_transposed: bool, is_whole: bool) -> tuple[Kind, int] | None:
    if isinstance(rule, Linear):
        return ("transposed" if is_transposed != rule.transposed else "linear"), 1
    if is_transposed:
        return None
    if isinstance(rule, Scale):
        return "scale", next(iter(rule.weights.values())).numel()
    if isinstance(rule, Convolution) and is_whole:
        return ("transposed convolution" if rule.transposed else "convolution"), rule.groups
    if isinstance(rule, Embedding) and is_whole:
        return "table", len(rule.weights["weight"])
    return None


def _is_view(tensor: Tensor, parameter: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
