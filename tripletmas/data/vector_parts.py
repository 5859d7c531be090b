"""Vectors of many files in a folder of Parquet parts, each named by what went into it.

part-HASH.parquet   vectors of some files that follow each other by name: the columns of `vector_table`
embedding.json      whose vectors these are, of which files, and once all are there the parts in their order

The hash is of the model, and of the names and the contents of a part's files. So a part that is there is right, whoever
made it and however that ended, and a file that has changed is in a part of another name. Where one part ends and the
next begins, the names say, so that a new file among many makes one new part, not all after it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tripletmas.basics.files import damaged, read_json, save_json
from tripletmas.basics.sentences import listed
from tripletmas.basics.version import __version__
from tripletmas.data.images import IMAGE_SUFFIXES, ImageFiles, find_files
from tripletmas.data.preparation import Preparation
from tripletmas.data.tokens import Tokenizer
from tripletmas.data.vector_table import write_table

ABOUT = "embedding.json"
_REMEDY = "embed the files anew into another folder"
_LONGEST = 4  # a part has at most so many times the files that parts have on average
_READERS = 8  # files that are read at once for their checksums


@dataclass(frozen=True)
class Part:
    """Files that are embedded together.

    Args:
        file: the name of the Parquet file.
        names: of the files, below the root.
    """

    file: str
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Vectors:
    """All vectors of a folder of parts, (n, dim) float32, with the names of their files.

    Args:
        model: what made them, as `identity_of` gives it, or a text of the user's own.
        root: the folder or archive of the files.
        texts: what stands in them; () of images.
    """

    model: str
    root: str
    names: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: Tensor


def identity_of(weights: str, shown: Preparation | Tokenizer) -> str:
    """What tells a model's vectors from all others: the hash of its weights, and how it is shown a file."""
    return f"{weights}, {shown.identity if isinstance(shown, Tokenizer) else shown}"


def plan_parts(root: str | Path, *, texts: bool, model: str, part_size: int) -> list[Part]:
    """The parts that the files below a folder, or in an archive, belong to.

    Args:
        texts: .txt files in place of images.
        model: what makes the vectors.
        part_size: files of a part on average.

    Raises:
        ValueError: if there is no such file, or one that cannot be read.
    """
    if part_size < 1:
        raise ValueError(f"part_size must be >= 1 file, got {part_size}")
    if texts and not Path(root).is_dir():
        raise ValueError(f"no such folder of texts: {root}")
    names = find_files(root, frozenset({".txt"}), "texts") if texts else find_files(root, IMAGE_SUFFIXES, "images")
    files = ImageFiles(root, names, Preparation((1, 1)))
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(files.checksum, range(len(names)))
        checksums = list(tqdm(found, desc="reading files", total=len(names), disable=None, leave=False))
    return list(_cut(names, checksums, model, part_size))


def _cut(names: Sequence[str], checksums: Sequence[str], model: str, part_size: int) -> Iterator[Part]:
    start = 0
    for end, name in enumerate(names, start=1):
        number = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
        if number % part_size == 0 or end - start == _LONGEST * part_size or end == len(names):
            content = [model, *zip(names[start:end], checksums[start:end], strict=True)]
            digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
            yield Part(f"part-{digest}.parquet", tuple(names[start:end]))
            start = end


def begin_parts(folder: Path, root: str | Path, *, texts: bool, model: str) -> None:
    """Note in a folder whose vectors it holds, and that not all are there yet.

    Raises:
        ValueError: if it holds those of another model, or of other files.
    """
    file = folder / ABOUT
    about = {"model": model, "root": os.path.abspath(root), "texts": texts}
    if file.exists():
        before = _about(folder)
        if {key: before.get(key) for key in about} != about:
            other = "by another model" if before.get("model") != model else f"of {before.get('root')}"
            raise ValueError(f"{folder} holds vectors {other}: name another folder")
    elif folder.is_dir() and any(not each.name.startswith(".") for each in folder.iterdir()):
        raise ValueError(f"{folder} is not empty, and holds no vectors of files ({ABOUT}): name another folder")
    save_json(file, {**about, "parts": None})


def end_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Note that these are all, and delete parts that no file needs any more."""
    save_json(folder / ABOUT, {**_about(folder), "parts": [part.file for part in parts]})
    needed = {part.file for part in parts}
    for each in folder.glob("part-*.parquet*"):  # also what a process that was killed had begun
        if each.name not in needed:
            each.unlink()


def write_part(folder: Path, part: Part, root: str, kept: Sequence[int], vectors: Tensor, texts: Sequence[str]) -> None:
    """Write the vectors of a part's files, whole or not at all.

    Args:
        kept: the positions in the part of the files that they are of.
        texts: of the same files; () of images.
    """
    names = [part.names[position] for position in kept]
    labels = ["/".join(PurePosixPath(name).parent.parts) or None for name in names]
    columns: dict[str, Sequence[str | None]] = {"label": labels, "path": [os.path.join(root, name) for name in names]}
    columns |= {"text": texts} if texts else {}
    write_table(folder / part.file, vectors, columns, {"model": _about(folder)["model"], "tripletmas": __version__})


def read_parts(folder: str | Path) -> Vectors:
    """All vectors of a folder, in the order of their files.

    Raises:
        ValueError: if it is none, not all are there yet, or a part is damaged.
    """
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        raise ValueError(f"{folder} holds no vectors of files: it has no {ABOUT}")
    about = _about(folder)
    if about["parts"] is None:
        raise ValueError(f"{folder} does not hold all vectors yet: embed the files again, which goes on where it was")
    vectors, paths, texts = torch.empty(0, 0), [], []
    total = sum(_rows_of(folder / name) for name in about["parts"])
    for name in about["parts"]:
        table = _table(folder / name, about["model"])
        found = table.column("vector").combine_chunks().flatten().to_numpy()
        if len(table):
            if not len(vectors):  # room for all at once: they are not copied together afterwards
                vectors = torch.empty(total, len(found) // len(table))
            vectors[len(paths) : len(paths) + len(table)] = torch.from_numpy(found.copy()).reshape(len(table), -1)
        paths += table.column("path").to_pylist()
        texts += table.column("text").to_pylist() if "text" in table.column_names else []
    if not paths:
        raise ValueError(f"{folder} holds no vector at all")
    names = tuple(os.path.relpath(path, about["root"]).replace(os.sep, "/") for path in paths)
    return Vectors(about["model"], about["root"], names, tuple(texts), vectors)


def _rows_of(path: Path) -> int:
    """How many rows a part has, by its footer."""
    return _read(path, lambda parquet: parquet.read_metadata(path)).num_rows


def _table(path: Path, model: str):
    """A part, if its vectors are by this model."""
    table = _read(path, lambda parquet: parquet.read_table(path))
    if (table.schema.metadata or {}).get(b"model", b"").decode() != model:
        raise damaged(path, "its vectors are by another model", "delete it, and embed the files again")
    return table


def _read(path: Path, read: Callable[[Any], Any]) -> Any:
    """What is read of a part by pyarrow.parquet."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f'{path} needs pyarrow: pip install "tripletmas[parquet]"') from None
    try:
        return read(parquet)
    except (OSError, pyarrow.ArrowException) as error:
        raise damaged(path, error, "delete it, and embed the files again") from None


def _about(folder: Path) -> dict[str, Any]:
    found = read_json(folder / ABOUT, _REMEDY)
    if not isinstance(found, dict) or not {"model", "root", "texts", "parts"} <= found.keys():
        what = listed(found) if isinstance(found, dict) else type(found).__name__
        raise damaged(folder / ABOUT, f"it has {what}", _REMEDY)
    return found
