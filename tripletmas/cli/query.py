"""The command that finds the nearest images of an index."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tripletmas.basics.files import atomic_write
from tripletmas.cli.console import console, make_parser
from tripletmas.cli.index_info import model_of, stale_vectors, ways_out
from tripletmas.data.image_paths import ImagesAt
from tripletmas.index.images import ImageIndex
from tripletmas.objectives.facts import asking
from tripletmas.report.query_page import picture_grid
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import load_trained
from tripletmas.runs.models import embed_images


def query(arguments: Sequence[str]) -> None:
    """Find the images of an index that are nearest to others, as the model of its run sees them.

    In place of the index, a run on facts finds the images of a fact, and the facts of an image.
    """
    parser = make_parser("query", query.__doc__)
    parser.add_argument("index", type=str, help="the index file, or the directory of a run on facts")
    asks_facts = any(each.partition("=")[0] == "--fact" for each in arguments)
    parser.add_argument("images", nargs="*" if asks_facts else "+", help="image files to search with")
    parser.add_argument(
        "--fact",
        action="append",
        metavar="FACT",
        help='of a run on facts: "circle, left of, square" finds images, * stands for any part; several are asked in '
        "turn",
    )
    parser.add_argument("--gallery", type=str, default=None, help="for --fact: search this folder, not the test images")
    parser.add_argument("-k", "--k", type=int, default=10, help="how many neighbours of each")
    parser.add_argument("--run", type=str, default=None, help="the run directory (default: the one in the index)")
    parser.add_argument("--after", type=int, default=None, help="the model after this task (default: the last)")
    parser.add_argument("--allow-stale", action="store_true", help="search although vectors are of another model")
    parser.add_argument("--html", type=str, default=None, metavar="FILE", help="also write a page with pictures there")
    parser.add_argument("--json", type=str, default=None, metavar="FILE", help="also write the neighbours there")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:NUMBER")
    options = parser.parse_args(arguments)
    if options.k < 1:
        raise ValueError(f"-k must be >= 1, got {options.k}")
    for option, path in (("--html", options.html), ("--json", options.json)):
        if path is not None and os.path.realpath(path) in map(os.path.realpath, (options.index, *options.images)):
            raise ValueError(f"{option} {path} would overwrite what is searched: name another file")
    if Path(options.index).is_dir():
        return _ask(options)
    if options.fact or options.gallery:
        raise ValueError("--fact and --gallery are for the directory of a run on facts; an index takes images")
    index = ImageIndex.open(options.index)
    if not len(index):
        raise ValueError(f"{options.index} holds no vectors: tripletmas index add {options.index} --images FOLDER")
    model = model_of(index, options.run, options.device, options.after)
    notes = []
    if index.stale(model.hash):
        if not options.allow_stale:
            raise ValueError(
                f"{options.index}: {stale_vectors(index, model)}, so scores do not compare: {ways_out(options.index)}, "
                "--allow-stale searches them as they are"
            )
        notes.append(f"{stale_vectors(index, model)}: scores with them do not compare")
    if options.k > len(index):
        notes.append(f"the index holds {len(index)} vectors, fewer than the {options.k} that are asked for")
    transform = index.settings.transform
    images = ImagesAt(options.images, size=transform.size, channels=transform.channels)
    vectors, _ = embed_images(model, images, invert=transform.invert, option=None)
    found = neighbours(index, options.images, *index.search(vectors, min(options.k, len(index))))
    fewest = min(len(each["neighbours"]) for each in found)
    if fewest < min(options.k, len(index)):
        notes.append(
            f"an approximate index of kind {index.settings.kind} may find fewer than asked for (here {fewest} of "
            f"{options.k}): build it with a larger --nprobe or --ef-search"
        )
    about = f"{options.index}: {len(index)} images, {model.run} after task {model.after_task}"
    _tell(options, found, notes, about=about, measure=_measure(index), pictures={})


def _ask(options: Namespace) -> None:
    """Ask a run on facts."""
    if options.run or options.allow_stale:
        raise ValueError("--run and --allow-stale are for an index; here the run itself is asked")
    if bool(options.fact) == bool(options.images):
        raise ValueError("ask with image files, or with --fact, one of the two")
    if options.gallery and not options.fact:
        raise ValueError("--gallery is for --fact: an image chooses among the facts of the run")
    run = RunDirectory.open(options.index)
    experiment, after = load_trained(run, options.after, device=options.device)
    pictures: dict[str, str] = {}
    notes: list[str] = []
    if options.fact:
        gallery = asking.gallery_of(experiment, after, options.gallery)
        found, notes = asking.images_for(experiment, gallery, options.fact, options.k)
        about = f"{options.index} after task {after}: {len(gallery.names)} images"
        if options.html:
            pictures = asking.pictures_of(gallery, found)
    else:
        found = asking.facts_for(experiment, options.images, after, options.k)
        about = f"{options.index} after task {after}"
    _tell(options, found, notes, about=about, measure="mean cosine of the fact's parts", pictures=pictures)


def _tell(
    options: Namespace,
    found: Sequence[dict[str, Any]],
    notes: Sequence[str],
    *,
    about: str,
    measure: str,
    pictures: Mapping[str, str],
) -> None:
    """Print what was found, and write it where the options say."""
    for each in found:
        console().print(_table(each))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if options.json:
        _write(options.json, json.dumps({"index": options.index, "queries": found}, indent=1, allow_nan=False) + "\n")
    if options.html:
        _write(options.html, picture_grid(found, about=about, notes=notes, measure=measure, pictures=pictures))
        print(f"page: {options.html}")


def neighbours(index: ImageIndex, queries: Sequence[str], scores: Any, rows: Any) -> list[dict[str, Any]]:
    """For each query its path and neighbours: rank from 1, score, label (None without one), path, id."""
    return [
        {
            "query": path,
            "neighbours": [
                {
                    "rank": rank,
                    "score": score,
                    "label": index.label_of(row),
                    "path": index.paths[row],
                    "id": int(index.ids[row]),
                }
                for rank, (score, row) in enumerate(zip(own_scores, own_rows, strict=True), start=1)
                if row >= 0
            ],
        }
        for path, own_scores, own_rows in zip(queries, scores.tolist(), rows.tolist(), strict=True)
    ]


def _measure(index: ImageIndex) -> str:
    if index.settings.metric == "l2":
        return "negative squared distance"
    return "cosine" if index.settings.normalize else "inner product"


def _table(found: dict[str, Any]) -> Table:
    table = Table(title=_shown(found["query"]), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("label")
    table.add_column("path", overflow="fold")
    for each in found["neighbours"]:
        table.add_row(str(each["rank"]), f"{each['score']:.6f}", _shown(each["label"] or ""), _shown(each["path"]))
    return table


def _shown(text: str) -> str:
    """A path as it can be printed: the bytes of a file name that is not UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write(path: str, text: str) -> None:
    with atomic_write(path) as aside:
        Path(aside).write_text(text, encoding="utf-8", errors="backslashreplace")
