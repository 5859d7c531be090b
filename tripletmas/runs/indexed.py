"""An index and the run whose models made it: its present model, which vectors are stale, what moves queries to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tripletmas.basics.sentences import listed
from tripletmas.data.images import ImageFiles
from tripletmas.index.choice import COMPENSATE, Choice
from tripletmas.index.images import ImageIndex, Reading
from tripletmas.runs import trust
from tripletmas.runs.collapsed import refuse_collapse
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.drifts import default_map, drifts_between
from tripletmas.runs.models import (
    OtherImages,
    RunModel,
    load_model,
    prepared_by,
    transform_of,
    weight_hashes,
)
from tripletmas.runs.moves import how_far

_SHOWN = 12  # digits of a hash


def run_of(index: ImageIndex, given: str | None) -> RunDirectory:
    """The run that was given, else the one that the index names.

    Raises:
        ValueError: if there is no run.
    """
    try:
        return RunDirectory.open(given or index.run)
    except ValueError as error:
        hint = "" if given else " (so the index says; --run says where it is now)"
        raise ValueError(f"{error}{hint}") from None


def model_of(
    index: ImageIndex,
    given: str | None = None,
    *,
    after: int | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> RunModel:
    """The model of the index's run, or of the run that was given, for images as the index has them.

    Args:
        given: another run than the one that the index names.
        after: the model after this task; None: the present one.
        trust_code: execute the run's parts of one's own as they were recorded.

    Raises:
        ValueError: if there is no run, or if it takes other images or gives vectors of another dimension.
    """
    run = run_of(index, given)
    if trust_code:
        trust.accept(run.config().get("code"), unseen=True)
    other = f"the index was not made with {run.path}: name the run that made it with --run, or build another index"
    shown = index.settings.transform
    try:
        prepared = None if isinstance(shown, Reading) else prepared_by(shown)
        model = load_model(run, after=after, prepared=prepared, device=device)
    except OtherImages as error:
        raise ValueError(f"{error}; {other}") from None
    if model.dim != index.settings.dim:
        raise ValueError(
            f"the index holds vectors of dim {index.settings.dim}, the model of {run.path} gives dim {model.dim}; "
            f"{other}"
        )
    if isinstance(shown, Reading):
        reads = model.tokenizer
        if (reads.identity, reads.max_length) != (shown.tokenizer, shown.max_length):
            raise ValueError(
                f"the index holds texts read by the tokenizer {shown.tokenizer[:_SHOWN]}, {shown.max_length} tokens of "
                f"each, the model of {run.path} reads by {reads.identity[:_SHOWN]}, {reads.max_length}; {other}"
            )
        return model
    of_index, of_model = shown, transform_of(model, shown.invert)
    if of_index.mean is not None and (of_index.mean, of_index.deviation) != (of_model.mean, of_model.deviation):
        raise ValueError(
            f"the index has vectors of images normalised by mean {of_index.mean} and deviation {of_index.deviation}, "
            f"the model of {run.path} takes {of_model.mean} and {of_model.deviation}; {other}"
        )
    return model


def stale_vectors(index: ImageIndex, model: RunModel) -> str:
    """Which vectors lie in the space of another model than this one: a part of a sentence."""
    stale = index.stale(model.hash)
    others = dict.fromkeys(index.parts[number].moved_to[:_SHOWN] for number in stale)
    return (
        f"{len(index.of_parts(stale))} of {len(index)} vectors are stale: they lie in the space of the model "
        f"{' and '.join(others)}, that of {model.run} after task {model.after_task} is {model.hash[:_SHOWN]}"
        f"{how_far(RunDirectory(model.run), model.after_task)}"
    )


def task_of_part(index: ImageIndex, part: int, hashes: Sequence[str], run: RunDirectory) -> int:
    """The last task of a run after which its model was the one in whose space a part lies.

    Raises:
        ValueError: if that is no model of the run.
    """
    space = index.parts[part].moved_to
    if space not in hashes:
        raise ValueError(
            f"{len(index.of_parts([part]))} vectors lie in the space of the model {space[:12]}, which is none of "
            f"{run.path}, so their drift is not known: name its run with --run, or use --reembed"
        )
    return max(task for task, each in enumerate(hashes) if each == space)


def map_for(index: ImageIndex, run: RunDirectory, given: str | None) -> str:
    """The map that was given, else that of the run, if it suits the vectors of an index.

    Raises:
        ValueError: if there is no such map, or it is for vectors of length 1 and these are not.
    """
    kind = given or default_map(run)
    if kind not in COMPENSATE:
        raise ValueError(f"the map must be one of {', '.join(COMPENSATE)}, got {kind!r}")
    if kind == "sdc" and not index.settings.normalize:
        raise ValueError(
            "the map sdc is for vectors of length 1, since what is near is a fixed distance, and this index holds raw "
            "vectors: use linear or mlp"
        )
    return kind


def moves_back(
    index: ImageIndex, model: RunModel, kind: str | None, file: str
) -> tuple[dict[int, Callable[[Tensor], Tensor]], dict[int, Choice]]:
    """For each part that holds vectors, what moves queries by a model to the space it lies in; what "auto" chose.

    Args:
        kind: of the maps; None: that of the run.
        file: of the index, for the error.

    Raises:
        ValueError: if a part lies in the space of a later model than this one, or of none of the run.
    """
    run = RunDirectory(model.run)
    kind, hashes = map_for(index, run, kind), weight_hashes(run)
    settings, end = index.settings, model.after_task
    spaces = {
        number: end if index.parts[number].moved_to == model.hash else task_of_part(index, number, hashes, run)
        for number in index.part.unique().tolist()
    }
    if (latest := max(spaces.values())) > end:
        raise ValueError(
            f"{file} holds vectors of the model after task {latest}, and queries by that after task {end} can "
            f"only be moved back: ask with --after {latest}"
        )
    moves, choices = drifts_between(
        run, spaces.values(), end, kind=kind, normalize=settings.normalize, dim=settings.dim, back=True
    )
    return {number: moves[task] for number, task in spaces.items()}, choices


def refuse_collapsed(index: ImageIndex, file: str) -> None:
    """Raise a ValueError if the vectors of a part of the index are all nearly one, of images that differ."""
    for number, part in enumerate(index.parts):
        rows = index.of_parts([number])
        rows = rows[:: -(-len(rows) // 1000) or 1]
        by = f"{file}: the model after task {part.after_task}"
        samples, labels = samples_of(index, rows.tolist()), map(index.label_of, rows.tolist())
        refuse_collapse(index.vectors[rows], samples, range(len(rows)), by=by, labels=labels)


def samples_of(index: ImageIndex, rows: Sequence[int]) -> Sequence[Tensor]:
    """The images of these rows, as a model is shown them, or the letters of their texts."""
    shown = index.settings.transform
    if isinstance(shown, Reading):
        return [torch.tensor(list(index.texts[row].encode())) for row in rows]
    return ImageFiles.at([index.paths[row] for row in rows], prepared_by(shown))


def check_roots(index: ImageIndex, missing: Iterable[int], path: str, *, passed: Collection[str | None] = ()) -> None:
    """Whether images of these rows, which are missing, were lost one by one, and not with the whole of a root.

    Args:
        path: of the index, for the error.
        passed: roots that may be gone.

    Raises:
        ValueError: if a root of theirs does not exist or is an empty folder, as a disk that is not mounted.
    """
    roots = {root for row in missing if (root := index.root_of(row)) is not None and root not in passed}
    gone = sorted(root for root in roots if not _is_there(Path(root)))
    if gone:
        raise ValueError(
            f"nothing is there any more of {listed(gone, most=3)}, so its images are not taken for removed: mount or "
            f"restore it, or remove them by: tripletmas index remove {path} {gone[0]}"
        )


def _is_there(root: Path) -> bool:
    return any(root.iterdir()) if root.is_dir() else root.exists()
