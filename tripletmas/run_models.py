"""The models of a run, without its training data: their hashes, one of them loaded, how vectors drift between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from tripletmas import configuration
from tripletmas.checkpoint import RunDirectory
from tripletmas.data import LabelledDataset
from tripletmas.drift import DRIFT_MAPS, fit_drift
from tripletmas.experiment import choose_device, load_trained
from tripletmas.index import unit
from tripletmas.models import embedding_dim, make_model
from tripletmas.params import load_state, weight_hash
from tripletmas.retrieval import Embeddings, embed


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
    return tuple(weight_hash(run.read_tensors(_weights(task))) for task in range(_num_done(run)))


def load_model(
    run: RunDirectory, *, after: int | None = None, sample_shape: tuple[int, ...] | None = None, device: str = "auto"
) -> RunModel:
    """The model of a run after a task; None for the last that is done.

    Args:
        sample_shape: (channels, size, size) of what the model is shown; None: what the configuration says, or if it
            says nothing (digits have one size), what the data have, which are read for that.

    Raises:
        ValueError: if that task is not done yet, the weights do not fit, or the model takes no square images.
    """
    done = _num_done(run)
    if after is not None and not 0 <= after < done:
        raise ValueError(f"{run.path}: tasks 0 to {done - 1} are done, so there is no model after task {after}")
    number = done - 1 if after is None else after
    config = configuration.resolve(run.config())
    data = config["data"]
    configured = (data["channels"], data["size"], data["size"]) if {"channels", "size"} <= data.keys() else None
    if sample_shape is None:
        sample_shape = configured
    elif configured not in (None, tuple(sample_shape)):
        raise ValueError(f"the model of {run.path} takes images of shape {configured}, not {tuple(sample_shape)}")
    if sample_shape is None:
        sample_shape = load_trained(run, number)[0].stream[0].query.sample_shape
    if len(sample_shape) != 3 or sample_shape[1] != sample_shape[2]:
        raise ValueError(f"the model of {run.path} takes samples of shape {sample_shape}, which are no square images")
    model_config = {key: tuple(value) if isinstance(value, list) else value for key, value in config["model"].items()}
    name = str(model_config.pop("name"))
    model = make_model(name, sample_shape, options=model_config).to(choose_device(device))
    state = run.read_tensors(_weights(number))
    load_state(model, state, str(run.path / _weights(number)))
    return RunModel(
        run=str(run.path),
        after_task=number,
        hash=weight_hash(state),
        model=model,
        sample_shape=tuple(sample_shape),
        dim=embedding_dim(model, sample_shape),
        batch_size=config["training"]["eval_batch_size"],
    )


def default_map(run: RunDirectory) -> str:
    """The drift map that the run itself compensates with; linear, if it does not."""
    gallery = run.config().get("gallery")
    chosen = gallery.get("compensate") if isinstance(gallery, dict) else None
    return chosen if chosen in DRIFT_MAPS else "linear"


def drift_between(
    run: RunDirectory, start: int, end: int, *, kind: str, normalize: bool, dim: int
) -> Callable[[Tensor], Tensor]:
    """What moves vectors of the model after task `start` to where they would lie under that after task `end`.

    The maps of the tasks between them, one after the other, each fitted on the images of its task embedded before and
    after it was learned; the run saved these embeddings, and no image is read. Where vectors are of unit length, so
    are the pairs, and what comes out of each map is scaled to it again.

    Raises:
        ValueError: if the run has no such embeddings, as runs of older versions, or embeddings of another dimension.
    """
    maps = []
    for task in range(start + 1, end + 1):
        name = f"gallery/task{task:02d}.safetensors"
        if not (run.path / name).is_file():
            raise ValueError(
                f"{run.path} has no {name}, from which drift is estimated (runs of older versions have none): "
                "use --reembed"
            )
        pairs = run.read_tensors(name)
        if not {"before", "after"} <= pairs.keys() or pairs["before"].shape[1:] != (dim,):
            raise ValueError(f"{run.path / name} holds no pairs of vectors of dim {dim}: use --reembed")
        before, after = (unit(pairs[key]) if normalize else pairs[key] for key in ("before", "after"))
        maps.append(fit_drift(kind, before, after))

    def move(vectors: Tensor) -> Tensor:
        for each in maps:
            vectors = unit(each(vectors)) if normalize else each(vectors)
        return vectors

    return move


def _num_done(run: RunDirectory) -> int:
    done = len(list((run.path / "weights").glob("task*.safetensors")))
    if not done:
        raise ValueError(f"{run.path}: no task is done yet; go on with: tripletmas resume {run.path}")
    return done


def _weights(task: int) -> str:
    return f"weights/task{task:02d}.safetensors"
