"""The command that writes for other programs: embeddings (Parquet, which needs pyarrow, or .npz), or the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor

from tripletmas.basics.files import atomic_write
from tripletmas.basics.version import __version__
from tripletmas.basics.weights import state_of, weight_hash
from tripletmas.cli.console import make_parser, open_run
from tripletmas.cli.export_model import write_file, write_folder
from tripletmas.cli.outputs import check_output
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream
from tripletmas.runs.experiment import load_trained

ENDINGS = (".parquet", ".npz")
_PARTS = ("train", "query", "gallery")


def export(arguments: Sequence[str]) -> None:
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
        return write_file(run, options.onnx, options.after)
    write_folder(run, options.pretrained, options.after)


def _embeddings(options: Namespace) -> None:
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
    print(f"{options.embeddings}: {count} vectors of dim {dim} by {run.path} after task {after}")


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


def check_ending(path: str | Path) -> None:
    """Whether a table can be written to a file of this name; before anything is embedded.

    Raises:
        ValueError: for another ending, and for Parquet without pyarrow.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path} must end in {' or '.join(ENDINGS)}")
    if ending == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ValueError(
                f'{path} needs pyarrow: pip install "tripletmas[parquet]", or write {Path(path).with_suffix(".npz")}'
            ) from None


def write_table(
    path: str | Path, vectors: Tensor, columns: Mapping[str, Sequence[str | None]], about: Mapping[str, str]
) -> None:
    """Write the file, whole or not at all; its ending chooses the format.

    In Parquet `vector` is a list of fixed size, and a path that there is not is null. In .npz the columns are arrays of
    text (no objects), and such a path is empty.

    Args:
        vectors: raw, (n, dim) float32.
        columns: n texts each, such as the file of each sample; None where it is none.
        about: what made the vectors.

    Raises:
        ValueError: as `check_ending`.
        OSError: if it cannot be written, as when the disk is full.
    """
    check_ending(path)
    with atomic_write(path) as aside:
        if Path(path).suffix.lower() == ".parquet":
            _write_parquet(aside, vectors, columns, about)
            return
        texts: dict[str, Any] = {
            name: np.array([each or "" for each in column], dtype=np.str_) for name, column in columns.items()
        }
        texts["about"] = np.array([f"{key}={value}" for key, value in about.items()], dtype=np.str_)
        with open(aside, "wb") as file:  # given a name, numpy would add its ending
            np.savez(file, vector=vectors.numpy(), **texts)


def _write_parquet(
    path: Path, vectors: Tensor, columns: Mapping[str, Sequence[str | None]], about: Mapping[str, str]
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    flat = pa.array(vectors.contiguous().numpy().reshape(-1), pa.float32())
    content = {"vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
    content |= {name: pa.array(column, pa.string()) for name, column in columns.items()}
    parquet.write_table(pa.table(content).replace_schema_metadata(dict(about)), path)
