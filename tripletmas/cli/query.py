"""The command that finds the nearest images of an index."""

from __future__ import annotations

import os
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from torch import Tensor

from tripletmas.basics.sentences import listed
from tripletmas.cli.asked import asked_images, asked_texts
from tripletmas.cli.console import make_parser, open_run
from tripletmas.cli.found import say, tell
from tripletmas.cli.outputs import check_output
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.images import ImageFiles
from tripletmas.index.base import unit
from tripletmas.index.choice import COMPENSATE
from tripletmas.index.images import ImageIndex, Reading
from tripletmas.objectives.facts import asking
from tripletmas.objectives.grid import Grid, Hit, Row
from tripletmas.runs.experiment import load_trained
from tripletmas.runs.indexed import model_of, moves_back, refuse_collapsed, stale_vectors
from tripletmas.runs.models import RunModel, embed_images, embed_texts
from tripletmas.runs.moves import ways_out
from tripletmas.stores.place import is_store

_OF_RUN = "run"  # --move-queries without the name of a map
_OF_INDEX = ("run", "allow-stale", "move-queries", "force", "csv", "min-score", "skip-unreadable")  # alone


def query(arguments: Sequence[str]) -> dict[str, Any]:
    """Find the images, or the texts, of an index that are nearest to others, as the model of its run sees them.

    In place of the index, a run on facts finds the images of a fact, and the facts of an image.
    """
    parser = make_parser("query", query.__doc__, "--skip-unreadable", "--force", "--trust-code")
    parser.add_argument(
        "index", type=str, help="the index file, the directory of a run on facts, or a store: SCHEME://WHERE#COLLECTION"
    )
    asks_besides = any(each.partition("=")[0] in ("--fact", "--csv") for each in arguments)
    parser.add_argument(
        "images",
        nargs="*" if asks_besides else "+",
        help="image files to search with, folders and archives of them, or, of an index of texts, texts",
    )
    parser.add_argument("--csv", type=str, default=None, metavar="FILE", help="search with what a CSV file lists")
    parser.add_argument(
        "--column",
        type=str,
        default=None,
        help="of --csv: where it has them (default: path, relative to the file's folder; of texts: text)",
    )
    parser.add_argument(
        "--fact",
        action="append",
        metavar="FACT",
        help='of a run on facts: "circle, left of, square" finds images, * stands for any part; several are asked in '
        "turn",
    )
    parser.add_argument("--gallery", type=str, default=None, help="for --fact: search this folder, not the test images")
    parser.add_argument(
        "--min-score", type=float, default=None, metavar="SCORE", help="leave out what is below; where all is: no match"
    )
    parser.add_argument("-k", "--k", type=int, default=10, help="how many neighbours of each")
    parser.add_argument("--run", type=str, default=None, help="the run directory (default: the one in the index)")
    parser.add_argument("--after", type=int, default=None, help="the model after this task, from 0 (default: the last)")
    parser.add_argument("--allow-stale", action="store_true", help="search although vectors are of another model")
    parser.add_argument(
        "--move-queries",
        type=str,
        nargs="?",
        const=_OF_RUN,
        metavar="MAP",
        help="leave stale vectors as they are, and move the queries back to the model of each: "
        f"{', '.join(COMPENSATE)} (default: the run's own map, else linear; after gram auto); each part is searched "
        "exactly",
    )
    parser.add_argument(
        "--assume",
        type=str,
        default=None,
        metavar="MODEL",
        help="of a store that does not know what made its vectors: this did (a run, an exported folder, timm:NAME, "
        "sentence-transformers:NAME); looked at on some of its pictures or texts, and noted in it",
    )
    parser.add_argument("--html", type=str, default=None, metavar="FILE", help="also write a page with pictures there")
    parser.add_argument(
        "--json",
        type=str,
        default=None,
        metavar="FILE",
        help="also write the neighbours there; without FILE they alone are printed",
    )
    parser.add_argument(
        "--jsonl",
        type=str,
        default=None,
        metavar="FILE",
        help="also write the neighbours there, a line of JSON for each query; - for standard output, and no tables",
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:NUMBER")
    parser.add_argument("--quiet", action="store_true", help=SUPPRESS)  # told of with the options of every command
    options = parser.parse_args(arguments)
    if options.k < 1:
        raise ValueError(f"-k must be >= 1, got {options.k}")
    if options.column and not options.csv:
        raise ValueError("--column is for --csv")
    _check_outputs(options)
    if is_store(options.index):
        from tripletmas.cli.query_store import search_store  # and with it what loads models of all kinds

        return search_store(options)
    if options.assume:
        raise ValueError("--assume is for a store that notes nothing of its vectors: an index knows what made its own")
    return (_ask if Path(options.index).is_dir() else _search)(options)


def _check_outputs(options: Namespace, images: Sequence[str] = ()) -> None:
    read = [options.index, *options.images, *([options.csv] if options.csv else [])]
    images = [*images, *filter(os.path.isdir, options.images), *([options.gallery] if options.gallery else [])]
    written = {"html": "HTML", "json": "JSON", **({} if options.jsonl == "-" else {"jsonl": "JSON"})}
    for name, kind in written.items():
        check_output(f"--{name}", options[name], kind, read=read, images=images)
        read += [options[name]] if options[name] else []


def _search(options: Namespace) -> dict[str, Any]:
    """Search an index."""
    if not Path(options.index).exists():
        raise ValueError(f"no such index file: {options.index} (tripletmas index build makes one), nor a run on facts")
    if options.fact or options.gallery:
        raise ValueError("--fact and --gallery are for the directory of a run on facts; an index takes images")
    index = ImageIndex.open(options.index)
    _check_outputs(options, index.roots)
    if not len(index):
        raise ValueError(f"{options.index} holds no vectors: tripletmas index add {options.index} --images FOLDER")
    names = _asked(index, options)
    if not options.force:
        refuse_collapsed(index, options.index)
    notes = []
    model = model_of(index, options.run, after=options.after, device=options.device, trust_code=options.trust_code)
    move_queries = bool(options.move_queries) and bool(index.stale(model.hash))
    if index.stale(model.hash) and not move_queries:
        notes.append(_of_stale(index, model, options))
    if options.k > len(index):
        notes.append(f"the index holds {len(index)} vectors, fewer than the {options.k} that are asked for")
    k = min(options.k, len(index))
    names, vectors = _embedded(index, model, names, options)
    scores, rows = _moved_search(index, model, vectors, k, options) if move_queries else index.search(vectors, k)
    fewest = int((rows >= 0).sum(dim=1).min())
    if fewest < k:
        notes.append(
            f"an approximate index of kind {index.settings.kind} may find fewer than asked for (here {fewest} of "
            f"{options.k}): build it with a larger --nprobe or --ef-search"
        )
    if options.min_score is not None:
        rows = rows.masked_fill(scores < options.min_score, -1)
    what = "texts" if index.texts else "images"
    about = f"{options.index}: {len(index)} {what}, {model.run} after task {model.after_task}"
    return tell(options, neighbours(index, names, scores, rows), notes, about=about, measure=_measure(index))


def _of_stale(index: ImageIndex, model: RunModel, options: Namespace) -> str:
    """What is to be said where stale vectors are searched as they are; a ValueError if that was not allowed."""
    if not options.allow_stale:
        raise ValueError(
            f"{options.index}: {stale_vectors(index, model)}, so scores do not compare: {ways_out(options.index)}, "
            "--move-queries moves the queries back to them, --allow-stale searches them as they are"
        )
    return f"{stale_vectors(index, model)}: scores with them do not compare"


def _asked(index: ImageIndex, options: Namespace) -> list[str]:
    """The paths of the images, or the texts, to search with."""
    if index.texts:
        return asked_texts(options.images, options.csv, options.column or "text")
    return asked_images(options.images, options.csv, options.column or "path")


def _embedded(index: ImageIndex, model: RunModel, names: list[str], options: Namespace) -> tuple[list[str], Tensor]:
    """(those of what is asked with that can be read, their raw vectors)."""
    shown = index.settings.transform
    if isinstance(shown, Reading):
        return names, embed_texts(model, names)
    images, skip = ImageFiles.at(names, model.prepared), options.skip_unreadable
    option = "--skip-unreadable" if len(names) > 1 else None
    vectors, kept = embed_images(model, images, invert=shown.invert, skip_unreadable=skip, option=option)
    return [names[position] for position in kept], vectors


def _moved_search(
    index: ImageIndex, model: RunModel, vectors: Tensor, k: int, options: Namespace
) -> tuple[Tensor, Tensor]:
    """What `ImageIndex.search_parts` finds of raw queries (q, dim), each moved back for each part."""
    asked = unit(vectors) if index.settings.normalize else vectors
    kind = None if options.move_queries == _OF_RUN else options.move_queries
    moves, choices = moves_back(index, model, kind, options.index)
    for task, choice in choices.items():
        say(options, f"back over task {task}: {choice.sentence()}")
    return index.search_parts({number: move(asked) for number, move in moves.items()}, k)


def _check_question(options: Namespace) -> None:
    """Whether a run on facts can be asked so."""
    values = {name: options[name.replace("-", "_")] for name in _OF_INDEX}
    if of_index := [name for name, value in values.items() if value is not None and value is not False]:
        raise ValueError(f"{listed([f'--{name}' for name in of_index])} is for an index; here the run is asked")
    if bool(options.fact) == bool(options.images):
        raise ValueError("ask with image files, or with --fact, one of the two")
    if options.gallery and not options.fact:
        raise ValueError("--gallery is for --fact: an image chooses among the facts of the run")


def _ask(options: Namespace) -> dict[str, Any]:
    """Ask a run on facts."""
    _check_question(options)
    run = open_run(options.index, trust_code=options.trust_code)
    experiment, after = load_trained(run, options.after, device=options.device)
    language, learned, notes = asking.language_of(experiment.objective), experiment.stream[: after + 1], []
    model = experiment.strategy.deployed(experiment.model)

    def embedded(images: LabelledDataset) -> Tensor:
        return replace(experiment.objective.embed, progress=True)(model, images).vectors

    about = f"{options.index} after task {after}"
    if options.fact:
        gallery = asking.gallery_of(learned, options.gallery)
        found, notes = asking.images_for(language, embedded, gallery, options.fact, options.k)
        about += f": {len(gallery.names)} images"
    else:
        found = asking.facts_for(language, embedded, learned, options.images, options.k)
    return tell(options, found, notes, about=about, measure="mean cosine of the fact's parts")


def neighbours(index: ImageIndex, queries: Sequence[str], scores: Tensor, rows: Tensor) -> Grid:
    """What each of these image files finds in an index."""
    of_queries = zip(queries, scores.tolist(), rows.tolist(), strict=True)
    found = [Row(query, (_hits(index, near, nearest),)) for query, near, nearest in of_queries]
    if index.texts:
        row_of = {path: row for row, path in enumerate(index.paths)}
        texts = {hit.name: index.texts[row_of[hit.name]] for row in found for hit in row.found[0]}
        return Grid(("",), tuple(found), texts=texts)
    shown = (name for row in found for name in (row.name, *(hit.name for hit in row.found[0])))
    return Grid(("",), tuple(found), pictures=dict.fromkeys(shown))


def _hits(index: ImageIndex, scores: Sequence[float], rows: Sequence[int]) -> tuple[Hit, ...]:
    """The neighbours in these rows; -1 stands for none."""
    found = [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
    return tuple(Hit(index.paths[row], score, index.label_of(row), id=int(index.ids[row])) for row, score in found)


def _measure(index: ImageIndex) -> str:
    if index.settings.metric == "l2":
        return "negative squared distance"
    return "cosine" if index.settings.normalize else "inner product"
