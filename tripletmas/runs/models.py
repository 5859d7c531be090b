"""The models of a run, without its training data: their hashes, one of them loaded, how vectors drift between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from tripletmas.basics.weights import weight_hash
from tripletmas.data.dataset import LabelledDataset
from tripletmas.index.base import unit
from tripletmas.index.drift import DRIFT_MAPS, DriftMap, fit_drift
from tripletmas.models.embedding import Embeddings, embed
from tripletmas.models.networks import embedding_dim
from tripletmas.runs import configuration
from tripletmas.runs.catalog import build_model, words_of
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import choose_device, load_trained


class OtherImages(ValueError):
    """A model that takes other images than those it is to be shown."""


@dataclass(frozen=True, eq=False)
class RunModel:
    """The model that a run deploys after a task.

    Args:
        run: the path of the run directory, as it was given.
        hash: of the weights, as `weight_hash` gives it.
        sample_shape: (channels, size, size).
        dim: of its embeddings.
    """

    run: str
    after_task: int
    hash: str
    model: nn.Module
    sample_shape: tuple[int, ...]
    dim: int
    batch_size: int

    def embed(self, dataset: LabelledDataset) -> Embeddings:
        """Raw embeddings, with a progress bar if the output is a terminal."""
        return embed(self.model, dataset, batch_size=self.batch_size, progress=True)


def weight_hashes(run: RunDirectory) -> tuple[str, ...]:
    """The hash of the model after each task that is done.

    Raises:
        ValueError: if no task is done yet, or a file of weights is cut short.
    """
    return tuple(weight_hash(run.weights.read(task)) for task in range(run.task_done() + 1))


def load_model(
    run: RunDirectory, *, after: int | None = None, sample_shape: tuple[int, ...] | None = None, device: str = "auto"
) -> RunModel:
    """The model of a run after a task; None for the last that is done.

    Args:
        sample_shape: (channels, size, size) of what the model is shown; None: what the configuration says, or if it
            says nothing (digits have one size), what the data have, which are read for that.

    Raises:
        OtherImages: if the model does not take images of the shape that is asked for.
        ValueError: if that task is not done yet, the weights do not fit, or the model takes no square images.
    """
    number = run.task_done(after)
    config = configuration.resolve(run.config())
    data = config["data"]
    channels, size = data.get("channels"), data.get("size")
    configured = None if channels is None or size is None else (channels, size, size)
    asked = sample_shape is not None
    if sample_shape is None:
        sample_shape = configured
    elif configured not in (None, tuple(sample_shape)):
        raise OtherImages(f"the model of {run.path} takes images of shape {configured}, not {tuple(sample_shape)}")
    if sample_shape is None:
        sample_shape = load_trained(run, number)[0].stream[0].query.sample_shape
    if len(sample_shape) != 3 or sample_shape[1] != sample_shape[2]:
        raise ValueError(f"the model of {run.path} takes samples of shape {sample_shape}, which are no square images")
    options = {key: value for key, value in config["model"].items() if key != "name"}
    part_dim = words_of(data).dim if config["objective"] == "facts" else None
    model = build_model(config["model"]["name"], options, sample_shape, part_dim=part_dim).to(choose_device(device))
    try:
        run.load_weights(model, number)
    except ValueError as error:
        raise (OtherImages if asked else ValueError)(str(error)) from None
    return RunModel(
        run=str(run.path),
        after_task=number,
        hash=weight_hash(run.weights.read(number)),
        model=model,
        sample_shape=tuple(sample_shape),
        dim=_dim(model, sample_shape, run),
        batch_size=config["training"]["eval_batch_size"],
    )


def _dim(model: nn.Module, sample_shape: tuple[int, ...], run: RunDirectory) -> int:
    try:
        return embedding_dim(model, sample_shape)
    except RuntimeError as error:  # torch's, for images that the layers do not fit
        reason = str(error).splitlines()[0]
        raise OtherImages(f"the model of {run.path} takes no images of shape {tuple(sample_shape)}: {reason}") from None


def default_map(run: RunDirectory) -> str:
    """The drift map that the run itself compensates with; linear, if it does not."""
    gallery = run.config().get("gallery")
    chosen = gallery.get("compensate") if isinstance(gallery, dict) else None
    return chosen if chosen in DRIFT_MAPS else "linear"


def drifts_between(
    run: RunDirectory, starts: Iterable[int], end: int, *, kind: str, normalize: bool, dim: int
) -> dict[int, Callable[[Tensor], Tensor]]:
    """For each start, what moves vectors of the model after that task to where they would lie under that after `end`.

    The maps of the tasks between them, one after the other, each fitted once, on the images of its task embedded before
    and after it was learned; the run saved these embeddings, and no image is read. Where vectors are of unit length, so
    are the pairs, and what comes out of each map is scaled to it again.

    Raises:
        ValueError: if the run has no such embeddings, as runs of older versions, or embeddings of another dimension.
    """
    starts = set(starts)
    maps = {
        task: _map_of(run, task, kind=kind, normalize=normalize, dim=dim) for task in range(min(starts) + 1, end + 1)
    }
    return {start: partial(_moved, [maps[task] for task in range(start + 1, end + 1)], normalize) for start in starts}


def _map_of(run: RunDirectory, task: int, *, kind: str, normalize: bool, dim: int) -> DriftMap:
    path, pairs = run.galleries.path(task), run.galleries.find(task)
    if pairs is None:
        raise ValueError(
            f"{path} is missing, from which drift is estimated (runs of older versions have none): use --reembed"
        )
    if not {"before", "after"} <= pairs.keys() or pairs["before"].shape[1:] != (dim,):
        raise ValueError(f"{path} holds no pairs of vectors of dim {dim}: use --reembed")
    before, after = (unit(pairs[key]) if normalize else pairs[key] for key in ("before", "after"))
    return fit_drift(kind, before, after)


def _moved(maps: Sequence[DriftMap], normalize: bool, vectors: Tensor) -> Tensor:
    for each in maps:
        vectors = unit(each(vectors)) if normalize else each(vectors)
    return vectors
