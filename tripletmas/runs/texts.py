"""Texts meet the model that reads them: its tokenizer makes them samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.data.tokens import Texts
from tripletmas.models.text import PREFIX, text_encoder_of
from tripletmas.objectives.kind import Data


def read_by(model: nn.Module, data: Data, name: str) -> Data:
    """The data as a model reads them: texts by its tokenizer, others as they are.

    Args:
        name: what the model is called.

    Raises:
        ValueError: where the data are texts and the model reads none, or the other way round.
    """
    first = data.stream[0].train
    encoder = text_encoder_of(model)
    if first.texts is None:
        if encoder is not None:
            raise ValueError(
                f"model {name!r} reads texts, and the data have samples of shape {first.sample_shape}: choose a model "
                "of images, or name a column of texts with --data.text"
            )
        return data
    if encoder is None:
        raise ValueError(f"the data are texts, and model {name!r} reads none: choose --model {PREFIX}NAME_OR_FOLDER")
    read: dict[int, Texts] = {}

    def of(part: LabelledDataset) -> LabelledDataset:
        samples = part.samples
        assert isinstance(samples, Texts)
        if id(samples) not in read:
            read[id(samples)] = samples.read_by(encoder.tokenizer)
        return part.with_samples(read[id(samples)])

    stream = tuple(_of_task(task, of) for task in data.stream)
    return replace(data, stream=stream, unseen=data.unseen and _of_task(data.unseen, of))


def are_texts(data: Mapping[str, Any]) -> bool:
    """Whether data with these options are texts, as far as the options say."""
    return data["name"] == "texts" or data.get("text") is not None


def stream_read_by(model: nn.Module, stream: Stream, name: str) -> Stream:
    """The tasks as a model reads them; as `read_by`."""
    return read_by(model, Data(stream), name).stream


def as_begun(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The configuration of a run that begins with this model: where a model of texts is from, and what it is."""
    encoder = text_encoder_of(model)
    if encoder is None or not encoder.source:
        return config
    return config | {"model": config["model"] | encoder.source}


def _of_task(task: Task, of: Callable[[LabelledDataset], LabelledDataset]) -> Task:
    gallery = None if task.gallery is None else of(task.gallery)
    return replace(task, train=of(task.train), query=of(task.query), gallery=gallery)
