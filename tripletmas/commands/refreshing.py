"""The command that makes the stale vectors of an index current again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tripletmas.commands.console import make_parser
from tripletmas.commands.index_models import model_of, open_run
from tripletmas.drift import DRIFT_MAPS
from tripletmas.image_embedding import embed_images
from tripletmas.image_index import ImageIndex, prefix
from tripletmas.image_paths import ImagesAt, missing_images
from tripletmas.index_changes import move_parts, relocate_images, remove_images, replace_vectors
from tripletmas.index_file import locked
from tripletmas.index_parts import Part
from tripletmas.params import listed
from tripletmas.run_models import default_map, drift_between, weight_hashes


def refresh(arguments: Sequence[str]) -> None:
    """Make stale vectors current: move them by the estimated drift, reading no image, or embed their images again."""
    parser = make_parser("index refresh", refresh.__doc__)
    parser.add_argument("index", type=str, help="the index file")
    parser.add_argument("--compensate", action="store_true", help="move stale vectors by the drift; reads no image")
    parser.add_argument("--reembed", action="store_true", help="embed the images of stale vectors again")
    parser.add_argument("--run", type=str, default=None, help="the run directory (default: the one in the index)")
    parser.add_argument(
        "--map", type=str, default=None, help=f"{', '.join(DRIFT_MAPS)} (default: the run's own, else linear)"
    )
    parser.add_argument("--images", type=str, default=None, help="where images lie now that are not at their old path")
    parser.add_argument(
        "--drop-missing", action="store_true", help="remove images that have vanished or are unreadable"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:NUMBER")
    options = parser.parse_args(arguments)
    if options.compensate == options.reembed:
        raise ValueError("say how: --compensate moves the stale vectors, --reembed embeds their images again")
    for option, needed, other in (
        ("map", "compensate", options.map),
        ("images", "reembed", options.images),
        ("drop-missing", "reembed", options.drop_missing or None),
    ):
        if other is not None and not getattr(options, needed):
            raise ValueError(f"--{option} is for --{needed}")
    with locked(options.index):
        index = ImageIndex.open(options.index)
        if options.compensate:
            changed, done = _compensated(index, options.run, options.map)
        else:
            changed, done = _reembedded(index, options.run, options.images, options.drop_missing, options.device)
        if changed is not index:
            changed.save(options.index)
    print(f"{options.index}: {done}")


def _compensated(index: ImageIndex, given: str | None, kind: str | None) -> tuple[ImageIndex, str]:
    """The index with its stale parts moved, and what was done."""
    run = open_run(index, given)
    kind = kind or default_map(run)
    if kind not in DRIFT_MAPS:
        raise ValueError(f"--map must be one of {', '.join(DRIFT_MAPS)}, got {kind!r}")
    hashes = weight_hashes(run)
    stale = index.stale(hashes[-1])
    if not stale:
        return index, "all vectors are current, nothing was moved"
    drifts = {}
    for number in stale:
        space = index.parts[number].moved_to
        if space not in hashes:
            raise ValueError(
                f"{len(index.of_parts([number]))} vectors lie in the space of the model {space[:12]}, which is none of "
                f"{run.path}, so their drift is not known: name its run with --run, or use --reembed"
            )
        start = max(task for task, each in enumerate(hashes) if each == space)
        drifts[number] = drift_between(
            run, start, len(hashes) - 1, kind=kind, normalize=index.settings.normalize, dim=index.settings.dim
        )
    moved = move_parts(replace(index, run=str(given or index.run)), drifts, hashes[-1], (kind,))
    count = len(index.of_parts(stale))
    return moved, (
        f"{count} vectors moved by the map {kind} to the model after task {len(hashes) - 1}, {len(index) - count} were "
        f"current; {count} images were not read"
    )


def _reembedded(
    index: ImageIndex, given: str | None, images: str | None, drop_missing: bool, device: str
) -> tuple[ImageIndex, str]:
    """The index with the images of its stale parts embedded anew, and what was done."""
    model = model_of(index, given, device)
    stale = index.of_parts(index.stale(model.hash))
    if not len(stale):
        return index, "all vectors are current, no image was read"
    changed = replace(index, run=model.run)
    if images is not None:
        vanished = stale[missing_images([changed.paths[row] for row in stale.tolist()])]
        there = [prefix(images) + changed.name_of(row) for row in vanished.tolist()]
        found = torch.ones(len(there), dtype=torch.bool)
        found[missing_images(there)] = False
        changed = relocate_images(changed, vanished[found], images)
    paths = [changed.paths[row] for row in stale.tolist()]
    missing = missing_images(paths)
    if missing and not drop_missing:
        raise ValueError(
            f"{len(missing)} of {len(paths)} images are not where they were, the first is {paths[missing[0]]}: "
            "--images says where they are now, --drop-missing removes them from the index"
        )
    present = torch.ones(len(stale), dtype=torch.bool)
    present[missing] = False
    rows = stale[present]
    dropped = stale[~present]
    if len(rows):
        transform = index.settings.transform
        files = ImagesAt(
            [changed.paths[row] for row in rows.tolist()], size=transform.size, channels=transform.channels
        )
        vectors, kept = embed_images(
            model, files, invert=transform.invert, skip_unreadable=drop_missing, option="--drop-missing"
        )
        readable = torch.zeros(len(rows), dtype=torch.bool)
        readable[kept] = True
        dropped = torch.cat([dropped, rows[~readable]]).sort().values
        part = Part(model.hash, model.after_task, model.hash)
        changed = replace_vectors(changed, rows[readable], vectors, part)
    first = f" ({listed([index.paths[row] for row in dropped.tolist()], most=3)})" if len(dropped) else ""
    if len(dropped):
        changed = remove_images(changed, dropped)
    return changed, (
        f"{len(stale) - len(dropped)} images embedded again by the model after task {model.after_task}, "
        f"{len(index) - len(stale)} were current, {len(dropped)} removed{first}"
    )
