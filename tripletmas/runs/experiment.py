"""From a configuration to a run: build the parts, open the run directory, train, report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tripletmas.basics.sentences import listed
from tripletmas.basics.version import versions
from tripletmas.basics.weights import load_state, state_of
from tripletmas.data.batches import seed_everything
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.networks import embedding_dim
from tripletmas.objectives.recognition.class_means import ClassMeans
from tripletmas.objectives.recognition.heads import Recognition
from tripletmas.objectives.scores import Scores
from tripletmas.runs import catalog, configuration
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.galleries import GalleryConfig
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.resume import changed_tasks, check_language
from tripletmas.runs.strength import SearchConfig
from tripletmas.strategies.base import Strategy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """The parts of a run, built from its configuration."""

    config: dict[str, Any]
    stream: Stream
    model: nn.Module
    loss: nn.Module
    strategy: Strategy
    training: TrainConfig
    search: SearchConfig | None = None
    gallery: GalleryConfig = field(default_factory=GalleryConfig)
    unseen: Task | None = None


def build(config: Mapping[str, Any], *, data: catalog.Data | None = None) -> Experiment:
    """The parts that a configuration names; what it leaves out has its default.

    Args:
        data: what the configuration names, where it was read before; None reads it.

    Raises:
        ValueError: for unknown names and options, for data that cannot be read, for a device that is not there.
    """
    resolved = configuration.resolve(config)
    device = choose_device(resolved["device"])
    named, model, loss, strategy = (
        (resolved[part]["name"], {key: value for key, value in resolved[part].items() if key != "name"})
        for part in catalog.PARTS
    )
    training = TrainConfig(**resolved["training"], seed=resolved["seed"])
    made_strategy, search = _strategy(*strategy, resolved)
    built = data or catalog.build_data(*named)
    stream, language = built.stream, built.language
    first = stream[0].train
    seed_everything(resolved["seed"])
    made_model = catalog.build_model(*model, first.sample_shape, part_dim=language.dim if language else None).to(device)
    dim = embedding_dim(made_model, first.sample_shape)
    if resolved["objective"] == "recognition":
        made_loss: nn.Module = Recognition(dim, [task.classes for task in stream], first.class_names)
    else:
        made_loss = catalog.build_loss(*loss, dim=dim, num_classes=len(first.class_names), language=language)
    gallery = GalleryConfig(**resolved["gallery"])
    parts = (stream, made_model, made_loss.to(device), made_strategy, training, search, gallery, built.unseen)
    return Experiment(resolved, *parts)


def run_experiment(config: Mapping[str, Any], out: str | Path) -> Scores:
    """Train what a configuration describes into the run directory `out`; go on where it stopped, if it did.

    Raises:
        ValueError: as `build`, and if `out` holds another run.
    """
    experiment = build(config)
    run = RunDirectory.create(out, {"version": versions(), **experiment.config}, completed=_completed)
    return train_stream(
        experiment.model,
        experiment.stream,
        experiment.strategy,
        experiment.loss,
        experiment.training,
        run,
        experiment.search,
        gallery=experiment.gallery,
        unseen=experiment.unseen,
    )


def load_trained(run: RunDirectory, after: int | None = None, *, device: str | None = None) -> tuple[Experiment, int]:
    """The parts of a run with the weights after a task, and the number of that task; None for the last that is done.

    Args:
        device: another one than that of the run's configuration.

    Raises:
        ValueError: if that task is not done yet, the weights do not fit, or facts or their vectors have changed. Other
            data that have changed since are warned of.
    """
    number = run.task_done(after)
    with _told_before():
        experiment = build(run.config() | ({"device": device} if device else {}))
    check_language(run, experiment.loss, experiment.stream)
    if changed := changed_tasks(run, experiment.stream):
        names = listed(map(repr, changed))
        logger.warning("the data of task %s have changed since the run in %s learned them", names, run.path)
    run.load_weights(experiment.model, number)
    if isinstance(experiment.loss, Recognition):
        saved = state_of(experiment.loss) | run.loss_states.read(number)  # tasks may have been added since
        load_state(experiment.loss, saved, str(run.loss_states.path(number)))
    return experiment, number


@contextmanager
def _told_before() -> Iterator[None]:
    """Without warnings about the data: training has told them, and that data have changed is told besides."""
    logger = logging.getLogger("tripletmas")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_means(run: RunDirectory, stream: Stream, number: int) -> ClassMeans:
    """The class means of a recognition run after task `number` of its stream.

    Raises:
        ValueError: if their file is missing or cut short.
    """
    means = ClassMeans()
    means.load_state_dict(run.class_means.read(number), stream)
    return means


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is a GPU if there is one.

    Raises:
        ValueError: if it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unknown = f"unknown device {name!r}: use auto, cpu, cuda or cuda:NUMBER"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(unknown) from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(unknown)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise ValueError(f"device {name!r} was asked for, but torch sees {found}: use --device auto or cpu")
    return device


def _completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with today's defaults for what it lacks; as it is where it cannot be understood any more."""
    try:
        return configuration.resolve(config)
    except ValueError:
        return config


def _strategy(name: str, options: dict[str, Any], config: Mapping[str, Any]) -> tuple[Strategy, SearchConfig | None]:
    """The strategy, and how its strength is searched, if it is `auto`: it then starts with what the search starts with.

    Raises:
        ValueError: as the catalog.
    """
    part = configuration.searched(config["strategy"])
    if part is None:
        return catalog.build_strategy(name, options), None
    search = SearchConfig(**config["search"])
    if search.start is None:
        search = replace(search, start=32 * catalog.options("strategy", part or name)["strength"].default)
    if not part:
        return catalog.build_strategy(name, {**options, "strength": search.start}), search
    given = {**options, part: {**options[part], "strength": search.start}}
    return catalog.build_strategy(name, given, searched=part), search
