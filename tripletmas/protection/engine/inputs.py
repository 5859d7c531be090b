"""The inputs of every linear map inside a model: second moments, gathered while a forward pass is watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from tripletmas.protection.engine.rule import Rule
from tripletmas.protection.engine.rules import RULES, Convolution, Embedding, Linear, Scale
from tripletmas.protection.engine.second_moments import second_moment
from tripletmas.protection.engine.watch import Call, Watch, Weight, tensors_in
from tripletmas.protection.structured.linear_map import LinearMap


class LayerInputs(Watch):
    """Gives every linear map that a forward pass uses, with the second moment of the inputs it sees.

    Functions are watched, not modules, so that no use of a weight is missed; what is a view of a parameter (rows of a
    packed weight, its transpose) is that parameter. A weight that is computed from parameters is none of theirs.

    Args:
        parameters: all of the model's, by canonical name.
        wanted: names of those that matter; a map without any of them is not given.
        draw: (map, columns, rows) -> the numbers of the inputs that count in a pass, and stand for all; None for all.
        take: is given each map, its moment and of how many rows, once for each use.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        wanted: frozenset[str],
        draw: Callable[[LinearMap, int, int], Tensor | None],
        take: Callable[[LinearMap, Tensor, int], None],
    ):
        super().__init__(model, parameters)
        self._parameters, self._wanted, self._draw, self._take = dict(parameters), wanted, draw, take

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
        if found is not None and not self._wanted.isdisjoint(found.parameters):
            has = {"has_weight": found.weight is not None, "has_bias": found.bias is not None}
            self._take(found, *second_moment(rule, **has, draw=partial(self._draw, found)))

    def _map_of(self, rule: Rule) -> LinearMap | None:
        names: dict[str, str | None] = {"weight": None, "bias": None}
        rows, is_transposed = [], False
        for role, tensor in rule.weights.items():
            place = self._place(tensor)
            if place is None:
                return None
            names[role], start, stop, turned = place
            rows.append((start, stop))
            is_transposed |= turned
        (start, stop), weight, bias = rows[0], names["weight"], names["bias"]
        if len(set(rows)) != 1:
            bias = None  # cut in another way than the weight: a response of its own
        if isinstance(rule, Linear):
            kind = "transposed" if is_transposed != rule.transposed else "linear"
            return LinearMap(weight, bias, kind, 1, start, stop)
        if is_transposed:
            return None
        if isinstance(rule, Convolution) and stop is None:
            return LinearMap(weight, bias, "transposed convolution" if rule.transposed else "convolution", rule.groups)
        if isinstance(rule, Scale):
            return LinearMap(weight, bias, "scale", next(iter(rule.weights.values())).numel(), start, stop)
        if isinstance(rule, Embedding) and stop is None:
            return LinearMap(weight, None, "table", len(rule.weights["weight"]))
        return None

    def _place(self, tensor: Tensor) -> tuple[str, int, int | None, bool] | None:
        """The parameter that this is, or is a view of: its name, first and last row, and whether it is transposed."""
        weight = self._weights.get(id(tensor))
        if weight is None or len(weight.parameters) != 1:
            return None
        name = weight.parameters[0]
        whole = self._parameters[name]
        if tensor.shape == whole.shape and tensor.stride() == whole.stride():
            return name, 0, None, False
        if tensor.ndim == 2 and tensor.shape == whole.shape[::-1] and tensor.stride() == whole.stride()[::-1]:
            return name, 0, None, True
        if tensor.shape[1:] != whole.shape[1:] or tensor.stride() != whole.stride():
            return None
        start = int(tensor.storage_offset() - whole.storage_offset()) // whole.stride(0)
        return name, start, start + len(tensor), False


def _is_view(tensor: Tensor, parameter: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
