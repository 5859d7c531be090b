"""Ray: files embedded by a pool of actors, on one machine or many, into Parquet parts that are not made twice."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tripletmas.basics.locks import locked
from tripletmas.data.images import ImageFiles
from tripletmas.data.tokens import Tokenizer
from tripletmas.data.vector_parts import Part, begin_parts, end_parts, identity_of, plan_parts, write_part
from tripletmas.runs.deployed import load_deployed
from tripletmas.runs.directory import is_run
from tripletmas.runs.models import NoneReadable, embed_images, embed_texts

try:
    import ray
    import ray.data
except ModuleNotFoundError:
    raise ImportError('embedding by a pool of actors needs Ray: pip install "tripletmas[ray]"') from None

logger = logging.getLogger(__name__)

Embed = Callable[[Sequence[str]], Any]  # paths of files -> (n, dim), a tensor or an array


def embed_files(
    model: str | Path | Callable[[], Embed],
    files: str | Path,
    out: str | Path,
    *,
    after: int | None = None,
    identity: str | None = None,
    texts: bool | None = None,
    actors: int = 2,
    gpus_per_actor: float = 0.0,
    part_size: int = 1024,
    skip_unreadable: bool = False,
) -> list[Path]:
    """Embed all images below a folder, or texts in .txt files, by a pool of actors of Ray Data, into Parquet parts.

    A part is named by the model and by the names and contents of its files, and written whole or not at all. One that
    is there is not made again: a job that was killed goes on, and of files that have changed, or are new, their parts
    alone are embedded. A part whose actor dies is given to another one. Parts that no file needs any more are deleted
    at the end. All processes must see `files`, `out` and the model under the same paths.

    Columns: `vector` (raw, float32), `label` (the folders that a file lies in), `path`, and of texts `text`. An index
    of them: `tripletmas index build RUN --vectors OUT`.

    Args:
        model: a run directory, a folder that `export --pretrained` wrote, or a function that each actor calls once, and
            that gives a function (paths) -> (n, dim).
        files: a folder, or a zip archive, with sub-folders.
        out: the folder of the parts, made if need be: of this model and these files alone.
        after: the task of the run whose model it is; None for the last that is done.
        identity: of a function of your own: what tells its vectors from those of others, such as its version.
        texts: whether a function of your own reads .txt files; of a model it is known.
        actors: processes that embed, each with a CPU of its own.
        gpus_per_actor: what each has of a GPU.
        part_size: files of a part on average; an actor embeds a part at a time, in the model's own batches.
        skip_unreadable: leave out images that cannot be read, and log how many; else the first is an error.

    Returns:
        The parts, in the order of the files.

    Raises:
        ValueError: for a file that cannot be read, a folder with vectors of another model, more actors than the cluster
            has CPUs, or a model that is none.
    """
    job = _Job(model, after, identity, texts, str(Path(files).absolute()), Path(out).absolute(), skip_unreadable)
    with locked(job.out / ".lock", job.out):
        parts = plan_parts(job.root, texts=job.texts, model=job.identity, part_size=part_size)
        begin_parts(job.out, job.root, texts=job.texts, model=job.identity)
        missing = [part for part in parts if not (job.out / part.file).exists()]
        logger.info("%s: %d parts of %d are there", job.out, len(parts) - len(missing), len(parts))
        if missing:
            _run(job, missing, actors, gpus_per_actor)
        end_parts(job.out, parts)
    return [job.out / part.file for part in parts]


@final
class _Job:
    """What every actor has to know: which model, which files, where to."""

    def __init__(
        self,
        model: str | Path | Callable[[], Embed],
        after: int | None,
        identity: str | None,
        texts: bool | None,
        root: str,
        out: Path,
        skip_unreadable: bool,
    ):
        self.model, self.after, self.root, self.out, self.skip_unreadable = model, after, root, out, skip_unreadable
        if isinstance(model, (str, Path)):
            if identity is not None or texts is not None:
                raise ValueError("identity= and texts= are for a function of your own; those of a model are known")
            self.model = Path(model).absolute()
            _refuse_other_than_folders(self.model, after)
            loaded = load_deployed(self.model, after=after, device="cpu")
            self.identity = identity_of(loaded.hash, loaded.shown)
            self.texts = isinstance(loaded.shown, Tokenizer)
        elif not identity:
            raise ValueError(
                "a function of your own needs identity=, a text that tells its vectors from those of others (its name "
                "and version): parts that are there are known by it"
            )
        else:
            self.identity, self.texts = identity, bool(texts)


class _Embedder:
    """An actor: it loads the model once, and embeds parts."""

    def __init__(self, job: _Job):
        self._job, self._model, self._own, self._failure = job, None, None, ""
        try:
            if isinstance(job.model, Path):
                self._model = load_deployed(job.model, after=job.after)
            elif not isinstance(job.model, str):
                self._own = job.model()
        except (
            Exception
        ) as error:  # told with the first part: of an actor that cannot be made Ray prints four tracebacks
            self._failure = _told(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = Part(str(row["file"]), tuple(map(str, row["names"])))
        count, failure = 0, self._failure
        try:
            count = 0 if failure else self._written(part)
        except Exception as error:  # as a value: Ray would wrap it, and print it twice
            failure = _told(error)
        return {"file": part.file, "vectors": count, "error": failure}

    def _written(self, part: Part) -> int:
        """How many vectors were embedded and written."""
        job = self._job
        paths = [os.path.join(job.root, name) for name in part.names]
        texts = [Path(path).read_text(encoding="utf-8").strip() for path in paths] if job.texts else []
        kept = list(range(len(paths)))
        if self._own is not None:
            vectors = _checked(self._own(paths), len(paths))
        elif self._model is not None and job.texts:
            vectors = embed_texts(self._model, texts)
        else:
            vectors, kept = self._of_images(part)
        write_part(job.out, part, job.root, kept, vectors, texts)
        return len(kept)

    def _of_images(self, part: Part) -> tuple[Tensor, list[int]]:
        assert self._model is not None
        images = ImageFiles(self._job.root, part.names, self._model.prepared)
        option = "skip_unreadable=True"
        try:
            return embed_images(self._model, images, skip_unreadable=self._job.skip_unreadable, option=option)
        except NoneReadable as error:
            logger.warning("%s: %s", part.file, error)
            return torch.empty(0, self._model.dim), []


def _told(error: Exception) -> str:
    """A sentence; of an error that may be that of the user's own function, where it arose."""
    if isinstance(error, ValueError) and str(error):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"


def _run(job: _Job, parts: Sequence[Part], actors: int, gpus: float) -> None:
    if actors < 1:
        raise ValueError(f"actors must be >= 1, got {actors}")
    if not ray.is_initialized():
        ray.init()
    cpus = ray.cluster_resources().get("CPU", 0)
    if actors > cpus:
        raise ValueError(f"{actors} actors need a CPU each, and Ray has {cpus:g}: give fewer actors=")
    rows = [{"file": part.file, "names": list(part.names)} for part in parts]
    pool = ray.data.ActorPoolStrategy(size=min(actors, len(parts)), max_tasks_in_flight_per_actor=2)
    embedder: Any = _Embedder  # a class, of which each actor makes one
    work = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        embedder, fn_constructor_args=(job,), compute=pool, num_cpus=1, num_gpus=gpus or None
    )
    _tell(job.out, sum(len(part.names) for part in parts), work.iter_rows())


def _tell(out: Path, count: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Log how many of so many files were embedded, given what actors say of each part; a ValueError if one failed."""
    done = 0
    for row in rows:
        if row["error"]:
            raise ValueError(row["error"])
        done += row["vectors"]
    logger.info("%s: %d vectors made", out, done)
    if done < count:
        logger.warning("%s: skipped %d of %d files, which cannot be read", out, count - done, count)


def _refuse_other_than_folders(model: Path, after: int | None) -> None:
    """Raises ValueError where every actor cannot find a model by its path alone."""
    if after is not None and not is_run(model):
        raise ValueError(f"after= is a task of a run, and {model} is none")
    if not model.is_dir():
        raise ValueError(f"{model} is no run directory, and no folder that tripletmas export --pretrained wrote")


def _checked(vectors: Any, count: int) -> Tensor:
    found = torch.from_numpy(vectors) if isinstance(vectors, np.ndarray) else vectors
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != count:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(vectors).__name__
        raise ValueError(f"your function must give (n, dim) for the paths of n files: for {count} it gave {shape}")
    if not bool(found.isfinite().all()):
        raise ValueError("your function gave vectors that are not finite")
    return found.detach().to("cpu", torch.float32)
