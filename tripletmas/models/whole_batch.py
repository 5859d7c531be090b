"""A model that is shown a part of a batch in each of several processes, and answers as if it were shown all of it.

What of a forward pass depends on the other samples of a batch, or on their number: the statistics of batch norm, which
are gathered, with their gradient; and what dropout draws, of which each process takes the rows of its own samples. Both
are told by the functions that layers call, whichever layers these are.

Shapes: n samples in the batch, m of them here; c channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tripletmas.basics import distributed
from tripletmas.basics.shares import gather_shares, share
from tripletmas.basics.weights import device_of, unwrap

_DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)


class WholeBatch(TorchFunctionMode):
    """Inside, layers that are called with this process's share of a batch work as in one process with all of it.

    All processes draw the same numbers in it, those that one process draws, as long as their generators are alike.

    Args:
        size: of the whole batch (n).
        draws: whether dropout is drawn for the whole batch; else as each process draws it.
    """

    def __init__(self, size: int, *, draws: bool = True):
        super().__init__()
        self.size, self.own, self.draws = size, share(size), draws

    def __torch_function__(self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is functional.batch_norm:
            return _batch_norm(*args, **options)
        if self.draws and args and isinstance(args[0], Tensor) and args[0].shape[:1] == (len(self.own),):
            if func in _DROPOUTS:
                return self._dropout(func, *args, **options)
            if func is Tensor.bernoulli_:  # as those draw that leave out a block for some samples
                return args[0].copy_(func(self._whole(args[0]), *args[1:], **options)[self._rows])
        return func(*args, **options)

    def _dropout(
        self, function: Callable, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or not p:
            return values
        kept = function(self._whole(values).fill_(1), p, True)[self._rows]
        return values.mul_(kept) if inplace else values * kept

    def _whole(self, values: Tensor) -> Tensor:
        """Without values, (n, ...) for (m, ...), as it lies in memory: in that order it is drawn."""
        whole = values.new_empty(self.size, *values.shape[1:])
        last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
        return whole.to(memory_format=torch.channels_last) if last and not values.is_contiguous() else whole

    @property
    def _rows(self) -> slice:
        return slice(self.own.start, self.own.stop)


def draws_by_itself(model: nn.Module, samples: Tensor, *, draws: bool = True) -> bool:
    """Whether a model, as it is trained, draws random numbers of which `WholeBatch` knows nothing.

    The model and torch's generators are left as they are.

    Args:
        samples: two of them, (2, ...).
        draws: as of `WholeBatch`.
    """
    device, mode = device_of(model), _Undrawn(draws)
    trained = copy.deepcopy(unwrap(model)).train()
    on_gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu), torch.no_grad(), mode:
        before = _generators(device)
        trained(samples.to(device))
        return any(not torch.equal(one, other) for one, other in zip(before, _generators(device), strict=True))


class _Undrawn(TorchFunctionMode):
    """Inside, nothing is drawn that `WholeBatch` would draw."""

    def __init__(self, draws: bool):
        super().__init__()
        self._draws = draws

    def __torch_function__(self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if self._draws and (func in _DROPOUTS or func is Tensor.bernoulli_) and len(args[0]) == 2:
            return args[0]
        return func(*args, **(kwargs or {}))


def _generators(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _batch_norm(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch.nn.functional's; in training by mean and variance of the values in all processes.

    (torch.nn.SyncBatchNorm takes tensors on GPUs alone.)
    """
    if not training:
        return functional.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
    channels, others = values.shape[1], [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, channels, *[1] * (values.ndim - 2)]
    exact = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    own_mean = exact.mean(dim=others)
    squares = (exact - own_mean.view(shape)).square().sum(dim=others)
    count = own_mean.new_full((1,), values.numel() // channels)
    found = gather_shares(torch.cat([count, own_mean, squares])[None], distributed.world_size())
    counts, means, squares = found[:, :1].detach(), found[:, 1 : 1 + channels], found[:, 1 + channels :]
    total = counts.sum()
    mean = (counts * means).sum(dim=0) / total
    spread = squares.sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():  # as torch: they follow the variance with n - 1
            running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
            running_var.lerp_((spread / (total - 1)).detach().to(running_var.dtype), momentum)
    scale = (spread / total + eps).rsqrt() * (1.0 if weight is None else weight)
    normalised = (exact - mean.view(shape)) * scale.view(shape)
    return (normalised if bias is None else normalised + bias.view(shape)).to(values.dtype)
