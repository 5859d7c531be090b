"""The command that writes for other programs: embeddings (Parquet, which needs pyarrow, or .npz), or the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from tripletmas.basics.sentences import counted
from tripletmas.basics.version import __version__
from tripletmas.basics.weights import state_of, weight_hash
from tripletmas.cli.console import make_parser, open_run
from tripletmas.cli.outputs import check_output, check_place
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream
from tripletmas.data.tokens import Tokenizer
from tripletmas.data.vector_table import check_ending, write_table
from tripletmas.models.exported import WEIGHTS
from tripletmas.models.making import is_built_in
from tripletmas.models.text import PREFIX
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import config_of, load_trained
from tripletmas.runs.onnx_file import write_onnx
from tripletmas.runs.pretrained import save_pretrained

_PARTS = ("train", "query", "gallery")


def export(arguments: Sequence[str]) -> dict[str, Any]:
    """Write for other programs: the embeddings of a run's samples, with labels, tasks and files; or its model."""
    parser = make_parser("export", export.__doc__, "run", "--after", "--trust-code")
    parser.add_argument("--embeddings", type=str, metavar="FILE", help="a .parquet or .npz file to write")
    parser.add_argument("--part", type=str, default="all", help=f"{', '.join(_PARTS)} or all, of the embeddings")
    parser.add_argument("--onnx", type=str, metavar="FILE", help="an .onnx file of the model to write")
    parser.add_argument(
        "--pretrained", type=str, metavar="FOLDER", help="a folder of the model to write, which --model takes"
    )
    options = parser.parse_args(arguments)
    asked = [name for name in ("embeddings", "onnx", "pretrained") if getattr(options, name)]
    if len(asked) != 1:
        raise ValueError("export needs one of --embeddings FILE, --onnx FILE and --pretrained FOLDER")
    if asked == ["embeddings"]:
        return _embeddings(options)
    run = open_run(options.run, trust_code=options.trust_code)
    if options.onnx:
        return _file(run, options.onnx, options.after)
    return _folder(run, options.pretrained, options.after)


def _embeddings(options: Namespace) -> dict[str, Any]:
    check_ending(options.embeddings)
    check_output("--embeddings", options.embeddings, Path(options.embeddings).suffix.lower())
    if options.part not in (*_PARTS, "all"):
        raise ValueError(f"--part must be one of {', '.join(_PARTS)} or all, got {options.part!r}")
    run = open_run(options.run, trust_code=options.trust_code)
    experiment, after = load_trained(run, options.after)
    chosen = list(_chosen(experiment.stream[: after + 1], options.part))
    if not chosen:
        raise ValueError(f"{run.path}: no task has a gallery of its own; the queries are searched among themselves")
    embed = replace(experiment.objective.embed, progress=True)
    vectors = [embed(experiment.model, each).vectors for *_, each in chosen]
    columns: dict[str, list[str | None]] = {"label": [], "task": [], "part": [], "path": []}
    for task, part, dataset in chosen:
        columns["label"] += _names(dataset)
        columns["task"] += [task] * len(dataset)
        columns["part"] += [part] * len(dataset)
        columns["path"] += dataset.paths or [None] * len(dataset)
    about = {
        "run": str(options.run),
        "after_task": str(after),
        "model": weight_hash(state_of(experiment.model)),
        "tripletmas": __version__,
    }
    write_table(options.embeddings, torch.cat(vectors), columns, about)
    count, dim = len(columns["label"]), vectors[0].shape[1]
    print(f"{options.embeddings}: {counted(count, 'vector')} of dim {dim} by {run.path} after task {after}")
    return {"file": options.embeddings, "vectors": count, "dim": dim, "run": str(run.path), "after": after}


def _names(dataset: LabelledDataset) -> list[str]:
    """The class of each sample; of several, as facts are, all that the task tells, with semicolons between them."""
    if dataset.within is None:
        return [dataset.class_names[each] for each in dataset.labels.tolist()]
    return ["; ".join(dataset.class_names[int(each)] for each in row.nonzero()) for row in dataset.labels]


def _chosen(stream: Stream, part: str) -> Iterator[tuple[str, str, LabelledDataset]]:
    """(task, part, samples without augmentation) of the parts that are asked for and that there are."""
    for task in stream:
        for name, dataset in (("train", task.train), ("query", task.query), ("gallery", task.gallery)):
            if part in (name, "all") and dataset is not None:
                yield task.name, name, dataset.plain()


def _folder(run: RunDirectory, folder: str, after: int | None) -> dict[str, Any]:
    """Write the model as a folder, and say how to go on."""
    check_place("--pretrained", folder)
    model = save_pretrained(run, folder, after=after)
    print(
        f"{folder}: the model of {run.path} after task {model.after_task}, dim {model.dim}, with a card of its scores"
    )
    if isinstance(model.shown, Tokenizer):
        how = f"tripletmas train --model {PREFIX}{folder} ...; in Python: SentenceTransformer({folder!r})"
    elif not is_built_in(name := config_of(run)["model"]["name"]):
        how = f"tripletmas train --model {name} --model.weights {Path(folder) / WEIGHTS} ..."
    else:
        how = f"tripletmas train --model {folder} ...; in Python: tripletmas.from_pretrained({folder!r})"
    print(f"go on from it: {how}")
    return {"folder": folder, "dim": model.dim, "run": str(run.path), "after": model.after_task}


def _file(run: RunDirectory, file: str, after: int | None) -> dict[str, Any]:
    """Write the model as ONNX, and say what its input is."""
    if Path(file).suffix.lower() != ".onnx":
        raise ValueError(f"--onnx {file} must end in .onnx")
    check_output("--onnx", file, ".onnx")
    model, furthest = write_onnx(run, file, after=after)
    given = "texts (n, length)"
    if not isinstance(model.shown, Tokenizer):
        shape = ", ".join(map(str, ("n", *model.shown.shape)))
        given = f"images ({shape}) with values in [0, 1]"
    print(
        f"{file}: the model of {run.path} after task {model.after_task}, {given} to embeddings (n, {model.dim}); under "
        f"onnxruntime they differ by at most {furthest:.1e} of their length"
    )
    about = {"file": file, "dim": model.dim, "run": str(run.path), "after": model.after_task}
    return {**about, "furthest": float(furthest)}
