"""The state in which a model is measured, and left behind as it was found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.float16, torch.bfloat16)


@contextmanager
def measuring(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, gradients on, autocast and compilation off, half-precision weights as float32.

    Afterwards every flag, tensor and random generator is what it was, also after an exception.
    """
    training = [(module, module.training) for module in model.modules()]
    halves = [(tensor, tensor.data) for tensor in _tensors(model) if tensor.dtype in _HALF] if float_type(model) else []
    buffers = [
        (module, name, value, None if value is None else value.clone()) for module, name, value in _buffers(model)
    ]
    try:
        model.eval()
        for tensor, data in halves:
            tensor.data = data.float()
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(device.type, enabled=False))
            if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it would take seconds
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
            yield
    finally:
        for tensor, data in halves:
            tensor.data = data
        for module, name, value, before in buffers:
            module._buffers[name] = value
            if value is not None and before is not None and not _is_same(value, before):
                value.copy_(before)
        for module, flag in training:
            module.training = flag


def float_type(model: nn.Module) -> torch.dtype | None:
    """The type that floating-point inputs must have while the model is measured; None for the one they have."""
    return torch.float32 if any(parameter.dtype in _HALF for parameter in model.parameters()) else None


def _tensors(model: nn.Module) -> list[Any]:
    found: dict[int, Tensor] = {id(each): each for each in model.parameters()}
    return list((found | {id(each): each for each in model.buffers()}).values())


def _buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor | None]]:
    return [(module, name, value) for module in model.modules() for name, value in dict(module._buffers).items()]


def _is_same(value: Tensor, before: Tensor) -> bool:
    if value.dtype != before.dtype:
        return True  # half precision: its data have been put back
    return torch.equal(value, before) or bool(((value == before) | (value.isnan() & before.isnan())).all())
