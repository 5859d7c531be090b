"""What a run's records tell, in TensorBoard, Weights & Biases or MLflow, while it is trained.

The records decide: a log follows them once a checkpoint stands, catches up with what it has not, and says nothing
twice. So a run that was killed goes on in the same log, and a run may get one when half of it is done.

Told are, by the number of epochs done, `train/loss`, `train/penalty`, `train/rate` and `train/share_held` (the share of
the weights that is protected while the epoch lasts); by the number of tasks done `task/recall_at_1` (or the metric by
which the kind of task is judged, a mean over the tasks seen), `task/forgetting` and `task/stale` (the same metric where
stored galleries stay as they are).
"""

from __future__ import annotations

import importlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tripletmas.basics import distributed
from tripletmas.basics.files import checksum, make_folder, read_json, save_json
from tripletmas.basics.sentences import suggestion
from tripletmas.objectives.kind import Primary
from tripletmas.objectives.kinds import kind_of
from tripletmas.objectives.scores import Scores, average, forgetting
from tripletmas.protection.coverage import Coverage
from tripletmas.runs.directory import RunDirectory, flatten
from tripletmas.runs.records import Record

logger = logging.getLogger(__name__)

PROJECT = "tripletmas"  # of Weights & Biases; the experiment of MLflow
_WHAT_THEN = "training goes on, and `tripletmas resume` tells the rest"
_NEEDS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
_AXES = {"train": "epoch", "task": "tasks"}  # first part of a name -> what it is drawn over


@dataclass(frozen=True)
class Point:
    """What one record tells.

    Args:
        number: of the record, from 0.
        at: how many epochs, or tasks, were done with it.
        values: by name, `train/...` or `task/...`; none that is nan.
    """

    number: int
    at: int
    values: Mapping[str, float]


class Writer(Protocol):
    """A log in the format of a library."""

    def write(self, point: Point) -> None:
        """Add what is not in it yet."""

    def close(self, *, done: bool) -> None:
        """Have all of it written; `done`: the run is, and was not interrupted."""


@contextmanager
def followed(run: RunDirectory, logger: str | None) -> Iterator[Callable[[], None]]:
    """A function for a `with` block, to be called when the records of a run tell more: it brings the log up to them.

    Args:
        logger: a name of `LOGGERS`; "none"; or None for those that the run has.
    """
    names = [name for name in LOGGERS if logger == name or (logger is None and _marker(run, name).is_file())]
    logs = [_Log(run, name) for name in names if distributed.is_main()]

    def follow() -> None:
        for each in logs:
            each.follow()

    done = False
    try:
        yield follow
        done = True
    finally:
        for each in logs:
            each.close(done=done)


def check_logger(name: str) -> None:
    """Whether there is a logger of this name, and what it needs.

    Raises:
        ValueError: if not.
    """
    if name not in (*LOGGERS, "none"):
        raise ValueError(
            f"unknown logger {name!r}{suggestion(name, LOGGERS)}: choose tensorboard, wandb, mlflow or none"
        )
    if name != "none":
        _imported(name)


def points(records: Iterable[Record], primary: Primary) -> list[Point]:
    """What the records of a run tell, in their order."""
    records = list(records)
    scores = Scores(tuple(map(str, range(1 + max((each.get("task", 0) for each in records), default=0)))))
    found, done, share = [], {"epoch": 0, "task": 0}, math.nan
    for number, record in enumerate(records):
        if record["kind"] not in done:
            continue
        done[record["kind"]] += 1
        if record["kind"] == "epoch":
            values = {f"train/{name}": record.get(name) for name in ("loss", "penalty", "rate")}
            values["train/share_held"] = share
        else:
            scores.take(record)
            share = Coverage.from_json(record.get("unprotected") or {}).share_held
            values = _of_task(scores, primary)
        found.append(Point(number, done[record["kind"]], _known(values)))
    return found


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and not math.isnan(value)}


def _of_task(scores: Scores, primary: Primary) -> dict[str, float]:
    def mean(metric: str, gallery: str) -> float:
        matrix = scores.matrices.get(gallery, {}).get(metric)
        return math.nan if matrix is None else average(matrix)

    matrix = scores.matrices.get(primary.gallery, {}).get(primary.metric)
    return {
        f"task/{primary.metric.replace('@', '_at_')}": mean(primary.metric, primary.gallery),
        "task/forgetting": math.nan if matrix is None else forgetting(matrix),
        "task/stale": mean(primary.searched, "seen_stale"),
    }


# --- one log of a run


class _Log:
    """A log of a run, opened when it is first asked to follow."""

    def __init__(self, run: RunDirectory, name: str):
        self._run, self._name = run, name
        self._writer: Writer | None = None
        self._has_failed = False

    def follow(self) -> None:
        """Tell what is not told yet; what a library cannot take is told when the run goes on the next time."""
        if self._has_failed:
            return
        config = self._run.config()
        writer = self._writer = self._writer or self._opened(config)
        told = points(self._run.records(), kind_of(config).primary)
        try:
            for point in told[self._num_told() :]:
                writer.write(point)
        except Exception as error:  # a server that is away, a full disk: training is worth more than its log
            self._has_failed = True
            logger.warning("the log for %s stops here (%s): %s", self._name, _sentence(error), _WHAT_THEN)
        else:
            save_json(_marker(self._run, self._name), {"points": len(told)})

    def _opened(self, config: Mapping[str, Any]) -> Writer:
        _imported(self._name)
        folder = _marker(self._run, self._name).parent
        try:
            make_folder(folder)
            return LOGGERS[self._name](self._run, folder, config)
        except Exception as error:
            raise ValueError(
                f"--logger {self._name} cannot begin ({_sentence(error)}): --logger none does without"
            ) from error

    def close(self, *, done: bool) -> None:
        if self._writer is not None:
            self._writer.close(done=done)

    def _num_told(self) -> int:
        marker = _marker(self._run, self._name)
        return int(read_json(marker, "delete it")["points"]) if marker.is_file() else 0


def _marker(run: RunDirectory, name: str) -> Path:
    """The file that says how much of a run a log tells; beside it are the log's own files, where it has any here."""
    return run.path / "log" / f"{name}.json"


def _identity(run: RunDirectory) -> str:
    return run.identity or checksum(str(run.path.resolve()).encode())


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"


def _imported(name: str) -> None:
    try:
        importlib.import_module(_NEEDS[name])
    except ImportError as error:
        raise ValueError(f'--logger {name} needs {error.name or name}: pip install "tripletmas[{name}]"') from None


class _TensorBoard:
    """Event files in FOLDER/tensorboard: `tensorboard --logdir` of it, or of a folder of runs."""

    def __init__(self, run: RunDirectory, folder: Path, config: Mapping[str, Any]):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        folder = folder / "tensorboard"
        make_folder(folder)
        present = EventAccumulator(str(folder), {"scalars": 0}).Reload()
        self._known = {
            (name, each.step) for name in present.Tags().get("scalars", []) for each in present.Scalars(name)
        }
        self._writer = SummaryWriter(str(folder))

    def write(self, point: Point) -> None:
        for name, value in point.values.items():
            if (name, point.at) not in self._known:
                self._writer.add_scalar(name, value, point.at)
        self._writer.flush()

    def close(self, *, done: bool) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of Weights & Biases, as its own settings say (WANDB_MODE, WANDB_PROJECT, ...); its files in FOLDER/wandb.

    A later process goes on with the run by its id. Offline, where there is no server to ask, it writes a folder of its
    own with that id: `wandb sync --append` joins them.
    """

    def __init__(self, run: RunDirectory, folder: Path, config: Mapping[str, Any]):
        import wandb

        settings = wandb.Settings(silent=True)
        project = None if wandb.setup().settings.project else PROJECT
        self._run = wandb.init(
            project=project,
            id=_identity(run),
            name=run.path.name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
            settings=settings,
        )
        for first, axis in _AXES.items():
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{first}/*", step_metric=axis)

    def write(self, point: Point) -> None:
        if point.values:
            axis = _AXES[next(iter(point.values)).partition("/")[0]]
            self._run.log({**point.values, axis: point.at}, step=point.number)

    def close(self, *, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)


class _MLflow:
    """A run of MLflow in the store that its own settings name (MLFLOW_TRACKING_URI); a later process finds it there."""

    def __init__(self, run: RunDirectory, folder: Path, config: Mapping[str, Any]):
        from mlflow import MlflowClient

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(PROJECT)
        where = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        tag = f"{PROJECT}.run"
        present = self._client.search_runs([where], f"tags.`{tag}` = '{_identity(run)}'")
        if present:
            self._id = present[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(where, tags={tag: _identity(run)}, run_name=run.path.name).info.run_id
            self._keep(flatten(config))
        self._known = {
            (name, each.step)
            for name in (present[0].data.metrics if present else ())
            for each in self._client.get_metric_history(self._id, name)
        }

    def _keep(self, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            self._client.log_param(self._id, name, str(value)[:500])

    def write(self, point: Point) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [
            Metric(name, value, now, point.at)
            for name, value in point.values.items()
            if (name, point.at) not in self._known
        ]
        if new:
            self._client.log_batch(self._id, metrics=new)

    def close(self, *, done: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")


LOGGERS: Mapping[str, Callable[[RunDirectory, Path, Mapping[str, Any]], Writer]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
}
