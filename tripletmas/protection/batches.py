"""Batches: what is in them; and the state in which a model is measured on them, and left as it was found.

Shapes: n samples in a batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from tripletmas.basics.distributed import is_spread
from tripletmas.basics.sentences import listed, with_article
from tripletmas.basics.weights import device_of, read_off, trainable
from tripletmas.protection.outputs import REMEDY
from tripletmas.protection.shards import PlacesOf, places_of

Forward = Callable[[nn.Module, Any], Tensor]


class Uncallable(Exception):
    """A model failed on what it was given of a batch; no ValueError while a forward pass is watched, which may be to
    blame. `measuring` makes one of it."""


# --- the state in which a model is measured


def measured_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters, by canonical name.

    Raises:
        ValueError: if there is none, for a complex one, and for what torch.inference_mode leaves without a gradient.
    """
    refuse_inference_mode()
    parameters = trainable(model)
    if not parameters:
        raise ValueError("the model has no trainable parameter (requires_grad=True), so there is nothing to measure")
    refuse_complex(parameters)
    spread = [name for name, parameter in parameters.items() if is_spread(parameter)]
    if spread:
        raise ValueError(
            f"{spread[0]} is spread over processes (fully_shard): mas_importance and the consolidate() of "
            "tripletmas.MAS gather such models, and an ImportanceAccumulator is for whole ones"
        )
    made = [name for name, parameter in parameters.items() if parameter.is_inference()]
    if made:
        raise ValueError(
            f"{made[0]} was made under torch.inference_mode(), and has no gradient: make the model outside"
        )
    return parameters


def refuse_inference_mode() -> None:
    """Raise a ValueError under torch.inference_mode, whose tensors can never take part in a gradient."""
    if torch.is_inference_mode_enabled():
        raise ValueError("importance needs gradients: measure and protect outside torch.inference_mode()")


def refuse_complex(parameters: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that names a complex parameter, if there is one."""
    wrong = [name for name, parameter in parameters.items() if parameter.is_complex()]
    if wrong:
        raise ValueError(
            f"complex weights cannot be measured or protected ({wrong[0]}): freeze them, or make their real and "
            "imaginary parts parameters"
        )


@contextmanager
def measuring(model: nn.Module) -> Iterator[Callable[[Any], Any]]:
    """Eval mode, gradients on, autocast and compilation off, half-precision weights as float32.

    Gives a function that brings the tensors of a batch to the model's device, and to float32 where its weights were in
    half precision. Afterwards every flag, tensor and random generator is what it was, also after an exception.
    """
    refuse_inference_mode()
    device, halves = device_of(model), _half_precision(model)
    kept: list[tuple[Tensor, Tensor]] = []  # buffers, and what they held
    with ExitStack() as undone:
        undone.callback(_put_back, kept)
        for module in model.modules():
            undone.callback(setattr, module, "training", module.training)
            for name, value in dict(module._buffers).items():
                undone.callback(module._buffers.__setitem__, name, value)
                if value is not None:
                    kept.append((value, value.clone()))
        for tensor in halves:
            undone.callback(setattr, tensor, "data", tensor.data)
            tensor.data = tensor.data.float()
        model.eval()
        undone.enter_context(torch.enable_grad())
        undone.enter_context(torch.autocast(device.type, enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it would take seconds
            undone.enter_context(torch.compiler.set_stance("force_eager"))
        undone.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))

        def moved(tensor: Tensor) -> Tensor:
            dtype = torch.float32 if halves and tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(device, dtype, non_blocking=True)

        try:
            yield lambda batch: apply(moved, batch)
        except Uncallable as error:
            raise ValueError(str(error)) from error.__cause__


def _half_precision(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers in half precision; none where no parameter is."""
    half = torch.float16, torch.bfloat16
    if not any(parameter.dtype in half for parameter in model.parameters()):
        return []
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in half]


def _put_back(buffers: list[tuple[Tensor, Tensor]]) -> None:
    same = [torch.isclose(value, before, rtol=0, atol=0, equal_nan=True).all() for value, before in buffers]
    for (value, before), is_same in zip(buffers, read_off(same), strict=True):
        if not is_same:
            value.copy_(before)


# --- what is in a batch


def each_batch(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches one after the other; without the samples that a sampler repeats at the end, to give all processes
    equally many.

    Raises:
        ValueError: for what is one batch, or gives samples one by one: where a model takes a sample alone, its numbers
            would be wrong without a word.
    """
    return (batch for batch, _ in each_placed_batch(batches))


def each_placed_batch(batches: Iterable[Any]) -> Iterator[tuple[Any, range | None]]:
    """The same, with the places of its samples in the order that all processes share; None where it is not known."""
    name = type(batches).__name__
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise ValueError(
            f"{with_article(name)} gives samples one by one: give torch.utils.data.DataLoader(it, batch_size=256)"
        )
    if _is_of_hugging_face(batches):
        raise ValueError(
            f"{with_article(name)} of Hugging Face gives samples one by one: give "
            "torch.utils.data.DataLoader(it.with_format('torch'), batch_size=256)"
        )
    if _is_one_batch(batches):
        batch = "torch.as_tensor(batch)" if isinstance(batches, np.ndarray) else "batch"
        raise ValueError(f"{with_article(name)} is one batch, and several are expected: give [{batch}]")
    try:
        iterator = iter(batches)
    except TypeError:
        raise ValueError(f"expected an iterable of batches, such as a DataLoader, got {with_article(name)}") from None
    if isinstance(batches, IterableDataset):
        iterator = _without_samples(name, iterator)
    return _placed(iterator, places_of(batches))


def _without_samples(name: str, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; an error where a label is one number, so that these are samples."""
    for batch in batches:
        if isinstance(batch, Mapping):
            label = batch.get("label", batch.get("labels"))
        else:
            label = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
        if isinstance(label, (int, float)) or (isinstance(label, Tensor) and label.ndim == 0):
            raise ValueError(
                f"this {name} gives samples one by one: give torch.utils.data.DataLoader(dataset, batch_size=256)"
            )
        yield batch


def _placed(batches: Iterator[Any], places: PlacesOf | None) -> Iterator[tuple[Any, range | None]]:
    for number, batch in enumerate(batches):
        if places is None:
            yield batch, None
            continue
        own, has_repeated = places(number)
        if own:
            yield rows(batch, 0, len(own)) if has_repeated else batch, own


def _is_one_batch(batches: Any) -> bool:
    if isinstance(batches, tuple) and all(isinstance(each, Tensor) for each in batches):
        return len({each.ndim for each in batches}) > 1  # (inputs, labels)
    return isinstance(batches, (Tensor, np.ndarray, Mapping, str)) or are_texts(batches)


def _is_of_hugging_face(batches: Any) -> bool:
    """Whether it is a data set, or a stream, of the package `datasets`, which are no data sets of torch's."""
    kinds = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(batches).__mro__]
    return any(each in kinds for each in (("datasets", "Dataset"), ("datasets", "IterableDataset")))


def are_texts(value: Any) -> bool:
    """Whether this is a list or tuple of texts, and of at least one."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(each, str) for each in value)


def num_samples(batch: Any) -> int:
    """The number of rows that all tensors of a batch have; a tensor without rows belongs to the whole batch.

    Raises:
        ValueError: if they differ, or there is no tensor.
    """
    lengths = [len(tensor) for tensor in _tensors(batch) if tensor.ndim]
    if not lengths:
        remedy = ": give torch.as_tensor(batch)" if isinstance(batch, np.ndarray) else ""
        if isinstance(batch, Mapping):
            remedy = f", of {listed(map(str, batch))}: name texts 'text' or 'sentence', or {REMEDY}"
        raise ValueError(
            "a batch must hold a tensor with one row a sample, got "
            f"{with_article(type(batch).__name__)} without any{remedy}"
        )
    if len(set(lengths)) > 1:
        raise ValueError(f"the tensors of a batch must have one row a sample, got lengths {lengths}")
    return lengths[0]


def rows(batch: Any, start: int, stop: int) -> Any:
    """The samples [start, stop) of a batch: rows of tensors, and items of lists that have one for each sample."""
    return _of_each_sample(batch, lambda values: values[start:stop])


def chosen(batch: Any, samples: Sequence[int]) -> Any:
    """The samples with these numbers, in rising order; the batch itself if these are all."""
    if len(samples) == num_samples(batch):
        return batch
    if len(samples) == samples[-1] - samples[0] + 1:
        return rows(batch, samples[0], samples[-1] + 1)
    return _of_each_sample(
        batch, lambda values: values[samples] if isinstance(values, Tensor) else [values[each] for each in samples]
    )


def _of_each_sample(batch: Any, part: Callable[[Any], Any]) -> Any:
    """The batch with a part of each tensor with rows, and of each list without tensors that has an item a sample."""
    count = num_samples(batch)

    def parted(value: Any) -> Any:
        if isinstance(value, Tensor):
            return part(value) if value.ndim else value
        if isinstance(value, (tuple, list)) and len(value) == count and not any(True for _ in _tensors(value)):
            return part(value)
        return _with_each(parted, value)

    return parted(batch)


def split(batch: Any, size: int) -> Iterator[Any]:
    """Parts of a batch with `size` samples each; the last may be shorter."""
    for start in range(0, num_samples(batch), size):
        yield rows(batch, start, start + size)


def apply(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """The batch with every tensor in it replaced by what `function` makes of it."""
    if isinstance(batch, Tensor):
        return function(batch)
    return _with_each(lambda value: apply(function, value), batch)


def _with_each(function: Callable[[Any], Any], value: Any) -> Any:
    """A dict, tuple or list with each of its values replaced by what `function` makes of it; others as they are."""
    if isinstance(value, Mapping):
        return {key: function(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        values = [function(each) for each in value]
        return type(value)(*values) if isinstance(getattr(value, "_fields", None), tuple) else type(value)(values)
    return value


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(value)
