"""A table of embeddings as a file: Parquet, which needs pyarrow, or NumPy's .npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from tripletmas.basics.files import atomic_write

ENDINGS = (".parquet", ".npz")


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """n rows: raw vectors (n, dim) float32, and of each the class name, the task's name, the part, the file.

    Args:
        path: None where samples are no files.
        about: what made the vectors, as text.
    """

    vector: Tensor
    label: Sequence[str]
    task: Sequence[str]
    part: Sequence[str]
    path: Sequence[str | None]
    about: Mapping[str, str]


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


def write_table(path: str | Path, table: EmbeddingTable) -> None:
    """Write the file, whole or not at all; its ending chooses the format.

    In Parquet `vector` is a list of fixed size, and a path that there is not is null. In .npz the columns are arrays of
    text (no objects), and such a path is empty.

    Raises:
        ValueError: as `check_ending`.
        OSError: if it cannot be written, as when the disk is full.
    """
    check_ending(path)
    with atomic_write(path) as aside:
        if Path(path).suffix.lower() == ".npz":
            _write_npz(aside, table)
        else:
            _write_parquet(aside, table)


def _write_npz(path: Path, table: EmbeddingTable) -> None:
    with open(path, "wb") as file:  # given a name, numpy would add its ending
        np.savez(
            file,
            vector=table.vector.numpy(),
            label=np.array(table.label, dtype=np.str_),
            task=np.array(table.task, dtype=np.str_),
            part=np.array(table.part, dtype=np.str_),
            path=np.array([each or "" for each in table.path], dtype=np.str_),
            about=np.array([f"{key}={value}" for key, value in table.about.items()], dtype=np.str_),
        )


def _write_parquet(path: Path, table: EmbeddingTable) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    flat = pa.array(table.vector.contiguous().numpy().reshape(-1), pa.float32())
    columns = {
        "vector": pa.FixedSizeListArray.from_arrays(flat, table.vector.shape[1]),
        "label": pa.array(table.label, pa.string()),
        "task": pa.array(table.task, pa.string()),
        "part": pa.array(table.part, pa.string()),
        "path": pa.array(table.path, pa.string()),
    }
    parquet.write_table(pa.table(columns).replace_schema_metadata(dict(table.about)), path)
