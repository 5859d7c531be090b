"""The commands that change what is in an index of images, or of texts: build, add, remove."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from tripletmas.basics import distributed, mapped
from tripletmas.basics.sentences import counted, listed
from tripletmas.cli.console import make_parser, open_run
from tripletmas.cli.items import JUDGED, Items, add_options, embedded, how_shown, items_of, new_items
from tripletmas.cli.outputs import check_place
from tripletmas.data.images import ImageFiles, missing_images
from tripletmas.data.tokens import Texts
from tripletmas.index import streamed
from tripletmas.index.base import unit
from tripletmas.index.changes import add_images, remove_images
from tripletmas.index.file import locked
from tripletmas.index.images import ImageIndex, Part, Reading, Settings, Transform, prefix
from tripletmas.runs.collapsed import refuse_collapse
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.embedded_parts import embed_in_parts, rows_of_part
from tripletmas.runs.indexed import check_roots, model_of, stale_vectors
from tripletmas.runs.models import NoneReadable, RunModel, load_model, weight_hashes
from tripletmas.runs.moves import ways_out


def build(arguments: Sequence[str]) -> dict[str, Any]:
    """Embed all images of a folder, or texts of a CSV file, by the model of a run, and write an index of them.

    An image's label is the name of the folder that it lies in, below the one that is given: month1/mug, or mug where
    the run has --data.class_from leaf.
    """
    shared = ("run", "--after", "--invert", "--skip-unreadable", "--force", "--device", "--trust-code")
    parser = make_parser("index build", build.__doc__, *shared)
    add_options(parser)
    parser.add_argument("--out", type=str, required=True, help="the index file to write")
    parser.add_argument("--kind", type=str, default="exact", help="exact, or a factory string of faiss: IVF64,Flat")
    parser.add_argument("--metric", type=str, default="inner_product", help="inner_product or l2")
    parser.add_argument("--no-normalize", action="store_true", help="compare raw embeddings, not unit vectors")
    parser.add_argument("--nprobe", type=int, default=None, help="how many lists an IVF index looks into")
    parser.add_argument("--ef-search", type=int, default=None, help="how many candidates an HNSW index keeps")
    parser.add_argument(
        "--on-disk", action="store_true", help="search the lists of an IVF index in the file, not in memory"
    )
    options = parser.parse_args(arguments)
    check_place("--out", options.out, images=[options.images] if options.images else [])
    with locked(options.out, new=True):
        items = items_of(options)  # before the model: what is not there is told at once
        if Path(options.out).exists():
            _say_that_it_exists(options.out, options)
        model = load_model(
            open_run(options.run, trust_code=options.trust_code), after=options.after, device=options.device
        )
        settings = Settings(
            dim=model.dim,
            transform=how_shown(model, items, invert=options.invert),
            metric=options.metric,
            normalize=not options.no_normalize,
            kind=options.kind,
            nprobe=options.nprobe,
            ef_search=options.ef_search,
            on_disk=options.on_disk,
        )
        items.check_model(model, invert=options.invert)
        empty = ImageIndex.empty(settings, os.path.abspath(options.run))
        built = _with_items(empty, model, items, options)
        if built is None:
            return {}
        built.save(options.out)
        shutil.rmtree(_parts_of(options), ignore_errors=True)
    count = counted(len(built), "vector")
    print(f"{options.out}: {count} of dim {model.dim} by {model.run} after task {model.after_task}")
    if options.after is not None and built.stale(weight_hashes(RunDirectory(options.run))[-1]):
        print(f"{model.run} has a later model: query with --after {options.after}, or {ways_out(options.out)}")
    about = {"index": options.out, "vectors": len(built), "dim": model.dim}
    return {**about, "run": str(model.run), "after": model.after_task}


def add(arguments: Sequence[str]) -> dict[str, Any]:
    """Add images, or texts, to an index, embedded by the present model of its run; those it has already stay.

    An image's label is the name of the folder that it lies in, below the one that is given.
    """
    shared = ("index", "--run", "--skip-unreadable", "--force", "--device", "--trust-code")
    parser = make_parser("index add", add.__doc__, *shared)
    add_options(parser)
    options = parser.parse_args(arguments)
    with locked(options.index):
        before = ImageIndex.open(options.index)
        found = items_of(options)
        items = new_items(found, before, options.index)
        if (known := len(found.names) - len(items.names)) > 0:
            what = "texts" if found.texts else "images"
            print(f"{options.index}: {known} of {len(found.names)} {what} are in it already and stay")
        if not items.names:
            return {"index": options.index, "added": 0, "vectors": len(before)}
        model = model_of(before, options.run, device=options.device, trust_code=options.trust_code)
        items.check_model(model, invert=False)
        present = replace(before, run=os.path.abspath(model.run))
        try:
            after = _with_items(present, model, items, options)
        except NoneReadable as error:  # one broken file a night is no failure
            print(f"{options.index}: nothing added: {error}")
            return {"index": options.index, "added": 0, "vectors": len(before)}
        if after is None:
            return {}
        after.save(options.index)
        shutil.rmtree(_parts_of(options), ignore_errors=True)
    count = counted(len(after) - len(before), "vector")
    print(f"{options.index}: {count} added by {model.run} after task {model.after_task}")
    known = after.about if isinstance(after, streamed.Streamed) else after
    if known.stale(model.hash):
        print(f"{stale_vectors(known, model)}; {ways_out(options.index)}")
    return {"index": options.index, "added": len(after) - len(before), "vectors": len(after)}


def _say_that_it_exists(out: str, options: Namespace) -> None:
    """Raises ValueError: what to do about the file that is there."""
    try:
        ImageIndex.open(out)
    except ValueError as error:
        raise ValueError(f"{out} exists: choose another --out ({error})") from None
    given = f"--images {options.images}" if options.images else f"--csv {options.csv} --text {options.text}"
    given = f"--vectors {options.vectors}" if options.vectors else given
    raise ValueError(
        f"{out} exists: choose another --out, or change it with: tripletmas index add {out} {given} (or index refresh)"
    )


def remove(arguments: Sequence[str]) -> dict[str, Any]:
    """Remove images, or texts, from an index by their paths, or images that have vanished."""
    parser = make_parser("index remove", remove.__doc__, "index")
    parser.add_argument(
        "paths", nargs="*", help="images; of a folder or an archive, all images in it; of a CSV file its texts"
    )
    parser.add_argument("--missing", action="store_true", help="remove the images whose files have vanished")
    options = parser.parse_args(arguments)
    if bool(options.paths) == options.missing:
        raise ValueError("name the paths to remove, or give --missing")
    if "" in options.paths:
        raise ValueError("a path to remove is empty: name an image, a folder or an archive")
    with locked(options.index):
        before = ImageIndex.open(options.index)
        if options.missing:
            rows = _vanished(before, options.index)
        else:
            rows = {row for path in options.paths for row in _rows_below(before, path, options.index)}
        if rows:
            drop = streamed.removed if before.settings.comes_in_blocks else remove_images
            drop(before, torch.tensor(sorted(rows))).save(options.index)
    removed = listed((before.paths[row] for row in sorted(rows)), most=3)
    print(f"{options.index}: {len(rows)} of {len(before)} vectors removed{f': {removed}' if rows else ''}")
    return {"index": options.index, "removed": len(rows), "vectors": len(before) - len(rows)}


def _vanished(index: ImageIndex, file: str) -> set[int]:
    """The rows of the images whose files are gone."""
    if isinstance(index.settings.transform, Reading):
        raise ValueError(f"{file} keeps its texts itself: name the lines, or the file, to remove")
    rows = set(missing_images(index.paths))
    check_roots(index, rows, file)
    return rows


def _rows_below(index: ImageIndex, path: str, file: str) -> list[int]:
    """The rows of an image, or of all images in a folder or an archive."""
    whole = os.path.abspath(path)
    rows = [row for row, each in enumerate(index.paths) if each == whole or each.startswith(prefix(whole))]
    if not rows:
        raise ValueError(f"{file} holds no {'text' if index.texts else 'image'} {path}, and none below it")
    return rows


def _with_items(
    index: ImageIndex, model: RunModel, items: Items, options: Namespace
) -> ImageIndex | streamed.Streamed | None:
    """The index with these, as far as they can be read; None for a process that has only helped to embed them."""
    shown = items.texts or ImageFiles(items.root, items.names, model.prepared)
    blocks, kept = _embedded(index, model, shown, items, options, _parts_of(options))
    if not distributed.is_main():
        return None
    added, part = replace(items, vectors=None).subset(kept), Part(model.hash, model.after_task, model.hash)
    root, classes = os.path.abspath(added.root), added.classes
    if not items.texts and _names_leaves(model.run):
        classes = [name and name.rpartition("/")[2] for name in classes]
    if index.settings.comes_in_blocks:
        return streamed.added(index, blocks, added.names, classes, part, root=root, texts=added.texts)
    vectors = torch.cat(list(blocks()))
    return add_images(index, vectors, added.names, classes, part, root=root, texts=added.texts)


def _embedded(
    index: ImageIndex,
    model: RunModel,
    shown: ImageFiles | Sequence[str],
    items: Items,
    options: Namespace,
    parts: Path,
) -> tuple[Callable[[], Iterator[Tensor]], list[int]]:
    """Raw vectors in blocks of what can be read, and its positions. What are many is embedded part by part, and goes on
    where it was when it was killed.

    Args:
        shown: the images, or the texts.
        options: skip_unreadable and force.
        parts: the folder for them; it stays until the caller deletes it.
    """
    if items.vectors is not None or len(shown) <= rows_of_part(model):
        skip, force = options.skip_unreadable, options.force
        vectors, kept = embedded(
            index, model, shown, items.classes, skip_unreadable=skip, force=force, given=items.vectors
        )
        return partial(mapped.blocks, vectors), kept
    how = index.settings.transform
    invert = isinstance(how, Transform) and how.invert
    found = embed_in_parts(model, shown, parts, invert=invert, skip_unreadable=options.skip_unreadable)
    if distributed.is_main() and not options.force:
        some, kept = found.some(JUDGED)
        samples = shown if isinstance(shown, ImageFiles) else Texts(shown, model.tokenizer)
        compared, labels = unit(some) if index.settings.normalize else some, [items.classes[each] for each in kept]
        refuse_collapse(compared, samples, kept, by=f"the model of {model.run}", labels=labels)
    return found.blocks, found.kept


def _parts_of(options: Namespace) -> Path:
    """Where what is embedded lies until the index is whole."""
    file = os.path.realpath(options.out if "out" in options else options.index)
    return Path(f"{file}.parts")


def _names_leaves(run: str) -> bool:
    """Whether a class of the run's images is the last of the folders that they lie in."""
    data = RunDirectory(run).config().get("data")
    return isinstance(data, dict) and data.get("class_from") == "leaf"
