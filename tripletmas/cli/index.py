"""The command that keeps an index of images: build, add, remove, info, refresh."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch
from jsonargparse import Namespace

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.cli.console import make_parser, open_run
from tripletmas.cli.index_info import check_roots, model_of, stale_vectors, ways_out
from tripletmas.cli.outputs import check_place
from tripletmas.data.folders import LEFT_OUT, SPLITS
from tripletmas.data.images import ImageFiles, find_images, missing_images
from tripletmas.index.base import unit
from tripletmas.index.changes import add_images, remove_images
from tripletmas.index.file import locked
from tripletmas.index.images import ImageIndex, Part, Settings, prefix
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.models import (
    NoneReadable,
    RunModel,
    embed_images,
    load_model,
    refuse_collapse,
    transform_of,
    weight_hashes,
)

_NO_CLASS = SPLITS.keys() | LEFT_OUT


def index(arguments: Sequence[str]) -> None:
    """Keep an index of images: a file of their vectors, which knows the model that made each."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP.format(text=index.__doc__), end="")
        if arguments:
            raise SystemExit(0)
        raise ValueError(f"index needs one of {', '.join(_ACTIONS)}")
    name, *rest = arguments
    if name not in _ACTIONS:
        raise ValueError(f"unknown command 'index {name}'{suggestion(name, _ACTIONS)}; see: tripletmas index --help")
    getattr(importlib.import_module(f"tripletmas.cli.{_ACTIONS[name]}"), name)(rest)


def build(arguments: Sequence[str]) -> None:
    """Embed all images of a folder by the model of a run, and write an index of them.

    An image's label is the name of the folder that it lies in, below the one that is given.
    """
    shared = ("run", "--images", "--after", "--invert", "--skip-unreadable", "--force", "--device", "--trust-code")
    parser = make_parser("index build", build.__doc__, *shared)
    parser.add_argument("--out", type=str, required=True, help="the index file to write")
    parser.add_argument("--kind", type=str, default="exact", help="exact, or a factory string of faiss: IVF64,Flat")
    parser.add_argument("--metric", type=str, default="inner_product", help="inner_product or l2")
    parser.add_argument("--no-normalize", action="store_true", help="compare raw embeddings, not unit vectors")
    parser.add_argument("--nprobe", type=int, default=None, help="how many lists an IVF index looks into")
    parser.add_argument("--ef-search", type=int, default=None, help="how many candidates an HNSW index keeps")
    options = parser.parse_args(arguments)
    check_place("--out", options.out, images=[options.images])
    with locked(options.out, new=True):
        names = find_images(options.images)  # before the model: what is not there is told at once
        if Path(options.out).exists():
            _say_that_it_exists(options.out, options.images)
        model = load_model(
            open_run(options.run, trust_code=options.trust_code), after=options.after, device=options.device
        )
        settings = Settings(
            dim=model.dim,
            transform=transform_of(model, options.invert),
            metric=options.metric,
            normalize=not options.no_normalize,
            kind=options.kind,
            nprobe=options.nprobe,
            ef_search=options.ef_search,
        )
        empty = ImageIndex.empty(settings, os.path.abspath(options.run))
        built = _with_images(empty, model, names, options)
        built.save(options.out)
    print(f"{options.out}: {len(built)} vectors of dim {model.dim} by {model.run} after task {model.after_task}")
    if options.after is not None and built.stale(weight_hashes(RunDirectory(options.run))[-1]):
        print(f"{model.run} has a later model: query with --after {options.after}, or {ways_out(options.out)}")


def add(arguments: Sequence[str]) -> None:
    """Add the images of a folder to an index, embedded by the present model of its run; those it has already stay.

    An image's label is the name of the folder that it lies in, below the one that is given.
    """
    shared = ("index", "--images", "--run", "--skip-unreadable", "--force", "--device", "--trust-code")
    parser = make_parser("index add", add.__doc__, *shared)
    options = parser.parse_args(arguments)
    with locked(options.index):
        before = ImageIndex.open(options.index)
        found = find_images(options.images)
        known, root = set(before.paths), prefix(os.path.abspath(options.images))
        names = [name for name in found if root + name not in known]
        if len(names) < len(found):
            print(f"{options.index}: {len(found) - len(names)} of {len(found)} images are in it already and stay")
        if not names:
            return
        model = model_of(before, options)
        present = replace(before, run=os.path.abspath(model.run))
        try:
            after = _with_images(present, model, names, options)
        except NoneReadable as error:  # one broken file a night is no failure
            print(f"{options.index}: nothing added: {error}")
            return
        after.save(options.index)
    print(f"{options.index}: {len(after) - len(before)} vectors added by {model.run} after task {model.after_task}")
    if after.stale(model.hash):
        print(f"{stale_vectors(after, model)}; {ways_out(options.index)}")


def _say_that_it_exists(out: str, images: str) -> None:
    """Raises ValueError: what to do about the file that is there."""
    try:
        ImageIndex.open(out)
    except ValueError as error:
        raise ValueError(f"{out} exists: choose another --out ({error})") from None
    raise ValueError(
        f"{out} exists: choose another --out, or change it with: tripletmas index add {out} --images {images} (or "
        "index refresh)"
    )


def remove(arguments: Sequence[str]) -> None:
    """Remove images from an index by their paths, or those that have vanished."""
    parser = make_parser("index remove", remove.__doc__, "index")
    parser.add_argument("paths", nargs="*", help="images; of a folder or an archive, all images in it")
    parser.add_argument("--missing", action="store_true", help="remove the images whose files have vanished")
    options = parser.parse_args(arguments)
    if bool(options.paths) == options.missing:
        raise ValueError("name the paths to remove, or give --missing")
    if "" in options.paths:
        raise ValueError("a path to remove is empty: name an image, a folder or an archive")
    with locked(options.index):
        before = ImageIndex.open(options.index)
        if options.missing:
            rows = set(missing_images(before.paths))
            check_roots(before, rows, options.index)
        else:
            rows = {row for path in options.paths for row in _rows_below(before, path, options.index)}
        if rows:
            remove_images(before, torch.tensor(sorted(rows))).save(options.index)
    removed = listed((before.paths[row] for row in sorted(rows)), most=3)
    print(f"{options.index}: {len(rows)} of {len(before)} vectors removed{f': {removed}' if rows else ''}")


def _rows_below(index: ImageIndex, path: str, file: str) -> list[int]:
    """The rows of an image, or of all images in a folder or an archive."""
    whole = os.path.abspath(path)
    rows = [row for row, each in enumerate(index.paths) if each == whole or each.startswith(prefix(whole))]
    if not rows:
        raise ValueError(f"{file} holds no image {path}, and none below it")
    return rows


def _with_images(index: ImageIndex, model: RunModel, names: Sequence[str], options: Namespace) -> ImageIndex:
    """The index with these of the images below the root that the options name."""
    root = options.images
    images = ImageFiles(root, names, model.prepared)
    invert = index.settings.transform.invert
    vectors, kept = embed_images(model, images, invert=invert, skip_unreadable=options.skip_unreadable)
    if not options.force:
        compared = unit(vectors) if index.settings.normalize else vectors
        refuse_collapse(compared, images, kept, by=f"the model of {model.run}")
    classes = _class_names(names)
    part = Part(model.hash, model.after_task, model.hash)
    return add_images(
        index, vectors, [names[i] for i in kept], [classes[i] for i in kept], part, root=os.path.abspath(root)
    )


def _class_names(names: Sequence[str]) -> list[str | None]:
    """The class of each image, given its name below a root: the folders it lies in; None at the top.

    Folders train, test and the like are no part of it where all images lie in such ones.
    """
    folders = [PurePosixPath(name).parent.parts for name in names]
    if all(parts and parts[0].lower() in _NO_CLASS for parts in folders):
        folders = [parts[1:] for parts in folders]
    return ["/".join(parts) or None for parts in folders]


_ACTIONS = {"build": "index", "add": "index", "remove": "index", "info": "index_info", "refresh": "index_refresh"}
_HELP = """usage: tripletmas index build|add|remove|info|refresh ...

{text}

  tripletmas index build runs/mas --images FOLDER --out shop.index
  tripletmas index add shop.index --images MORE
  tripletmas index remove shop.index PATH
  tripletmas index info shop.index
  tripletmas index refresh shop.index --compensate      moves stale vectors, reads no image
  tripletmas index refresh shop.index --reembed         embeds the images of stale vectors again

  tripletmas index build --help      the options of each
"""
