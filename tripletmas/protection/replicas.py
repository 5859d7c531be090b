"""One model on several processes: that it is one, and that all of them measure the same one.

Each process measures its own samples; sums over all of them are taken by who measures (`basics.distributed`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tripletmas.basics.distributed import broadcast_tensor, gather_objects, is_on
from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import differing_names, named_buffers, named_parameters

# How far two replicas' sums of a tensor may be from each other: what another order of adding makes, and no step.
_TOLERANCE = 1e-6


@contextmanager
def as_one(model: nn.Module) -> Iterator[None]:
    """All processes have the same model inside: they are refused if they have not, and buffers are those of rank 0.

    Buffers of replicas differ while they learn (batch norm's running statistics follow each one's own data), and rank
    0's are those that are kept. Afterwards each has its own again.

    Raises:
        ValueError: on all processes, if their parameters differ.
    """
    if not is_on():
        yield
        return
    buffers = named_buffers(model)
    differing = [buffers[name] for name in check_replicas(named_parameters(model), buffers)]
    before = [value.clone() for value in differing]
    try:
        for value in differing:
            value.copy_(broadcast_tensor(value))
        yield
    finally:
        for value, own in zip(differing, before, strict=True):
            value.copy_(own)


def check_replicas(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None) -> list[str]:
    """Raise a ValueError on all processes unless the parameters have the same names, shapes and values on all of them.

    Values are compared by their sums: replicas that have had other steps differ there.

    Args:
        buffers: whose names and shapes must be the same, too, and whose values may differ.

    Returns:
        The names of the buffers of which they do.
    """
    buffers = buffers or {}
    if not is_on():
        return []
    shapes = {name: tuple(value.shape) for name, value in (*parameters.items(), *buffers.items())}
    found = gather_objects((shapes, _sums(parameters), _sums(buffers)))
    shapes, sums, sums_of_buffers = found[0]
    for rank, (other_shapes, other_sums, _) in enumerate(found):
        wrong = differing_names(_empty(shapes), _empty(other_shapes))
        if wrong:
            raise ValueError(
                f"rank {rank} has another model than rank 0: {wrong}. All ranks measure one model together; inside "
                "tripletmas.alone() each measures its own"
            )
        for name, value in sums.items():
            if not _is_near(value, other_sums[name]):
                raise ValueError(
                    f"rank {rank} has other weights than rank 0 ({name}): replicas must start from the same weights "
                    "and learn by the same gradients, as DistributedDataParallel sees to; models that are no replicas "
                    "are measured inside tripletmas.alone()"
                )
    return [
        name
        for name, value in sums_of_buffers.items()
        if any(not _is_same(value, others[name]) for *_, others in found)
    ]


def check_same_importance(importance: Mapping[str, Tensor]) -> None:
    """Raise a ValueError on all processes unless all have measured the same: each else holds its replica elsewhere."""
    if not is_on():
        return
    first, *others = gather_objects(_sums(importance))
    for rank, other in enumerate(others, start=1):
        differing = [
            name
            for name in sorted(first.keys() | other.keys())
            if name not in first or name not in other or not _is_near(first[name], other[name])
        ]
        if differing:
            raise ValueError(
                f"rank {rank} has measured another importance than rank 0 ({listed(differing)}): an estimate of your "
                "own must be the sum over the samples of all ranks, on all of them"
            )


@torch.no_grad()
def _sums(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.sum(dtype=torch.float64)) for name, value in tensors.items()}


def _is_near(one: float, other: float) -> bool:
    return _is_same(one, other) or math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _is_same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _empty(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
