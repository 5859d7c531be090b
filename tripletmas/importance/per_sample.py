"""Exact per-sample gradients: the sum over samples of |d scalar(x_k) / d theta|, for every trainable parameter.

The absolute value is taken per sample, before any sum: gradients of different samples must not cancel, and the result
must not depend on how samples are batched. Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, equation 2.

Shapes: n samples in a batch; the model's output is (n, ...).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from tripletmas.params import Params, device_of, trainable, unwrap

logger = logging.getLogger(__name__)

Forward = Callable[[nn.Module, Any], Tensor]
Scalar = Callable[[Tensor], Tensor]  # the outputs of one sample (1, ...) -> a scalar

# Materialised per-sample gradients of one chunk stay below this many numbers (256 MB in float32).
_CHUNK_NUMBERS = 64 * 2**20
_LARGEST_CHUNK = 64


@dataclass
class PerSampleSums:
    """What a pass over the data gives: sums over samples, and how many samples there were."""

    gradients: Params
    num_samples: int = 0
    scalars: list[Tensor] = field(default_factory=list)  # scalar(x_k) for every sample, (n,) a batch

    def values(self) -> Tensor:
        """scalar(x_k) of every sample, (num_samples,) in float64 on the CPU."""
        return torch.cat([values.detach().double().cpu() for values in self.scalars])


def sum_absolute_gradients(
    model: nn.Module,
    batches: Iterable[Any],
    scalar: Scalar,
    *,
    layer: str | None = None,
    forward: Forward | None = None,
) -> PerSampleSums:
    """Sum_k |d scalar(F(x_k)) / d theta| over all samples, one forward and backward pass a sample.

    The model is measured in eval mode, outside autocast, and left as it was: parameters, gradients, buffers,
    train / eval flags and random generators. Chunks of samples go through `torch.func.vmap`; a model that it cannot
    transform is measured one sample at a time, which a log line says. Both are exact.

    Args:
        scalar: maps the outputs of one sample, (1, ...), to a scalar.
        layer: name of the submodule whose output is measured in place of the model's.
        forward: how to call the model on a batch. Without it a tensor is the input, a tuple's first item is, and
            a dict without its labels is passed as keyword arguments.

    Raises:
        ValueError: without any sample; with no trainable parameter; for an unknown layer; for an output that is no
            tensor of one row a sample, or whose scalar or gradient is not finite.
    """
    parameters = trainable(model)
    if not parameters:
        raise ValueError("the model has no trainable parameter (requires_grad=True), so there is nothing to measure")
    bare = unwrap(model)
    call = forward or _call
    if layer is not None:
        call = _call_layer(bare, layer, call)
    sums = PerSampleSums({name: torch.zeros_like(value) for name, value in parameters.items()})
    device = device_of(bare)
    chunk = max(1, min(_LARGEST_CHUNK, _CHUNK_NUMBERS // sum(value.numel() for value in parameters.values())))
    vectorized = chunk > 1
    with _measuring(bare, device):
        for batch in batches:
            inputs = _to(batch if forward else _inputs(batch), device)
            for part in _split(inputs, chunk):
                values = _vectorized(bare, parameters, part, scalar, call, sums.gradients) if vectorized else None
                if values is None:
                    vectorized = False
                    values = _one_by_one(bare, parameters, part, scalar, call, sums.gradients)
                if not torch.isfinite(values).all():
                    first = sums.num_samples + int((~torch.isfinite(values)).nonzero()[0])
                    raise ValueError(f"the model's output is not finite for sample {first} of the importance data")
                sums.num_samples += len(values)
                sums.scalars.append(values)
    if not sums.num_samples:
        raise ValueError("importance needs at least one sample, and the batches were empty")
    for name, total in sums.gradients.items():
        if not torch.isfinite(total).all():
            raise ValueError(f"the gradient of parameter {name!r} is not finite, although the model's output is")
    return sums


def _vectorized(
    model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Any, scalar: Scalar, call: Forward, total: Params
) -> Tensor | None:
    """Add the gradients of all samples at once; None, and nothing added, where torch.func cannot do it."""
    callee = _Call(model, call)
    # functional_call wants the module's own names, which differ from the canonical ones if a submodule is wrapped
    names = {id(value): name for name, value in callee.named_parameters()}
    own = {names[id(value)]: value.detach() for value in parameters.values()}

    def of_one(values: Params, sample: Any) -> Tensor:
        one = _map(lambda tensor: tensor.unsqueeze(0), sample)
        return scalar(_checked(functional_call(callee, values, (one,)), 1))

    try:
        gradients, scalars = vmap(grad_and_value(of_one), in_dims=(None, 0))(own, inputs)
    except Exception as error:  # of any kind; a mistake that has nothing to do with torch.func shows itself one by one
        logger.info("torch.func cannot transform this model (%s): measured one sample at a time", error)
        return None
    for name, value in parameters.items():
        total[name] += gradients[names[id(value)]].abs().sum(0)
    return scalars


class _Call(nn.Module):
    """`call(model, inputs)` as a module: while it runs, the model itself has the parameters that are substituted."""

    def __init__(self, model: nn.Module, call: Forward):
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, inputs: Any) -> Tensor:
        return self.call(self.model, inputs)


def _one_by_one(
    model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Any, scalar: Scalar, call: Forward, total: Params
) -> Tensor:
    scalars = []
    for sample in _split(inputs, 1):
        value = scalar(_checked(call(model, sample), 1))
        if value.requires_grad:  # otherwise no trainable parameter reaches the output
            gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.abs()
        scalars.append(value.detach())
    return torch.stack(scalars)


@contextmanager
def _measuring(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, gradients on, autocast off; every flag and random generator is afterwards what it was."""
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
            yield
    finally:
        for module, flag in training:
            module.training = flag


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


def _checked(output: Any, num_samples: int) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the model returns a {type(output).__name__}, not a tensor: give forward=, a function "
            "(model, batch) -> embeddings"
        )
    if output.ndim == 0 or len(output) != num_samples:
        raise ValueError(f"the model's output has shape {tuple(output.shape)}, expected one row a sample")
    return output


def _inputs(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in ("label", "labels")}
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def _map(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: _map(function, value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [_map(function, value) for value in batch]
        return type(batch)(*values) if isinstance(getattr(batch, "_fields", None), tuple) else type(batch)(values)
    return batch


def _to(batch: Any, device: torch.device) -> Any:
    return _map(lambda tensor: tensor.to(device, non_blocking=True), batch)


def _length(batch: Any) -> int:
    lengths: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        lengths.append(len(tensor))
        return tensor

    _map(note, batch)
    if not lengths or len(set(lengths)) > 1:
        raise ValueError(f"the tensors of a batch must have one row a sample, got lengths {lengths}")
    return lengths[0]


def _split(batch: Any, size: int) -> Iterator[Any]:
    for start in range(0, _length(batch), size):
        yield _map(lambda tensor, start=start: tensor[start : start + size], batch)
