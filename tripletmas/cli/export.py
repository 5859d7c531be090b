"""The command that writes a run's embeddings for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tripletmas.basics.version import __version__
from tripletmas.basics.weights import state_of, weight_hash
from tripletmas.cli.console import make_parser
from tripletmas.cli.embedding_file import EmbeddingTable, check_ending, write_table
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream
from tripletmas.models.embedding import embed
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import load_trained

_PARTS = ("train", "query", "gallery")


def export(arguments: Sequence[str]) -> None:
    """Write the embeddings of a run's samples, with their labels, tasks and files, for other programs."""
    parser = make_parser("export", export.__doc__)
    parser.add_argument("run", type=str, help="the run directory")
    parser.add_argument(
        "--embeddings", type=str, required=True, metavar="FILE", help="a .parquet or .npz file to write"
    )
    parser.add_argument("--after", type=int, default=None, help="the model after this task (default: the last)")
    parser.add_argument("--part", type=str, default="all", help=f"{', '.join(_PARTS)} or all")
    options = parser.parse_args(arguments)
    check_ending(options.embeddings)
    if options.part not in (*_PARTS, "all"):
        raise ValueError(f"--part must be one of {', '.join(_PARTS)} or all, got {options.part!r}")
    run = RunDirectory.open(options.run)
    experiment, after = load_trained(run, options.after)
    chosen = list(_chosen(experiment.stream[: after + 1], options.part))
    if not chosen:
        raise ValueError(f"{run.path}: no task has a gallery of its own; the queries are searched among themselves")
    vectors, label, task, part, path = [], [], [], [], []
    for task_name, part_name, dataset in chosen:
        batch_size = experiment.training.eval_batch_size
        vectors.append(embed(experiment.model, dataset, batch_size=batch_size, progress=True).vectors)
        label += _names(dataset)
        task += [task_name] * len(dataset)
        part += [part_name] * len(dataset)
        path += dataset.paths or [None] * len(dataset)
    about = {
        "run": str(options.run),
        "after_task": str(after),
        "model": weight_hash(state_of(experiment.model)),
        "tripletmas": __version__,
    }
    write_table(options.embeddings, EmbeddingTable(torch.cat(vectors), label, task, part, path, about))
    print(f"{options.embeddings}: {len(label)} vectors of dim {vectors[0].shape[1]} by {run.path} after task {after}")


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
