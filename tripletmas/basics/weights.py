"""Parameters as dict[str, Tensor], keyed by canonical name.

A wrapper (DDP, `torch.compile`, AveragedModel) puts a prefix before the names of the model inside it. Canonical names
are those of the bare model, found by unwrapping the objects: cutting prefixes off strings would also cut a submodule
that is really called `module`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from tripletmas.basics.distributed import reshard, whole
from tripletmas.basics.sentences import listed

Params = dict[str, Tensor]

_HOLD_IN_MODULE = (DistributedDataParallel, nn.DataParallel, AveragedModel)


def unwrap(module: nn.Module) -> nn.Module:
    """The bare module inside any number of wrappers."""
    while True:
        if isinstance(module, _HOLD_IN_MODULE):
            module = module.module
        elif isinstance(inner := _held_as(module, "_orig_mod"), nn.Module):
            module = inner  # torch.compile's OptimizedModule, whose class lives in a private package
        else:
            return module


def _held_as(module: nn.Module, name: str) -> Any:
    modules = module.__dict__.get("_modules")
    return modules.get(name) if isinstance(modules, dict) else None  # a scripted module has another kind of table


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by canonical name; one that is tied between layers appears once, under its first name."""
    return {name: place.parameter for name, place in placed_parameters(model).items()}


class Place(NamedTuple):
    """A parameter, and the bare module that has it."""

    parameter: nn.Parameter
    module: nn.Module


def placed_parameters(model: nn.Module) -> dict[str, Place]:
    """Every parameter by canonical name, as in `named_parameters`, with the module that has it."""
    return {name: Place(value, module) for name, value, module in _walk(model, "", "_parameters", set())}


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Every persistent buffer by canonical name."""
    return {name: value for name, value, _ in _walk(model, "", "_buffers", set())}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training may change, by canonical name."""
    return {name: parameter for name, parameter in named_parameters(model).items() if parameter.requires_grad}


def snapshot(parameters: Mapping[str, Tensor]) -> Params:
    """A detached copy of every tensor."""
    return {name: value.detach().clone() for name, value in parameters.items()}


def differing_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """A sentence that lists what is missing, unexpected or of another shape; None if nothing is."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    reshaped = [
        f"{name} {tuple(found[name].shape)} for {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
    return "; ".join(f"{what}: {listed(names)}" for what, names in parts if names) or None


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a model without one."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def read_off(numbers: Sequence[Tensor]) -> list[Any]:
    """The values of tensors of one number each, all at once: a GPU is waited for once."""
    found = [whole(each) for each in numbers]
    return torch.stack([each.to(found[0].device) for each in found]).tolist() if found else []


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the whole model is in eval mode; afterwards every submodule is back in the mode it was in.

    So not `model.train()`: parts may be in eval mode on purpose.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def state_of(model: nn.Module) -> Params:
    """What has to be saved to have the model again: parameters (tied ones once) and persistent buffers."""
    return {name: value.detach() for name, value in (named_parameters(model) | named_buffers(model)).items()}


def load_state(model: nn.Module, state: Params, source: str = "the state") -> None:
    """Copy a state that `state_of` gave into the model.

    Raises:
        ValueError: if names or shapes differ; missing and unexpected ones are listed, and nothing is copied.
    """
    own = named_parameters(model) | named_buffers(model)
    wrong = differing_names(own, state)
    if wrong:
        raise ValueError(f"{source} belongs to another model: {wrong}")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def weight_hash(state: Params) -> str:
    """The SHA-256 of a state, as hex: of each tensor's name, type, shape and bytes, in the order of the names.

    Where the tensors lie and in which order does not matter; any other difference gives another hash. `state_of(model)`
    is the state of a model: its parameters and persistent buffers.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().to("cpu").contiguous()
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _walk(module: nn.Module, prefix: str, kind: str, seen: set[int]) -> Iterator[tuple[str, Any, nn.Module]]:
    module = unwrap(module)
    reshard(module)
    for name, value in getattr(module, kind).items():
        if value is None or id(value) in seen or (kind == "_buffers" and name in module._non_persistent_buffers_set):
            continue
        seen.add(id(value))
        yield prefix + name, value, module
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}{name}.", kind, seen)
