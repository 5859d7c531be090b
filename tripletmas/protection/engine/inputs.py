"""The inputs of every linear map inside a model: second moments, gathered while a forward pass is watched.

Shapes: moments (groups, columns, columns), the sum over samples and positions of a a^T, with a the input of a map and,
where it has a bias, a 1 after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tripletmas.protection.engine.rule import Rule, buffer_size
from tripletmas.protection.engine.rules import RULES, Convolution, Embedding, Linear, Scale
from tripletmas.protection.engine.watch import Call, Watch, Weight, tensors_in
from tripletmas.protection.structured.linear_map import LinearMap


class LayerInputs(Watch):
    """Gives every linear map that a forward pass uses, with the second moment of the inputs it sees.

    Functions are watched, not modules, so that no use of a weight is missed; what is a view of a parameter (rows of a
    packed weight, its transpose) is that parameter. A weight that is computed from parameters is none of theirs.

    Args:
        parameters: all of the model's, by canonical name.
        wanted: names of those that matter; a map without any of them is not given.
        most_rows: inputs of a map that count in one pass; of more, so many are drawn, and stand for all.
        take: is given each map, its moment and of how many rows, once for each use.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        wanted: frozenset[str],
        most_rows: Callable[[LinearMap, int], int],
        take: Callable[[LinearMap, Tensor, int], None],
    ):
        super().__init__(model, parameters)
        self._parameters, self._wanted, self._most_rows, self._take = dict(parameters), wanted, most_rows, take

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
            rows = rule.input.numel() // max(1, rule.input.shape[-1 if isinstance(rule, Linear) else 1])
            self._take(found, _moment(rule, found, self._most_rows), rows)

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


# --- second moments


def _moment(rule: Rule, found: LinearMap, most_rows: Callable[[LinearMap, int], int]) -> Tensor:
    has_bias = found.bias is not None
    if isinstance(rule, Embedding):
        words = rule.input.flatten().long()
        counts = torch.bincount(words, minlength=found.groups).to(rule.weights["weight"].dtype)
        if rule.padding_index is not None:  # its row is not trained
            counts[rule.padding_index] = 0
        return counts.view(-1, 1, 1)
    if isinstance(rule, Scale):
        return _of_scale(rule, found, has_bias)
    if isinstance(rule, Convolution):
        return _of_convolution(rule, has_bias, found, most_rows)
    return _of_rows(rule.input.flatten(0, -2).unsqueeze(0), has_bias, found, most_rows)


def _of_rows(
    inputs: Tensor, has_bias: bool, found: LinearMap, most_rows: Callable[[LinearMap, int], int], share: float = 1.0
) -> Tensor:
    """Of inputs (groups, rows, columns), which may be a `share` of a pass."""
    count = inputs.shape[1]
    most = max(1, int(share * most_rows(found, inputs.shape[2])))
    if count > most:
        generator = torch.Generator().manual_seed(count)
        inputs = inputs[:, torch.randperm(count, generator=generator)[:most].to(inputs.device)]
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    inputs = inputs.to(dtype)
    products = inputs.transpose(1, 2) @ inputs
    if has_bias:
        sums = inputs.sum(1).unsqueeze(2)
        ones = sums.new_full((len(sums), 1, 1), inputs.shape[1])
        products = torch.cat([torch.cat([products, sums], 2), torch.cat([sums.transpose(1, 2), ones], 2)], 1)
    return products * (count / inputs.shape[1]) if count > inputs.shape[1] else products


def _of_scale(rule: Scale, found: LinearMap, has_bias: bool) -> Tensor:
    """Of each channel by itself: the normalised input, and a 1."""
    shape = next(iter(rule.weights.values())).shape
    inputs = rule.scaled(rule.input) if found.weight is not None else torch.ones_like(rule.input)
    if rule.along == "channels":
        inputs = inputs.transpose(0, 1).flatten(1)
    elif rule.along == "last":
        inputs = inputs.reshape(-1, shape.numel()).t()
    else:
        inputs = inputs.reshape(1, -1)
    if found.weight is None or not has_bias:
        return inputs.square().sum(1).view(-1, 1, 1)
    square, total = inputs.square().sum(1), inputs.sum(1)
    return torch.stack([square, total, total, torch.full_like(total, inputs.shape[1])], 1).view(-1, 2, 2)


def _of_convolution(
    rule: Convolution, has_bias: bool, found: LinearMap, most_rows: Callable[[LinearMap, int], int]
) -> Tensor:
    images = rule.input if rule.input.ndim == len(rule.kernel) + 2 else rule.input.unsqueeze(0)
    step = max(1, buffer_size(images) * 4 // max(1, images[0].numel() * len(rule.kernel) * max(rule.kernel)))
    total: Tensor | None = None
    for some in images.split(step):
        patches = _patches(rule, some)
        part = _of_rows(patches, has_bias, found, most_rows, len(some) / len(images))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _patches(rule: Convolution, images: Tensor) -> Tensor:
    """What a convolution's weight is applied to: (groups, samples * positions, channels of a group * kernel)."""
    kernel, stride, dilation = rule.kernel, rule.stride, rule.dilation
    if rule.transposed:
        images = _padded_for_transposed(rule, images)
        stride = (1,) * len(kernel)
    elif rule.added:
        images = F.pad(images, rule.added)
    else:
        images = F.pad(images, [side for amount in reversed(rule.padding) for side in (amount, amount)])
    for dim, (size, jump, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        # one dimension after the other: windows of the span, of which every `spread`-th is under the kernel
        images = images.unfold(dim + 2, spread * (size - 1) + 1, jump)[..., ::spread]
    if rule.transposed:  # it adds up in the output what lies mirrored in the input
        images = images.flip(list(range(-len(kernel), 0)))
    images = images.unflatten(1, (rule.groups, -1))  # (n, groups, channels, positions..., kernel...)
    dims = len(kernel)
    order = [1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims)]
    return images.permute(order).flatten(2 + dims).flatten(1, 1 + dims)


def _padded_for_transposed(rule: Convolution, images: Tensor) -> Tensor:
    """The image of which a transposed convolution is a plain one: zeros between its pixels and around them."""
    spaced = images.new_zeros(
        *images.shape[:2], *((size - 1) * jump + 1 for size, jump in zip(images.shape[2:], rule.stride, strict=True))
    )
    spaced[(..., *(slice(None, None, jump) for jump in rule.stride))] = images
    sides = []
    for size, pad, spread, more in zip(rule.kernel, rule.padding, rule.dilation, rule.output_padding, strict=True):
        around = spread * (size - 1) - pad
        sides.append((around, around + more))
    return F.pad(spaced, [side for pair in reversed(sides) for side in pair])
