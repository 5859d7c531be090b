"""The models of a run, without its training data: one of them loaded, and images or texts embedded by it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tripletmas.basics import distributed
from tripletmas.basics.weights import Params, load_state, state_of, weight_hash
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.images import ImageFiles, preparation_of
from tripletmas.data.preparation import Preparation, height_and_width
from tripletmas.data.tasks import Stream
from tripletmas.data.tokens import Texts, Tokenizer
from tripletmas.index.images import Reading, Transform
from tripletmas.models.embedding import embed_shared
from tripletmas.models.networks import embedding_dim
from tripletmas.models.text import text_encoder_of
from tripletmas.objectives.kinds import kind_of
from tripletmas.runs.brightness import brightness_learned, looked_at, warn_of_negatives
from tripletmas.runs.catalog import build_model
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import choose_device, config_of, load_trained
from tripletmas.runs.texts import are_texts
from tripletmas.stores.identity import Identity

logger = logging.getLogger(__name__)


class OtherImages(ValueError):
    """A model that takes other images than those it is to be shown."""


class NoneReadable(ValueError):
    """Of several images none can be read."""


@dataclass(frozen=True, eq=False)
class RunModel:
    """The model that a run deploys after a task: one of images or one of texts.

    Args:
        run: the path of the run directory, as it was given.
        hash: of the weights, as `weight_hash` gives it.
        shown: how an image becomes what it is shown, or what reads texts for it.
        mean, deviation: what it normalises the channels by; None where it does not.
        dim: of its embeddings.
        brightness: how bright the images are that it learned from, of each task (see `runs.brightness`); empty where
            that is not known.
    """

    run: str
    after_task: int
    hash: str
    model: nn.Module
    shown: Preparation | Tokenizer
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None
    dim: int
    batch_size: int
    num_workers: int
    brightness: tuple[float, ...] = ()

    @property
    def prepared(self) -> Preparation:
        """How an image becomes what it is shown; a ValueError for a model of texts."""
        if isinstance(self.shown, Tokenizer):
            raise ValueError(f"the model of {self.run} reads texts, and can be shown no images")
        return self.shown

    @property
    def tokenizer(self) -> Tokenizer:
        """What reads texts for it; a ValueError for a model of images."""
        if isinstance(self.shown, Preparation):
            raise ValueError(f"the model of {self.run} takes images, and can read no texts")
        return self.shown


def weight_hashes(run: RunDirectory) -> tuple[str, ...]:
    """The hash of the model after each task that is done.

    Raises:
        ValueError: if no task is done yet, or a file of weights is cut short.
    """
    return tuple(weight_hash(run.weights.read(task)) for task in range(run.task_done() + 1))


def load_model(
    run: RunDirectory, *, after: int | None = None, prepared: Preparation | None = None, device: str = "auto"
) -> RunModel:
    """The model of a run after a task; None for the last that is done.

    Args:
        prepared: how images are made into what the model is shown; None: as the configuration says, or if it says
            nothing (digits have one size), as the data are, which are read for that.

    Raises:
        OtherImages: if the run's images are made otherwise, or it has texts.
        ValueError: if that task is not done yet, the weights do not fit, or the model takes neither images nor texts.
    """
    number = run.task_done(after)
    config = config_of(run)
    found = _prepared(run, config["data"], prepared, number)
    shape = found.shape if found else ()
    options = {key: value for key, value in config["model"].items() if key != "name"}
    made = build_model(kind_of(config), config["model"]["name"], options, shape, of_data=config["data"], start=False)
    model = made.to(choose_device(device))
    state = run.weights.read(number)
    dim = _loaded(model, state, shape, run, number)
    return _run_model(run, number, model, config, found, dim)


def load_with_tasks(run: RunDirectory, *, after: int | None = None, device: str = "auto") -> tuple[RunModel, Stream]:
    """The model of a run after a task, and the tasks that it has learned, whose data are read for that.

    Raises:
        ValueError: as `experiment.load_trained`; if the model takes neither images nor texts.
    """
    experiment, number = load_trained(run, after, device=device)
    learned = experiment.stream[: number + 1]
    query = learned[0].query
    prepared = None if query.texts else _configured(experiment.config["data"]) or preparation_of(query)
    dim = embedding_dim(experiment.model, query.sample_shape)
    return _run_model(run, number, experiment.model, experiment.config, prepared, dim), learned


def _run_model(
    run: RunDirectory, number: int, model: nn.Module, config: Mapping[str, Any], prepared: Preparation | None, dim: int
) -> RunModel:
    """The model of a run with its weights after a task.

    Args:
        prepared: None for one that reads texts.
    """
    reader = text_encoder_of(model)
    shown = prepared or (reader and reader.tokenizer)
    assert shown, "a model of texts was made for texts"
    mean, deviation = normalisation_of(config["model"])
    return RunModel(
        str(run.path),
        number,
        weight_hash(state_of(model)),
        model,
        shown,
        mean,
        deviation,
        dim,
        batch_size=config["training"]["eval_batch_size"],
        num_workers=config["training"]["num_workers"],
        brightness=brightness_learned(run),
    )


def _loaded(model: nn.Module, state: Params, shape: tuple[int, ...], run: RunDirectory, number: int) -> int:
    """The length of the embeddings of a model that takes these weights of a run; `OtherImages` where it cannot."""
    try:
        load_state(model, state, str(run.weights.path(number)))
        return embedding_dim(model, shape)
    except ValueError as error:
        raise OtherImages(str(error)) from None
    except RuntimeError as error:  # torch's, for images that the layers do not fit
        reason = str(error).splitlines()[0]
        raise OtherImages(f"the model of {run.path} takes no images of shape {shape}: {reason}") from None


def normalisation_of(options: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """(mean, deviation) that the options of a model name; None where there are none."""
    mean, deviation = (options.get(each) for each in ("mean", "deviation"))
    return mean and tuple(mean), deviation and tuple(deviation)


def transform_of(model: RunModel, invert: bool) -> Transform:
    """What an index notes of how its images were made."""
    shown = model.prepared
    return Transform(shown.size, shown.channels, invert, shown.interpolation, shown.crop, model.mean, model.deviation)


def identity_by(
    model: RunModel, *, metric: str = "inner_product", normalize: bool = True, invert: bool = False
) -> Identity:
    """What a store notes of vectors by this model, which are compared so."""
    source = os.path.abspath(model.run) if os.path.exists(model.run) else model.run
    reads = model.shown
    shown = Reading(reads.identity, reads.max_length) if isinstance(reads, Tokenizer) else transform_of(model, invert)
    return Identity(model.hash, shown, model.dim, metric, normalize, source, model.after_task)


def prepared_by(transform: Transform) -> Preparation:
    """The part of it that makes an image file into pixels."""
    interpolation: Any = transform.interpolation
    return Preparation(transform.size, transform.channels, interpolation, transform.crop)


def _prepared(run: RunDirectory, data: Mapping[str, Any], asked: Preparation | None, number: int) -> Preparation | None:
    """As it is asked for, else as the configuration says, else as the data are; None for texts."""
    if are_texts(data):
        if asked:
            raise OtherImages(f"the model of {run.path} reads texts, and can be shown no images")
        return None
    configured = _configured(data)
    if configured is None:
        return asked or _of_data(run, number)
    if asked and configured != asked:
        raise OtherImages(f"the model of {run.path} takes images as {configured}, not as {asked}")
    return configured


def _configured(data: Mapping[str, Any]) -> Preparation | None:
    """What the options of data say; None where they do not say all."""
    if data.get("channels") is None or data.get("size") is None:
        return None
    said = {key: data[key] for key in ("interpolation", "crop") if data.get(key) is not None}
    return Preparation(height_and_width(data["size"]), data["channels"], **said)


def _of_data(run: RunDirectory, number: int) -> Preparation | None:
    """How the samples of a run's data are made; None for texts."""
    query = load_trained(run, number)[0].stream[0].query
    return None if query.texts else preparation_of(query)


def embed_images(
    model: RunModel,
    images: ImageFiles,
    *,
    invert: bool = False,
    skip_unreadable: bool = False,
    option: str | None = "--skip-unreadable",
) -> tuple[Tensor, list[int]]:
    """Raw vectors (m, dim) of the images that can be read, and their positions in `images`.

    They are read one after the other, never all in memory.

    Args:
        invert: show black as white and white as black.
        skip_unreadable: leave out images that cannot be read, and log how many; else the first one is an error.
        option: what that error says leaves them out; None: nothing.

    Raises:
        NoneReadable: if none can be read.
        ValueError: naming the image that cannot be read, or whose embedding is not finite.
    """
    vectors, noted = embed_readable(model, images, invert=invert, skip_unreadable=skip_unreadable, option=option)
    kept = kept_of(len(images), noted)
    tell_negatives(model, images, kept, invert=invert)
    return vectors[kept] if noted else vectors, kept


def embed_readable(
    model: RunModel, images: ImageFiles, *, invert: bool, skip_unreadable: bool, option: str | None
) -> tuple[Tensor, dict[int, str]]:
    """As `embed_images`: raw vectors of all images, and why some cannot be read, whose vectors are of black ones."""
    hint = f" ({option} leaves out what cannot be read)" if option else ""
    shown = _Shown(images, model.prepared.shape, hint=None if skip_unreadable else hint)
    dataset = LabelledDataset(shown, torch.zeros(len(images)), ["unlabelled"], paths=images.paths)
    if invert:
        dataset = dataset.with_transform(_negative)
    workers = 0 if skip_unreadable else model.num_workers  # what a worker notes is lost
    vectors = embed_shared(
        model.model, dataset, batch_size=model.batch_size, num_workers=workers, progress=True
    ).vectors
    for noted in distributed.gather_objects(shown.unreadable):
        shown.unreadable |= noted
    return vectors, shown.unreadable


def tell_negatives(model: RunModel, images: ImageFiles, kept: Sequence[int], *, invert: bool) -> None:
    """Warn where images, of which these can be read, are shown as negatives of those that the model learned from."""
    some = images.subset([kept[position] for position in looked_at(len(kept))])
    dataset = LabelledDataset(some, torch.zeros(len(some)), ["unlabelled"])
    if invert:
        dataset = dataset.with_transform(_negative)
    warn_of_negatives(dataset, model.brightness, of=model.run, inverted=invert)


def _negative(image: Tensor) -> Tensor:
    return 1 - image


def kept_of(count: int, unreadable: Mapping[int, str]) -> list[int]:
    """The positions of those of so many images that can be read; logs how many cannot. Raises `NoneReadable`."""
    if not unreadable:
        return list(range(count))
    first = unreadable[min(unreadable)]
    if len(unreadable) == count:
        raise NoneReadable(f"no image can be read; the first: {first}")
    logger.warning("skipped %d of %d images; the first: %s", len(unreadable), count, first)
    return [position for position in range(count) if position not in unreadable]


def embed_texts(model: RunModel, texts: Sequence[str]) -> Tensor:
    """Raw vectors (m, dim) of texts.

    Raises:
        ValueError: if the model takes images; naming the text whose embedding is not finite.
    """
    samples = Texts(texts).read_by(model.tokenizer)
    places = [f"{text:.40}" for text in texts]
    dataset = LabelledDataset(samples, torch.zeros(len(texts)), ["unlabelled"], paths=places, texts=samples.strings)
    return embed_shared(model.model, dataset, batch_size=model.batch_size, progress=True).vectors


class _Shown(Sequence[Tensor]):
    """The images; one that cannot be read is an error that ends with the hint, or, without one, black and noted."""

    def __init__(self, images: Sequence[Tensor], shape: tuple[int, ...], hint: str | None):
        self._images, self._shape, self._hint = images, shape, hint
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        try:
            return self._images[index]
        except ValueError as error:
            if self._hint is not None:
                raise ValueError(f"{error}{self._hint}") from None
            self.unreadable[index] = str(error)
            return torch.zeros(self._shape, dtype=torch.uint8)
