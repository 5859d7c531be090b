"""What the commands share that use an index: the present model of its run, and which vectors do not fit that model."""

from __future__ import annotations

from tripletmas.checkpoint import RunDirectory
from tripletmas.image_index import ImageIndex
from tripletmas.run_models import RunModel, load_model


def open_run(index: ImageIndex, given: str | None) -> RunDirectory:
    """The run that was given, else the one that the index names.

    Raises:
        ValueError: if there is no run.
    """
    try:
        return RunDirectory.open(given or index.run)
    except ValueError as error:
        hint = "" if given else " (so the index says; --run says where it is now)"
        raise ValueError(f"{error}{hint}") from None


def model_of(index: ImageIndex, given: str | None, device: str) -> RunModel:
    """The present model of the index's run, or of the run that was given, for images as the index has them.

    Raises:
        ValueError: if there is no run, or if it takes other images or gives vectors of another dimension.
    """
    run = open_run(index, given)
    transform = index.settings.transform
    other = f"the index was not made with {run.path}: name the run that made it with --run, or build another index"
    try:
        model = load_model(run, sample_shape=(transform.channels, transform.size, transform.size), device=device)
    except ValueError as error:
        raise ValueError(f"{error}; {other}") from None
    if model.dim != index.settings.dim:
        raise ValueError(
            f"the index holds vectors of dim {index.settings.dim}, the model of {run.path} gives dim {model.dim}; "
            f"{other}"
        )
    return model


def stale_vectors(index: ImageIndex, model: RunModel) -> str:
    """Which vectors lie in the space of another model than this one: a part of a sentence."""
    stale = index.stale(model.hash)
    others = dict.fromkeys(index.parts[number].moved_to[:12] for number in stale)
    return (
        f"{len(index.of_parts(stale))} of {len(index)} vectors are stale: they lie in the space of the model "
        f"{' and '.join(others)}, that of {model.run} after task {model.after_task} is {model.hash[:12]}"
    )


def ways_out(path: str) -> str:
    """What to do about stale vectors."""
    return (
        f"tripletmas index refresh {path} --compensate moves them and reads no image, "
        f"tripletmas index refresh {path} --reembed embeds their images again"
    )
