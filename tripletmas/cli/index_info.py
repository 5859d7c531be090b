"""The command that shows what is in an index, and what all commands share that use one: its run, what is stale."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from jsonargparse import Namespace
from rich.table import Table

from tripletmas.basics.sentences import listed
from tripletmas.cli.console import console, make_parser, make_table, open_run
from tripletmas.index.choice import COMPENSATE
from tripletmas.index.images import ImageIndex, Reading, Transform
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.drifts import default_map
from tripletmas.runs.forecast import allowed_move, shares_of
from tripletmas.runs.models import (
    OtherImages,
    RunModel,
    load_model,
    prepared_by,
    transform_of,
    weight_hashes,
)

_SHOWN = 12  # digits of a hash


def info(arguments: Sequence[str]) -> None:
    """Show what is in an index, and which of its vectors are stale: of another model than the run's present one."""
    options = make_parser("index info", info.__doc__, "index", "--run").parse_args(arguments)
    index = ImageIndex.open(options.index)
    try:
        run = run_of(index, options.run)
        hashes, missing, far = weight_hashes(run), "", how_far(run, run.task_done(None))
    except ValueError as error:
        if options.run:
            raise
        hashes, missing, far = (), str(error), ""
    present = hashes[-1] if hashes else None
    shown = console()
    shown.print(_summary(options.index, index, options.run or index.run, hashes))
    shown.print(_parts(index, hashes))
    if missing:
        print(f"which vectors are stale cannot be told: {missing}")
    elif present and (stale := index.stale(present)):
        print(f"{len(index.of_parts(stale))} of {len(index)} vectors are stale{far}: {ways_out(options.index)}")
        of = options.run or index.run
        print(f"how far they moved, and what searching them costs: tripletmas forecast {of} --index {options.index}")
    else:
        print("all vectors are current")


def _summary(path: str, index: ImageIndex, run: str, hashes: Sequence[str]) -> Table:
    settings = index.settings
    kind = settings.kind
    for name, value in (("nprobe", settings.nprobe), ("ef_search", settings.ef_search)):
        kind += "" if value is None else f", {name} {value}"
    rows = {
        "run": run,
        "present model": f"{hashes[-1][:_SHOWN]}, after task {len(hashes) - 1}" if hashes else "unknown",
        "vectors": str(len(index)),
        "dim": str(settings.dim),
        "metric": settings.metric,
        "normalised": "yes" if settings.normalize else "no",
        "kind": kind,
        "texts" if index.texts else "images": _shown(settings.transform),
        "labels": f"{len(index.labels[index.labels >= 0].unique())} classes, {int((index.labels < 0).sum())} without",
        "roots": ", ".join(index.roots),
        "file": f"{Path(path).stat().st_size / 2**20:.2f} MiB",
    }
    table = make_table(path, show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _shown(transform: Transform | Reading) -> str:
    """How an image or a text becomes what the model is shown, in words."""
    if isinstance(transform, Reading):
        return f"at most {transform.max_length} tokens, by the tokenizer {transform.tokenizer[:_SHOWN]}"
    words = [str(prepared_by(transform))]
    if transform.mean is not None and transform.deviation is not None:
        pairs = zip(transform.mean, transform.deviation, strict=True)
        words.append("normalised by " + " ".join(f"{mean:.3g}/{deviation:.3g}" for mean, deviation in pairs))
    return ", ".join([*words, *(["inverted"] if transform.invert else [])])


def _parts(index: ImageIndex, hashes: Sequence[str]) -> Table:
    table = make_table("parts", ">vectors", "embedded by", "after task", "moved to", "by the maps", "state")
    for number, part in enumerate(index.parts):
        state = "unknown" if not hashes else "current" if part.moved_to == hashes[-1] else "stale"
        table.add_row(
            str(len(index.of_parts([number]))),
            part.model[:_SHOWN],
            str(part.after_task) if not hashes or part.model in hashes else f"{part.after_task} of another run",
            "" if part.moved_to == part.model else part.moved_to[:_SHOWN],
            ", ".join(part.maps),
            state,
        )
    return table


# --- shared by the commands


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


def model_of(index: ImageIndex, options: Namespace, after: int | None = None) -> RunModel:
    """The model of the index's run, or of the run that was given, for images as the index has them.

    Args:
        options: run, device and trust_code, as a command has them.
        after: the model after this task; None: the present one.

    Raises:
        ValueError: if there is no run, or if it takes other images or gives vectors of another dimension.
    """
    run = open_run(run_of(index, options.run).path, trust_code=options.trust_code)
    other = f"the index was not made with {run.path}: name the run that made it with --run, or build another index"
    shown = index.settings.transform
    try:
        prepared = None if isinstance(shown, Reading) else prepared_by(shown)
        model = load_model(run, after=after, prepared=prepared, device=options.device or "auto")
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


def how_far(run: RunDirectory, after: int) -> str:
    """How far stored vectors have moved at most, where a protection knows: a part of a sentence, else nothing."""
    most = allowed_move(shares_of(run, after))
    return "" if most is None else f" (to a mean cosine of {1 - most:.3f} at least, since the layers were held)"


def ways_out(path: str) -> str:
    """What to do about stale vectors."""
    return (
        f"tripletmas index refresh {path} --compensate moves them and reads no image, "
        f"tripletmas index refresh {path} --reembed embeds their images again"
    )


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
