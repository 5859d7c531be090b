"""Several processes: which of them this is, and what they know together. The only module with torch.distributed.

Processes are joined by the default group (`torch.distributed.init_process_group`, which torchrun, Lightning and others
call). Where there is none, or one of a single process, and inside `alone()`, everything here is that of one process:
sums are what was given, and nothing is sent. Else every function that sends is collective: all processes must call it,
in the same order, or they wait for each other. What comes back is the same on all of them, to the bit.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
import torch.distributed
from torch import Tensor

if TYPE_CHECKING:
    from tripletmas.basics.launched import Launched

_Value = TypeVar("_Value")
_Given = ParamSpec("_Given")
_is_alone: ContextVar[bool] = ContextVar("tripletmas_is_alone", default=False)

# Elements that are sent at once: 64 MiB in float32, the memory that a sum takes beside its tensors.
_AT_ONCE = 2**24

# How long processes wait for each other, as while the first writes a report, or searches.
_PATIENCE = timedelta(hours=2)

# How long for all of them to have begun, and after how many seconds it is said that some are waited for.
_START = timedelta(minutes=10)
_SILENCE = 20.0


def has_group() -> bool:
    """Whether a process group is there, of however many processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_on() -> bool:
    """Whether this process is one of several that work together."""
    return world_size() > 1


def world_size() -> int:
    """How many processes work together."""
    return 1 if _is_alone.get() or not has_group() else torch.distributed.get_world_size()


def rank() -> int:
    """The number of this process among them, from 0."""
    return torch.distributed.get_rank() if is_on() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and speaks: the one of rank 0."""
    return rank() == 0


def on_main(action: Callable[_Given, None]) -> Callable[_Given, None]:
    """The same action, which does nothing on other processes than the main one."""

    @wraps(action)
    def act(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
        if is_main():
            action(*args, **kwargs)

    return act


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works by itself: nothing is summed or gathered over processes.

    For what not all of them call, or what each has for itself.
    """
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def is_kept_alone() -> bool:
    """Whether there are others, and this process is inside `alone()`."""
    return _is_alone.get() and has_group() and torch.distributed.get_world_size() > 1


@contextmanager
def joined(process: Launched) -> Iterator[Callable[[], bool]]:
    """Inside, the processes that torchrun started work together.

    CPUs speak over gloo; GPUs over NCCL, each process with that of its number on its machine. What comes out tells who
    asks first: True once, for a single process, also where the others are gone.

    Where a program has joined them itself before it called a command, its group is used, and left; all are first then.
    """
    if has_group():
        yield lambda: True
        return
    backend = "gloo"
    if torch.cuda.is_available() and process.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(process.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    with _awaited(process):
        store, *_ = next(torch.distributed.rendezvous("env://", timeout=_START))  # pyright: ignore[reportPrivateImportUsage] - documented
        store.set(f"tripletmas {process.rank}", "is here")
        store.wait([f"tripletmas {number}" for number in range(process.world_size)], _START)
    torch.distributed.init_process_group(
        backend, store=store, rank=process.rank, world_size=process.world_size, timeout=_PATIENCE
    )

    def is_first() -> bool:
        try:
            return store.add("tripletmas", 1) == 1
        except RuntimeError:  # whoever keeps it is gone
            return True

    yield is_first
    torch.distributed.destroy_process_group()  # not after a failure: it might wait for those that are gone


@contextmanager
def _awaited(process: Launched) -> Iterator[None]:
    """A block that waits for all processes to begin: after a while it is said that it does, and at the end it fails.

    Raises:
        ValueError: for `RuntimeError` in it, as where the others do not come: a single process may have been given the
            environment of a launcher, as by a script that torchrun started.
    """
    waits = (
        f"process {process.rank} of {process.world_size} waits for the others: the environment has RANK, WORLD_SIZE "
        "and MASTER_ADDR, as torchrun sets them; unset RANK for a single process"
    )
    said = threading.Timer(_SILENCE, print, (f"tripletmas: {waits}",), {"file": sys.stderr, "flush": True})
    said.daemon = True
    said.start()
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{waits}; they have not come ({str(error).partition(chr(10))[0]})") from error
    finally:
        said.cancel()


def barrier() -> None:
    """Wait until all processes are here."""
    if is_on():
        gather_objects(None)  # torch's own barrier guesses a device under NCCL


# --- sums


@torch.no_grad()
def sum_over_ranks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of each tensor over all processes, in its type; tensors that are given are left as they are.

    All processes give the same names, types and shapes.
    """
    if not is_on():
        return dict(tensors)
    sums = {name: torch.empty_like(tensors[name], memory_format=torch.contiguous_format) for name in sorted(tensors)}
    by_type: dict[torch.dtype, list[str]] = {}
    for name, value in sums.items():
        by_type.setdefault(value.dtype, []).append(name)
    for names in by_type.values():
        for part in _portions(names, sums):
            flat = torch.cat([tensors[name].detach().reshape(-1) for name in part])
            sent = flat.to(_carrier(flat.device))
            torch.distributed.all_reduce(sent)
            for name, value in zip(part, sent.split([sums[name].numel() for name in part]), strict=True):
                sums[name].copy_(value.view_as(sums[name]))
    return {name: sums[name] for name in tensors}


def sum_numbers(**numbers: float) -> dict[str, float]:
    """The sum of each number over all processes, in float64."""
    return {name: sum(each[name] for each in gather_objects(numbers)) for name in numbers}


def _portions(names: list[str], tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of tensors that have at most `_AT_ONCE` elements together, or one that has more."""
    part, used = [], 0
    for name in names:
        count = tensors[name].numel()
        if part and used + count > _AT_ONCE:
            yield part
            part, used = [], 0
        part.append(name)
        used += count
    yield part


# --- what others have


def gather_objects(value: _Value) -> list[_Value]:
    """What each process gave, in the order of ranks; what can be pickled."""
    if not is_on():
        return [value]
    found: list[_Value] = [value] * world_size()
    torch.distributed.all_gather_object(found, value)
    return found


@torch.no_grad()
def gather_rows(tensor: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """The rows (n, ...) of all processes, one after the other in the order of ranks; n may differ, and be 0.

    Args:
        counts: how many each process has; None: they are asked.
    """
    if not is_on():
        return tensor
    sent = tensor.detach().to(_carrier(tensor.device)).contiguous()
    counts = gather_objects(len(sent)) if counts is None else counts
    padded = sent.new_zeros(max(counts), *sent.shape[1:])
    padded[: len(sent)] = sent
    found = [torch.empty_like(padded) for _ in counts]
    torch.distributed.all_gather(found, padded)
    return torch.cat([each[:count] for each, count in zip(found, counts, strict=True)]).to(tensor.device)


def broadcast_object(value: _Value, source: int = 0) -> _Value:
    """What the process of that rank gave; what can be pickled."""
    if not is_on():
        return value
    carried = [value]
    torch.distributed.broadcast_object_list(carried, src=source)
    return carried[0]


@torch.no_grad()
def broadcast_tensor(tensor: Tensor, source: int = 0) -> Tensor:
    """What the process of that rank gave, in the type, the shape and on the device of what this one gave."""
    if not is_on():
        return tensor
    sent = tensor.detach().clone(memory_format=torch.contiguous_format).to(_carrier(tensor.device))
    torch.distributed.broadcast(sent, src=source)
    return sent.to(tensor.device)


# --- tensors of which each process has a part, torch's DTensors: of a model under `fully_shard`


def is_spread(tensor: Tensor) -> bool:
    """Whether the tensor is spread over processes."""
    spread = sys.modules.get("torch.distributed.tensor")  # importing it takes a second
    return spread is not None and isinstance(tensor, spread.DTensor)


def own_part(tensor: Any) -> Tensor:
    """What this process has of it, in the same memory: all of it, if it is not spread."""
    return tensor.to_local() if is_spread(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of it; of one that is spread all processes must ask."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def spread_as(like: Any, tensor: Any) -> Tensor:
    """The tensor, of which each process has the part that it has of `like`; whole, if that is not spread.

    Of what is not spread as `like` already all processes must ask, and rank 0's values are taken.
    """
    if not is_spread(like):
        return whole(tensor)
    if is_spread(tensor) and tensor.placements == like.placements and tensor.device_mesh == like.device_mesh:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole(tensor).to(like.device), like.device_mesh, like.placements)


def reshard(module: Any) -> None:
    """Let a module under `fully_shard` have the parameters that an optimizer steps, not those of a forward pass."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, fsdp.FSDPModule):
        module.reshard()


# --- errors


@contextmanager
def together(what: str) -> Iterator[None]:
    """A block that every process runs by itself, and that fails on all of them if it fails on one.

    Without it the others would wait, at the next thing that they send, for one that never comes. The block itself must
    send nothing.

    Args:
        what: is done in it, as "measuring importance".

    Raises:
        ValueError: where another process failed, with what it said; where this one did, its own error.
    """
    if not is_on():
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    said = gather_objects(None if failure is None else f"{failure}" or type(failure).__name__)
    if failure is not None:
        raise failure
    for number, sentence in enumerate(said):
        if sentence is not None:
            raise ValueError(f"{what} failed on rank {number} of {len(said)}: {sentence}")


def check_same(what: str, value: object) -> None:
    """Raise a ValueError on all processes unless this is equal on all of them; its `repr` is shown."""
    found = gather_objects(value)
    for number, each in enumerate(found):
        if each != found[0]:
            raise ValueError(f"{what} must be the same on all ranks: rank 0 has {found[0]!r}, rank {number} {each!r}")


def _carrier(device: torch.device) -> torch.device:
    """The device over which tensors of this one are sent: NCCL knows GPUs alone."""
    backend = torch.distributed.get_backend()
    if device.type == "cpu" and "nccl" in backend and "gloo" not in backend:
        return torch.device("cuda", torch.cuda.current_device())
    return device
