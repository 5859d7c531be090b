"""Calling a model on a batch: what its inputs are, one sample of it, one layer's output in place of the model's.

Shapes: n samples in a batch; the model's output is (n, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Tensor]


def make_call(model: nn.Module, layer: str | None, forward: Forward | None) -> Forward:
    """(model, inputs) -> outputs (n, ...), checked to be a tensor with one row a sample.

    Args:
        layer: name of the submodule whose output is taken in place of the model's.
        forward: how to call the model; without it inputs are its argument, or its keyword arguments if a dict.

    Raises:
        ValueError: for an unknown layer; when called, for an output that is no tensor of one row a sample.
    """
    call = forward or _call
    if layer is not None:
        call = _call_layer(model, layer, call)

    def checked(model: nn.Module, inputs: Any) -> Tensor:
        output = call(model, inputs)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"the model returns a {type(output).__name__}, not a tensor: give forward=, a function "
                "(model, batch) -> embeddings"
            )
        if output.ndim == 0 or len(output) != num_samples(inputs):
            raise ValueError(f"the model's output has shape {tuple(output.shape)}, expected one row a sample")
        return output

    return checked


def prepared(batch: Any, forward: Forward | None, device: torch.device, dtype: torch.dtype | None) -> Any:
    """What is passed on: the whole batch where there is a `forward`, else the inputs without labels.

    Args:
        dtype: of floating-point inputs; None leaves them as they are.
    """
    if not forward:
        if isinstance(batch, Mapping):
            batch = {key: value for key, value in batch.items() if key not in ("label", "labels")}
        elif isinstance(batch, (tuple, list)):
            batch = batch[0]

    def moved(tensor: Tensor) -> Tensor:
        floating = dtype is not None and tensor.is_floating_point()
        return tensor.detach().to(device, dtype if floating else tensor.dtype, non_blocking=True)

    return apply(moved, batch)


def num_samples(batch: Any) -> int:
    """The number of rows that all tensors of a batch have.

    Raises:
        ValueError: if they differ, or there is no tensor.
    """
    lengths: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.ndim:  # one without rows belongs to the whole batch
            lengths.append(len(tensor))
        return tensor

    apply(note, batch)
    if not lengths or len(set(lengths)) > 1:
        raise ValueError(f"the tensors of a batch must have one row a sample, got lengths {lengths}")
    return lengths[0]


def rows(batch: Any, start: int, stop: int) -> Any:
    """The samples [start, stop) of a batch: rows of tensors, and items of lists that have one for each sample."""
    count = num_samples(batch)

    def part(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: part(each) for key, each in value.items()}
        if isinstance(value, (tuple, list)) and len(value) == count and not any(map(_has_tensors, value)):
            return value[start:stop]
        if isinstance(value, (tuple, list)):
            parts = [part(each) for each in value]
            return type(value)(*parts) if isinstance(getattr(value, "_fields", None), tuple) else type(value)(parts)
        return value[start:stop] if isinstance(value, Tensor) and value.ndim else value

    return part(batch)


def split(batch: Any, size: int) -> Iterator[Any]:
    """Parts of a batch with `size` samples each; the last may be shorter."""
    for start in range(0, num_samples(batch), size):
        yield rows(batch, start, start + size)


def apply(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """The batch with every tensor in it replaced by what `function` makes of it."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: apply(function, value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [apply(function, value) for value in batch]
        return type(batch)(*values) if isinstance(getattr(batch, "_fields", None), tuple) else type(batch)(values)
    return batch


def _has_tensors(value: Any) -> bool:
    found: list[Tensor] = []
    apply(lambda tensor: found.append(tensor) or tensor, value)
    return bool(found)


def _call(model: nn.Module, inputs: Any) -> Tensor:
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def _call_layer(model: nn.Module, layer: str, call: Forward) -> Forward:
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise ValueError(f"the model has no layer {layer!r}; its layers are: {', '.join(filter(None, modules))}")

    def output_of_layer(callee: nn.Module, inputs: Any) -> Tensor:
        outputs: list[Any] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # a copy: the next layer may change its input in place
            outputs.append(output.clone() if isinstance(output, Tensor) else output)

        handle = modules[layer].register_forward_hook(keep)
        try:
            call(callee, inputs)
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise ValueError(f"layer {layer!r} ran {len(outputs)} times in one forward pass; it must run once")
        return outputs[0]

    return output_of_layer
