"""What a guest in another's training loop does, whatever the loop: what it is given, what it measures at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, get_args

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from tripletmas.basics.distributed import gather_objects, rank, world_size
from tripletmas.basics.sentences import with_article
from tripletmas.basics.weights import named_parameters, unwrap
from tripletmas.protection.attachment import Clip
from tripletmas.protection.file import described
from tripletmas.protection.guard import Guard
from tripletmas.protection.optimizers import in_train_mode, parameters_of

# --- what it is given


def check_arguments(protection: Any, clip: str) -> None:
    """Raise a ValueError for what is no protection, or no place for the penalty."""
    if not isinstance(protection, Guard):
        given = protection.__name__ if isinstance(protection, type) else with_article(type(protection).__name__)
        raise ValueError(f"a callback takes a protection of the model, such as tm.MAS(model), got {given}")
    if clip not in get_args(Clip):
        raise ValueError(f"clip must be 'before' or 'after', got {clip!r}")


def check_consolidate(consolidate: Any) -> None:
    """Raise a ValueError for what says neither whether to measure, nor on what: else it would fail after training."""
    if not isinstance(consolidate, bool) and not callable(consolidate):
        kind = type(consolidate).__name__
        raise ValueError(f"consolidate must be True, False or a function that gives batches, got {with_article(kind)}")


def check_is_only_one(protection: Guard, callbacks: Iterable[Any], kind: type) -> None:
    """Raise a ValueError where several callbacks of a kind have one protection: it would count each task twice."""
    if sum(isinstance(each, kind) and each.protection is protection for each in callbacks) > 1:
        raise ValueError(f"two {kind.__name__}s have one protection, which would count each task twice: leave one out")


def let_answer(optimizers: Iterable[Any]) -> None:
    """Let the weights be those with which a model answers: schedule-free optimizers train with others."""
    for each in optimizers:
        if in_train_mode(each):
            each.eval()


def check_is_part(protection: Guard, model: nn.Module, what: str) -> None:
    """Raise a ValueError unless a protection holds this model or a part of it."""
    held = unwrap(protection.model)
    if not any(module is held for module in unwrap(model).modules()):
        raise ValueError(
            f"the protection is one of another model, {with_article(type(held).__name__)} that is no part of {what}, "
            f"{with_article(type(unwrap(model)).__name__)}: make it of the model that is trained, tm.MAS(model)"
        )


def has_own_weights(protection: Guard, optimizer: Optimizer) -> bool:
    """Whether an optimizer steps a parameter of the model that is protected."""
    own = {id(parameter) for parameter in named_parameters(protection.model).values()}
    return bool(parameters_of(optimizer, own))


# --- in a framework's checkpoint


def measure(protection: Guard) -> dict[str, Any]:
    """How a protection measures importance, as plain values: what is in another unit does not add up."""
    return described(protection.estimate)


def check_measure(protection: Guard, saved: Any, where: str) -> None:
    """Raise a ValueError where what was saved was measured otherwise than this protection does."""
    if saved != measure(protection):
        raise ValueError(f"{where} holds a protection that measured with {saved}, and this one: {measure(protection)}")


# --- at the end of a task


def once_each(
    loader: Any, num_batches: int | None = None, *, num_batches_of_stream: int | None = None
) -> Iterable[Any]:
    """Batches with each sample once that a training loader draws in an epoch, in the order of the data set.

    Over several processes each has its share, without what samplers repeat to make shares equal. Of a batch sampler of
    one's own the batches are as it draws them, without what comes again. Loaders of streams (`IterableDataset`), and
    what is no `DataLoader`, are gone through as they are.

    Args:
        num_batches: so many of the loader's batches at most; None takes all.
        num_batches_of_stream: so many of a stream, which may have no end.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return islice(loader, num_batches_of_stream)
    own = _own_share(loader, _drawn(loader, num_batches))
    gives_batches = loader.batch_sampler is None  # the data set does
    return DataLoader(
        loader.dataset,
        batch_size=None if gives_batches else 1,
        sampler=[position for batch in own for position in batch] if gives_batches else None,
        batch_sampler=None if gives_batches else own,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        multiprocessing_context=loader.multiprocessing_context,
        worker_init_fn=loader.worker_init_fn,
    )


def _drawn(loader: DataLoader, num_batches: int | None) -> list[list[Any]]:
    """The positions of the batches of an epoch."""
    with torch.random.fork_rng(devices=[]):  # a sampler that shuffles takes its seed from it
        if loader.batch_sampler is None:
            return [[position] for position in islice(iter(loader.sampler), num_batches)]
        return [list(batch) for batch in islice(iter(loader.batch_sampler), num_batches)]


def _own_share(loader: DataLoader, drawn: list[list[Any]]) -> list[list[Any]]:
    """Of the batches that are drawn, here and on other processes: those that this one has, each position once."""
    number, count = (rank(), world_size()) if _is_share(loader) else (0, 1)
    everywhere = gather_objects(drawn) if count > 1 else [drawn]
    if not _is_plain(loader):
        return _new_ones(drawn, set(_positions(everywhere[:number])))
    positions = sorted(set(_positions(everywhere)))[number::count]
    size = max(map(len, drawn), default=1)
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _positions(everywhere: list[list[list[Any]]]) -> Iterator[Any]:
    return (position for batches in everywhere for batch in batches for position in batch)


def _new_ones(batches: list[list[Any]], seen: set[Any]) -> list[list[Any]]:
    """Without positions that were seen, there or in an earlier batch; and without batches of which nothing is left."""
    found = []
    for batch in batches:
        new = [position for position in dict.fromkeys(batch) if position not in seen]
        seen.update(new)
        if new:
            found.append(new)
    return found


def _is_plain(loader: DataLoader) -> bool:
    """Whether any samples may come together in a batch: they are drawn one by one."""
    grouped = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)  # accelerate's share of one
    return grouped is None or type(grouped) is BatchSampler


def _is_share(loader: DataLoader) -> bool:
    """Whether a loader draws one process's share of samples: torch's and Lightning's samplers say `num_replicas`, those
    of accelerate `num_processes`."""
    samplers = (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    return any(getattr(each, name, 1) > 1 for each in samplers for name in ("num_replicas", "num_processes"))
