"""One model on several processes: that it is one, and that all of them measure the same one.

Each process measures its own samples; sums over all of them are taken by who measures (`basics.distributed`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tripletmas.basics.distributed import (
    broadcast_tensor,
    gather_objects,
    has_group,
    is_kept_alone,
    is_on,
    is_spread,
    spread_as,
    whole,
)
from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params, differing_names, named_buffers, named_parameters

# How far two replicas' sums of a tensor may be from each other: what another order of adding makes, and no step.
_TOLERANCE = 1e-6


@contextmanager
def as_one(model: nn.Module) -> Iterator[Callable[[Params], Params]]:
    """All processes have the same model inside: they are refused if they have not, and buffers are those of rank 0.

    Buffers of replicas differ while they learn (batch norm's running statistics follow each one's own data), and rank
    0's are those that are kept. Parameters that are spread over processes (`fully_shard`) are whole, and no module
    sends anything. Afterwards all is as it was.

    Gives a function that spreads what was measured as the parameters are.

    Raises:
        ValueError: on all processes, if their parameters differ; for a model whose parts are on other processes that
            cannot be asked.
    """
    parameters = named_parameters(model)
    _refuse_out_of_reach(model, parameters)
    buffers = named_buffers(model)
    differing = [buffers[name] for name in check_replicas(parameters, buffers)]
    spread = {name: value for name, value in parameters.items() if is_spread(value)}
    with ExitStack() as undone:
        for value in differing:
            undone.callback(value.copy_, value.clone())
            value.copy_(broadcast_tensor(value))
        if spread:
            undone.enter_context(_whole(model))
        yield lambda found: {name: spread_as(spread[name], v) if name in spread else v for name, v in found.items()}


def _refuse_out_of_reach(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Raise a ValueError where other processes have a part in the model, and cannot be reached or understood."""
    for name, value in parameters.items():
        _refuse_parameter(name, value)
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ValueError("FullyShardedDataParallel keeps no parameters by name: use torch's fully_shard (FSDP2)")
    wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    if not has_group() and (wrapped or any(map(is_spread, parameters.values()))):
        raise ValueError(
            "the model is one of several processes, and their process group is gone: measure and consolidate before "
            "torch.distributed.destroy_process_group()"
        )


def _refuse_parameter(name: str, value: Tensor) -> None:
    if value.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: load or initialise the model first")
    if getattr(value, "ds_id", None) is not None and not value.numel():
        raise ValueError(f"{name} is spread over processes by DeepSpeed (ZeRO 3): use fully_shard of torch")
    if is_spread(value) and is_kept_alone():
        raise ValueError(f"{name} is spread over processes: all of them measure it, outside tripletmas.alone()")


@contextmanager
def _whole(model: nn.Module) -> Iterator[None]:
    """Parameters that are spread over processes as ordinary ones, and modules without the hooks that send them."""
    made: dict[int, nn.Parameter] = {}
    with ExitStack() as undone:
        for module in model.modules():
            for name, value in dict(module._parameters).items():
                if value is None or not is_spread(value):
                    continue
                if id(value) not in made:
                    made[id(value)] = nn.Parameter(whole(value.detach()), requires_grad=value.requires_grad)
                undone.callback(module._parameters.__setitem__, name, value)
                module._parameters[name] = made[id(value)]
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                before = dict(hooks)
                undone.callback(hooks.update, before)
                undone.callback(hooks.clear)  # first: theirs is the order of `before`
                for number, hook in before.items():
                    if getattr(hook, "__module__", "").startswith("torch.distributed."):
                        del hooks[number]
        yield


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
    for rank, other in enumerate(found):
        _check_replica(rank, found[0], other)
    _, _, values = found[0]
    return [name for name in values if any(not _is_same(values[name], others[name]) for *_, others in found)]


def _check_replica(rank: int, first: tuple, other: tuple) -> None:
    """Of one process, given (shapes, sums of parameters, sums of buffers) of it and of the first."""
    if wrong := differing_names(_empty(first[0]), _empty(other[0])):
        raise ValueError(
            f"rank {rank} has another model than rank 0: {wrong}. All ranks measure one model together; inside "
            "tripletmas.alone() each measures its own"
        )
    others = [name for name, value in first[1].items() if not _is_near(value, other[1][name])]
    if others:
        raise ValueError(
            f"rank {rank} has other weights than rank 0 ({others[0]}): replicas must start from the same weights "
            "and learn by the same gradients, as DistributedDataParallel sees to; models that are no replicas "
            "are measured inside tripletmas.alone()"
        )


def warn_of_measuring_alone(model: nn.Module) -> None:
    """Warn where one process measures a replica by itself: it alone would hold what it has measured."""
    if is_kept_alone() and any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        warnings.warn(
            "inside tripletmas.alone() each process measures by itself, and replicas under DistributedDataParallel "
            "that hold other things drift apart: let all consolidate together, or save what one has measured, and "
            "load it on all, before training goes on",
            stacklevel=4,
        )


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
    return {name: float(value.sum(dtype=torch.float64)) for name, value in tensors.items() if not is_spread(value)}


def _is_near(one: float, other: float) -> bool:
    return _is_same(one, other) or math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _is_same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _empty(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
