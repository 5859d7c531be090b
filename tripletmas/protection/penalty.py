"""The penalty, `importance * (theta - reference)^2`, as a value and as its gradient, added in place.

For the gradient, weights pass through one small buffer, which is kept from step to step: a step allocates nothing. What
is too large for the buffer goes in pieces, what is small goes together, so that memory traffic (on CPUs) and kernel
launches (on GPUs) both stay small.
"""

# pyright: reportPrivateImportUsage=false
# (torch's documentation has a section on its _foreach functions, but the names are not in `torch.__all__`)

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tripletmas.basics.distributed import is_spread, own_part, spread_as, whole
from tripletmas.basics.weights import Params, differing_names, named_parameters, trainable

HEAVIEST = 1e6  # tasks that unlabelled data may count for

# Elements of the buffer. 4 MiB in float32 stay in a CPU's cache between the three passes over them; far smaller
# pieces pay more for starting threads than they save.
BUFFER_SIZE = 2**20

Buffers = dict[tuple[torch.device, torch.dtype], Tensor]


class Pulled(NamedTuple):
    """A weight, the gradient that is added to, and what the weight is pulled to and how strongly; of one shape."""

    weight: Tensor
    gradient: Tensor
    reference: Tensor
    importance: Tensor


def quadratic_penalty(model: nn.Module, reference: Params, importance: Params) -> Tensor:
    """Sum importance * (theta - reference)^2 over all weights that have importance: a differentiable scalar, no 1/2.

    Of weights that are spread over processes (`fully_shard`) all of them must ask.

    Raises:
        ValueError: if the model lacks a parameter that has importance, or has it in another shape.
    """
    current = matching_parameters(model, importance)
    if not importance:
        return torch.zeros(())
    # contiguous: the order of a sum, and so its last bit, must not depend on the layout in which weights were loaded
    squares = [value * (current[name] - reference[name]).square() for name, value in importance.items()]
    return torch.stack([whole(each.contiguous().sum()) for each in squares]).sum()


def matching_parameters(model: nn.Module, importance: Params) -> dict[str, nn.Parameter]:
    """The model's parameters by canonical name, if those that have importance are among them, in the same shapes.

    Raises:
        ValueError: if not; all names that do not match are listed.
    """
    current = named_parameters(model)
    wrong = differing_names({name: current[name] for name in importance if name in current}, importance)
    if wrong:
        raise ValueError(f"importance and model do not match: {wrong}")
    return current


def refuse_other_model(model: nn.Module, saved: Params) -> None:
    """Raise a ValueError if the model lacks a parameter of which something was saved, or has it in another shape."""
    current = named_parameters(model)
    if any(name not in current or current[name].shape != value.shape for name, value in saved.items()):
        raise ValueError(f"saved for another model: {differing_names(trainable(model), saved)}")


@torch.no_grad()
def add_penalty_gradient(
    pulled: Iterable[Pulled], strength: float, buffers: Buffers, *, scale: Tensor | float | None = None
) -> None:
    """Add `scale * 2 * strength * importance * (theta - reference)` to every gradient, in place.

    Any strides and dtypes are right; those of the gradient, the reference and the importance that equal the weight's
    are fast, and other dtypes take memory at every step.

    Args:
        buffers: the memory that is used, one flat tensor for each device and dtype; pass the same dict at every step,
            empty at first.
        scale: what gradients are multiplied by until the optimizer unscales them; None is 1.
    """
    by_kind: dict[tuple[torch.device, torch.dtype], list[Pulled]] = {}
    for each in (Pulled(*map(own_part, spread)) for spread in pulled):
        by_kind.setdefault((each.weight.device, each.weight.dtype), []).append(each)
    for kind, members in by_kind.items():
        needed = min(BUFFER_SIZE, sum(each.weight.numel() for each in members))
        if kind not in buffers or len(buffers[kind]) < needed:
            buffers[kind] = torch.empty(needed, device=kind[0], dtype=kind[1])
        for pieces in _filling(members, len(buffers[kind])):
            _add(pieces, strength, buffers[kind], scale)


Instead = dict[nn.Parameter, Tensor | None]


def gradient_to_add_to(parameter: nn.Parameter, instead: Instead) -> Tensor:
    """The gradient of a parameter; where there is none, or a sparse one, zeros take its place, noted in `instead`."""
    gradient = parameter.grad
    if gradient is None or gradient.layout is not torch.strided:
        instead[parameter] = gradient
        gradient = parameter.grad = torch.zeros_like(parameter)
    return gradient


def give_back(instead: Instead) -> None:
    """Let parameters have again what zeros took the place of, plus what was added to the zeros.

    Where that is nothing they are as they were: with a gradient of zeros, weight decay and momentum would move them.
    """
    for parameter, gradient in instead.items():
        assert parameter.grad is not None
        if not (parameter.is_meta or bool(whole(parameter.grad.any()))):  # what is only a shape has no values
            parameter.grad = gradient
        elif gradient is not None:
            parameter.grad.add_(gradient)
    instead.clear()


def laid_out_as(weight: Tensor, value: Tensor) -> Tensor:
    """The value on the weight's device and with its strides, spread over processes as it is; one of another shape is
    only moved."""
    if is_spread(weight) or is_spread(value):
        return value if value.shape != weight.shape else spread_as(weight, value)
    if value.shape != weight.shape or value.stride() == weight.stride():
        return value.to(weight.device)
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _add(pieces: list[Pulled], strength: float, buffer: Tensor, scale: Tensor | float | None) -> None:
    weights, gradients, references, importances = (list(tensors) for tensors in zip(*pieces, strict=True))
    differences, used = [], 0
    for weight in weights:
        # those of the weight if it has no gaps (channels_last, transposed)
        strides = torch.empty_like(weight, device="meta").stride()
        differences.append(torch.as_strided(buffer, weight.shape, strides, used))
        used += weight.numel()
    torch._foreach_copy_(differences, weights)  # there is no _foreach_sub with `out`
    torch._foreach_sub_(differences, references)
    if scale is not None:
        torch._foreach_mul_(differences, scale)
    torch._foreach_addcmul_(gradients, importances, differences, value=2 * strength)


def _filling(pulled: Iterable[Pulled], size: int) -> Iterator[list[Pulled]]:
    """Lists of pieces that have at most `size` elements together."""
    pieces, used = [], 0
    for each in pulled:
        for piece in _split(each, size):
            count = piece.weight.numel()
            if pieces and used + count > size:
                yield pieces
                pieces, used = [], 0
            pieces.append(piece)
            used += count
    if pieces:
        yield pieces


def _split(pulled: Pulled, size: int) -> Iterator[Pulled]:
    """Views of at most `size` elements, cut where the weight's memory stays in one run."""
    weight = pulled.weight
    if weight.numel() <= size:
        yield pulled
        return
    outermost = max(range(weight.dim()), key=lambda dim: (weight.size(dim) > 1, weight.stride(dim)))
    rows = max(1, size * weight.size(outermost) // weight.numel())
    for parts in zip(*(tensor.split(rows, outermost) for tensor in pulled), strict=True):
        yield from _split(Pulled(*parts), size)


def check_weight(weight: float) -> None:
    """Raise a ValueError for a weight of unlabelled data that is not > 0, or with which importance may overflow."""
    if not 0 < weight <= HEAVIEST:
        raise ValueError(f"weight must be > 0 and at most {HEAVIEST:.0e}, where a task counts 1, got {weight}")
