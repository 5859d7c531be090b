"""Rows of tensors that are spread over processes, as `fully_shard` spreads weights: each process has some of them."""

from __future__ import annotations

from typing import Any

import torch.distributed
from torch import Tensor

from tripletmas.basics.distributed import has_group, is_spread


def why_not_by_rows(tensor: Any) -> str | None:
    """Over what a tensor is spread, if not by rows over all processes; None for others."""
    if not is_spread(tensor):
        return None
    from torch.distributed.tensor import Shard

    mesh, (placement, *_) = tensor.device_mesh, tensor.placements
    if mesh.ndim > 1:
        return f"a mesh of {mesh.ndim} dimensions"
    if has_group() and mesh.size() != torch.distributed.get_world_size():
        return f"{mesh.size()} of {torch.distributed.get_world_size()} processes"
    return None if placement == Shard(0) else f"processes as {placement}, not by rows"


def is_uneven(tensor: Any) -> bool:
    """Whether it is a matrix, or has more dimensions, of which processes have parts of different sizes."""
    if not is_spread(tensor) or tensor.ndim < 2:
        return False
    from torch.distributed.tensor import Shard

    cuts = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    return any(isinstance(how, Shard) and tensor.shape[how.dim] % count for how, count in cuts)


def own_rows(tensor: Any) -> tuple[int, int]:
    """From where to where this process has a tensor's rows: all of them, if it is not spread.

    As `torch.chunk` cuts: the last processes have fewer, or none.
    """
    if not is_spread(tensor):
        return 0, len(tensor)
    mesh = tensor.device_mesh
    each = -(-len(tensor) // mesh.size())
    begin = min(mesh.get_local_rank() * each, len(tensor))
    return begin, min(begin + each, len(tensor))


def sum_of_parts(values: Tensor, like: Any) -> Tensor:
    """The sum over the processes that have a part of `like`, the same on all; it can be differentiated."""
    from torch.distributed.tensor import DTensor, Partial

    return DTensor.from_local(values, like.device_mesh, [Partial()], run_check=False).full_tensor()
