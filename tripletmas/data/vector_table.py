"""Vectors as a table for other programs: Parquet, which needs pyarrow, or NumPy's .npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tripletmas.basics.files import atomic_write

ENDINGS = (".parquet", ".npz")


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
