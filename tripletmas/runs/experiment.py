"""From a configuration to a run: build the parts, open the run directory, train, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tripletmas.basics import distributed
from tripletmas.basics.launched import launched
from tripletmas.basics.logs import errors_only
from tripletmas.basics.sentences import listed
from tripletmas.basics.version import versions
from tripletmas.data.batches import seed_everything
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import Embedder
from tripletmas.models.networks import embedding_dim
from tripletmas.models.parts import freeze
from tripletmas.objectives.kind import Data, Kind
from tripletmas.objectives.kinds import kind_of
from tripletmas.objectives.objective import Objective
from tripletmas.objectives.scores import Scores
from tripletmas.runs import catalog, configuration, log, texts
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.galleries import GalleryConfig, own_images
from tripletmas.runs.loop import Listener, train_stream
from tripletmas.runs.options import TrainConfig, split_backbone
from tripletmas.runs.resume import changed_tasks, check_identities
from tripletmas.runs.sharing import check_shares
from tripletmas.runs.start import check_start
from tripletmas.runs.strength import SearchConfig
from tripletmas.strategies.base import Strategy

_HINT = "use --device auto or cpu"
_STRENGTH_OF_GRAM = 30.0  # in place of its default, which is a budget and no strength

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """The parts of a run, built from its configuration."""

    config: dict[str, Any]
    stream: Stream
    model: nn.Module
    kind: Kind
    objective: Objective
    strategy: Strategy
    training: TrainConfig
    search: SearchConfig | None = None
    gallery: GalleryConfig = field(default_factory=GalleryConfig)
    unseen: Task | None = None


def build(config: Mapping[str, Any], *, data: Data | None = None, start: bool = True) -> Experiment:
    """The parts that a configuration names; what it leaves out has its default.

    Args:
        data: what the configuration names, where it was read before; None reads it.
        start: give the model the weights that it starts from, as a file or a download; not where a run has its own.

    Raises:
        ValueError: for unknown names and options, for data that cannot be read, for a device that is not there.
    """
    resolved = configuration.resolve(config)
    device = choose_device(resolved["device"])
    named, model, loss, strategy = (
        (resolved[part]["name"], {key: value for key, value in resolved[part].items() if key != "name"})
        for part in catalog.PARTS
    )
    kind = kind_of(resolved)
    training = TrainConfig(**resolved["training"], seed=resolved["seed"])
    made_strategy, search = _strategy(*strategy, resolved)
    built = data or catalog.build_data(*named, kind)
    shape = built.stream[0].train.sample_shape
    seed_everything(resolved["seed"])
    made_model = catalog.build_model(kind, *model, shape, of_data=named[1], data=built, start=start).to(device)
    built, resolved = texts.read_by(made_model, built, model[0]), texts.as_begun(resolved, made_model)
    if training.freeze:
        freeze(made_model, training.freeze)
    if training.backbone_lr is not None:
        split_backbone(made_model)  # whether there is one is told before anything is written
    dim = _dim_of(made_model, shape, model[0])
    objective = catalog.build_objective(kind, *loss, dim=dim, data=built).to(device)
    objective.embed = Embedder(training.eval_batch_size, training.num_workers)  # also for those who do not train
    return Experiment(
        config=resolved,
        stream=built.stream,
        model=made_model,
        kind=kind,
        objective=objective,
        strategy=made_strategy,
        training=training,
        search=search,
        gallery=GalleryConfig(**resolved["gallery"]),
        unseen=built.unseen,
    )


def _dim_of(model: nn.Module, shape: tuple[int, ...], name: str) -> int:
    """The length of a model's embedding; what goes wrong in the code of one's own is one error that names it."""
    try:
        return embedding_dim(model, shape)
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"model {name!r} cannot take samples {tuple(shape)}: {type(error).__name__}: {error}"
        ) from error


def run_experiment(
    config: Mapping[str, Any], out: str | Path, *, logger: str | None = None, listener: Listener | None = None
) -> Scores:
    """Train what a configuration describes into the run directory `out`; go on where it stopped, if it did.

    Args:
        logger: who else is told, "tensorboard", "wandb" or "mlflow"; "none"; None for those that the run has told.
        listener: called, in the main process, at the start and whenever a checkpoint has been saved.

    Raises:
        ValueError: as `build`, and if `out` holds another run.
    """
    has_started = RunDirectory(out).has_started()
    experiment = build(config, start=not has_started)
    own_images(experiment.gallery, experiment.stream[0].train, in_memory=False)  # or no run is begun
    check_shares(experiment.stream, experiment.training)
    if not has_started:
        check_start(
            experiment.model,
            experiment.strategy,
            experiment.objective,
            experiment.stream,
            experiment.training,
            name=experiment.config["model"]["name"],
        )
    distributed.barrier()  # until all have seen whether it had started
    run = _created(out, {"version": versions(), **experiment.config})
    with log.followed(run, logger) as follow:
        return train_stream(
            experiment.model,
            experiment.stream,
            experiment.strategy,
            experiment.objective,
            experiment.training,
            run,
            experiment.search,
            gallery=experiment.gallery,
            unseen=experiment.unseen,
            listener=_both(follow, listener if distributed.is_main() else None),
        )


def _both(one: Listener, other: Listener | None) -> Listener:
    def listen() -> None:
        one()
        if other is not None:
            other()

    return listen


def _created(out: str | Path, config: Mapping[str, Any]) -> RunDirectory:
    """The run directory, which of several processes the main one makes."""
    if distributed.is_main():
        RunDirectory.create(out, config, completed=_completed)
    distributed.barrier()
    return RunDirectory.open(out)


def config_of(run: RunDirectory) -> dict[str, Any]:
    """The whole configuration of a run; what it lacks is of an option that came later.

    Raises:
        ValueError: if it does not say what the run consists of, as that of a run which a program of one's own began;
            as `configuration.resolve`.
    """
    config = run.config()
    if lacking := [part for part in (*catalog.PARTS, "training") if part not in config]:
        raise ValueError(
            f"{run.path}/config.yaml does not say which {listed(lacking)} the run has: a program of its own began it, "
            "and goes on with it by train_stream"
        )
    return configuration.resolve(config)


def load_trained(run: RunDirectory, after: int | None = None, *, device: str | None = None) -> tuple[Experiment, int]:
    """The parts of a run with the weights after a task, and the number of that task; None for the last that is done.

    Args:
        device: another one than that of the run's configuration.

    Raises:
        ValueError: if that task is not done yet, the weights do not fit, records are not those of the checkpoint, or
            facts or their vectors have changed. Other data that have changed since are warned of.
    """
    number = run.task_done(after)
    run.check_record_sum()
    with errors_only("tripletmas"):  # training has told of the data, and that they have changed is told besides
        experiment = build(config_of(run) | ({"device": device} if device else {}), start=False)
    check_identities(run, experiment.objective, experiment.stream)
    if changed := changed_tasks(run, experiment.stream):
        names = listed(map(repr, changed))
        logger.warning("the data of task %s have changed since the run in %s learned them", names, run.path)
    run.load_weights(experiment.model, number)
    if state := run.objectives.find(number):
        experiment.objective.load(state, experiment.stream, str(run.objectives.path(number)))
    return experiment, number


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is a GPU if there is one, of several processes each has its own.

    Raises:
        ValueError: if it is not there.
    """
    unknown = f"unknown device {name!r}: use auto, cpu, cuda or cuda:NUMBER"
    try:
        device = torch.device(_of_process(name))
    except RuntimeError:
        raise ValueError(unknown) from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(unknown)
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= number:
        found = f"{number} CUDA devices" if number else "no CUDA device"
        hint = "start no more processes than there are, or use --device cpu" if launched() else _HINT
        raise ValueError(f"device {str(device)!r} was asked for, but torch sees {found}: {hint}")
    return device


def _of_process(name: str) -> str:
    """The name of a device, `auto` told, for one of several processes that of its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    process = launched()
    if process is None or not name.startswith("cuda"):
        return name
    if name != "cuda":
        raise ValueError(f"device {name!r} would be that of all {process.world_size} processes: use auto or cuda")
    return f"cuda:{process.local_rank}"


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
        default = catalog.options("strategy", part or name)["strength"].default
        search = replace(search, start=32 * (_STRENGTH_OF_GRAM if default is None else default))
    if not part:
        return catalog.build_strategy(name, {**options, "strength": search.start}), search
    given = {**options, part: {**options[part], "strength": search.start}}
    return catalog.build_strategy(name, given, searched=part), search
