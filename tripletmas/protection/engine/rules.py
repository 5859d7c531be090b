"""The table of rules: function -> what makes a rule of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine.convolution import Convolution
from tripletmas.protection.engine.kinds import Embedding, Linear, Scale
from tripletmas.protection.engine.rule import Rule, present

# A maker gives None where a rule does not apply.


def _matmul(input: Tensor, other: Tensor) -> Rule | None:
    return Linear(input, other, transposed=True) if other.ndim == 2 and input.ndim >= 2 else None


def _transposed_convolution(*args: Any, **kwargs: Any) -> Rule:
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    return Convolution(**dict(zip(names, args, strict=False)), **kwargs, transposed=True)


def _normalisation(function: Callable[..., Tensor], along: Literal["last", "channels"]) -> Callable[..., Rule | None]:
    def make(*args: Any, **kwargs: Any) -> Rule | None:
        options = _bound(function, args, kwargs)
        if options.get("training"):
            return None  # normalised by the batch: samples influence each other
        weights = present(options.pop("weight", None), options.pop("bias", None))
        return Scale(options.pop("input"), weights, partial(function, **options), along)

    return make


def _prelu(input: Tensor, weight: Tensor) -> Rule:
    return Scale(
        input, {"weight": weight}, partial(torch.clamp, max=0), "nothing" if weight.numel() == 1 else "channels"
    )


def _embedding(*args: Any, **kwargs: Any) -> Rule | None:
    call = _bound(F.embedding, args, kwargs)
    # the first changes the weight while it is looked up, the second counts words over the whole batch
    if call.get("max_norm") is not None or call.get("scale_grad_by_freq"):
        return None
    return Embedding(call["input"], call["weight"], call.get("padding_idx"))


def _bound(function: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call by name, without defaults."""
    return dict(_signature(function).bind(*args, **kwargs).arguments)


_signature = cache(inspect.signature)

RULES: dict[Callable[..., Any], Callable[..., Rule | None]] = {
    F.linear: Linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), Convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed_convolution),
    F.layer_norm: _normalisation(F.layer_norm, "last"),
    F.rms_norm: _normalisation(F.rms_norm, "last"),
    **{each: _normalisation(each, "channels") for each in (F.batch_norm, F.instance_norm, F.group_norm)},
    F.prelu: _prelu,
    F.embedding: _embedding,
}
