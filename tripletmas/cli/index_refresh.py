"""The command that makes the stale vectors of an index current again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from tripletmas.basics.sentences import listed
from tripletmas.cli.console import make_parser
from tripletmas.cli.items import embedded
from tripletmas.data.images import ImageFiles, missing_images
from tripletmas.index.changes import move_parts, relocate_images, remove_images, replace_vectors
from tripletmas.index.choice import COMPENSATE
from tripletmas.index.file import locked
from tripletmas.index.images import ImageIndex, Part, prefix
from tripletmas.index.streamed import Streamed
from tripletmas.index.streamed import moved as moved_in_blocks
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.drifts import drifts_between
from tripletmas.runs.indexed import check_roots, map_for, model_of, run_of, task_of_part
from tripletmas.runs.models import RunModel, weight_hashes

_OF_RUN = "run"  # --compensate without the name of a map


def refresh(arguments: Sequence[str]) -> dict[str, Any]:
    """Make stale vectors current: move them by the estimated drift, reading no image, or embed their images again."""
    parser = make_parser("index refresh", refresh.__doc__, "index", "--run", "--force", "--trust-code")
    parser.add_argument(
        "--compensate",
        type=str,
        nargs="?",
        const=_OF_RUN,
        metavar="MAP",
        help=f"move stale vectors by the drift, reading no image: {', '.join(COMPENSATE)} (default: the run's own map, "
        "else linear; after gram auto)",
    )
    parser.add_argument("--reembed", action="store_true", help="embed the images of stale vectors again")
    parser.add_argument("--map", type=str, default=None, help="the same as --compensate MAP")
    parser.add_argument("--images", type=str, default=None, help="where images lie now that are not at their old path")
    parser.add_argument(
        "--drop-missing", action="store_true", help="remove images that have vanished or are unreadable"
    )
    parser.add_argument("--device", type=str, default=None, help="auto (the default), cpu, cuda or cuda:NUMBER")
    options = parser.parse_args(arguments)
    if bool(options.compensate) == options.reembed:
        how = "give one of the two" if options.compensate else "say how"
        raise ValueError(f"{how}: --compensate moves the stale vectors, --reembed embeds their images again")
    for option, needed, other in (
        ("map", "compensate", options.map),
        ("images", "reembed", options.images),
        ("drop-missing", "reembed", options.drop_missing or None),
        ("device", "reembed", options.device),
        ("force", "reembed", options.force or None),
    ):
        if other is not None and not getattr(options, needed):
            raise ValueError(f"--{option} is for --{needed}")
    if options.map is not None and options.compensate != _OF_RUN:
        raise ValueError(f"--compensate {options.compensate} names a map, and --map {options.map} too: leave one out")
    with locked(options.index):
        index = ImageIndex.open(options.index)
        if options.compensate:
            kind = options.map if options.compensate == _OF_RUN else options.compensate
            changed, done = _compensated(index, options.run, kind)
        else:
            changed, done = _reembedded(index, options)
        if changed is not index:
            changed.save(options.index)
    print(f"{options.index}: {done}")
    return {"index": options.index, "vectors": len(changed), "changed": changed is not index, "done": done}


def _compensated(index: ImageIndex, given: str | None, kind: str | None) -> tuple[ImageIndex | Streamed, str]:
    """The index with its stale parts moved, and what was done."""
    run = run_of(index, given)
    kind = map_for(index, run, kind)
    hashes = weight_hashes(run)
    stale = index.stale(hashes[-1])
    if not stale:
        return _with_run(index, run), "all vectors are current, nothing was moved"
    starts = {number: task_of_part(index, number, hashes, run) for number in stale}
    moves, choices = drifts_between(
        run,
        starts.values(),
        len(hashes) - 1,
        kind=kind,
        normalize=index.settings.normalize,
        dim=index.settings.dim,
    )
    drifts = {number: moves[start] for number, start in starts.items()}
    move = moved_in_blocks if index.settings.comes_in_blocks else move_parts
    moved = move(_with_run(index, run), drifts, hashes[-1], (kind,))
    for task, choice in choices.items():
        print(f"task {task}: {choice.sentence()}")
    count = len(index.of_parts(stale))
    return moved, (
        f"{count} vectors moved by the map {kind} to the model after task {len(hashes) - 1}, {len(index) - count} were "
        f"current; {count} images were not read"
    )


def _reembedded(index: ImageIndex, options: Namespace) -> tuple[ImageIndex, str]:
    """The index with the images of its stale parts embedded anew, and what was done."""
    if index.texts and (options.images is not None or options.drop_missing):
        raise ValueError(f"--images and --drop-missing are for images: {options.index} keeps its texts itself")
    model = model_of(index, options.run, device=options.device or "auto", trust_code=options.trust_code)
    changed = _with_run(index, RunDirectory(model.run))
    stale = index.of_parts(index.stale(model.hash))
    if not len(stale):
        return changed, "all vectors are current, no image was read"
    if options.images is not None:
        changed = _found_below(changed, stale, os.path.abspath(options.images))
    rows, vectors = _embedded(model, changed, _there(index, changed, stale, options), options)
    dropped = stale[~torch.isin(stale, rows)]
    first = f" ({listed([index.paths[row] for row in dropped.tolist()], most=3)})" if len(dropped) else ""
    return _with_anew(changed, dropped, index.ids[rows], vectors, model), (
        f"{len(rows)} images embedded again by the model after task {model.after_task}, "
        f"{len(index) - len(stale)} were current, {len(dropped)} removed{first}"
    )


def _with_anew(index: ImageIndex, dropped: Tensor, ids: Tensor, vectors: Tensor, model: RunModel) -> ImageIndex:
    """The index without some rows, and with the model's vectors for some ids."""
    changed = remove_images(index, dropped) if len(dropped) else index
    if not len(ids):
        return changed
    part = Part(model.hash, model.after_task, model.hash)
    return replace_vectors(changed, torch.searchsorted(changed.ids, ids), vectors, part)


def _there(index: ImageIndex, changed: ImageIndex, stale: Tensor, options: Namespace) -> Tensor:
    """Those of the stale rows whose images lie where `changed` says; others must be allowed to be missing."""
    if index.texts:
        return stale
    gone = stale[missing_images([changed.paths[row] for row in stale.tolist()])]
    if len(gone) and not options.drop_missing:
        raise ValueError(
            f"{len(gone)} of {len(stale)} images are not where they were, the first is {changed.paths[int(gone[0])]}: "
            "--images says where they are now, --drop-missing removes them from the index"
        )
    moved_away = {index.root_of(row) for row in stale.tolist() if index.paths[row] != changed.paths[row]}
    check_roots(changed, gone.tolist(), options.index, passed=moved_away)
    return stale[~torch.isin(stale, gone)]


def _embedded(model: RunModel, index: ImageIndex, rows: Tensor, options: Namespace) -> tuple[Tensor, Tensor]:
    """Those of these rows whose images can be read, and their raw vectors."""
    if not len(rows):
        return rows, torch.empty(0, index.settings.dim)
    if index.texts:
        items = [index.texts[row] for row in rows.tolist()]
    else:
        items = ImageFiles.at([index.paths[row] for row in rows.tolist()], model.prepared)
    skip, force = options.drop_missing, options.force
    labels = [index.label_of(row) for row in rows.tolist()]
    vectors, kept = embedded(index, model, items, labels, skip_unreadable=skip, force=force, option="--drop-missing")
    return rows[kept], vectors


def _with_run(index: ImageIndex, run: RunDirectory) -> ImageIndex:
    """The index that names this run; itself, if it does already."""
    path = os.path.abspath(run.path)
    return index if index.run == path else replace(index, run=path)


def _found_below(index: ImageIndex, rows: Tensor, root: str) -> ImageIndex:
    """The index with those of these images (r,) below another root that have vanished and lie there now."""
    vanished = rows[missing_images([index.paths[row] for row in rows.tolist()])]
    there = [prefix(root) + index.name_of(row) for row in vanished.tolist()]
    found = torch.ones(len(there), dtype=torch.bool)
    found[missing_images(there)] = False
    return relocate_images(index, vanished[found], root) if bool(found.any()) else index
