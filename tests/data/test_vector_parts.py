"""Parts of vectors, by name: what is made anew when files change, and what a folder of them is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tripletmas.data.preparation import Preparation
from tripletmas.data.tokens import Tokenizer
from tripletmas.data.vector_parts import (
    Part,
    begin_parts,
    end_parts,
    identity_of,
    plan_parts,
    read_parts,
    write_part,
)
from tripletmas.data.vector_table import write_table


def write_files(folder: Path, count: int = 60, ending: str = ".png") -> Path:
    for number in range(count):
        path = folder / f"{number % 2}" / f"{number}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content {number}")
    return folder


def plan(folder: Path, **options: Any) -> list[Part]:
    return plan_parts(folder, **{"texts": False, "model": "m", "part_size": 5, **options})


def numbers(part: Part) -> Tensor:
    """A vector for each file: its number, and 0."""
    return torch.tensor([[float(Path(name).stem), 0.0] for name in part.names])


def written(out: Path, folder: Path, parts: list[Part], **options: Any) -> None:
    begin_parts(out, folder, **{"texts": False, "model": "m", **options})
    for part in parts:
        write_part(out, part, str(folder), range(len(part.names)), numbers(part), ())
    end_parts(out, parts)


def test_parts_hold_each_file_once_in_order(tmp_path: Path):
    folder = write_files(tmp_path / "files")
    parts = plan(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert [name for part in parts for name in part.names] == names
    assert 4 <= len(parts) <= 30
    assert max(len(part.names) for part in parts) <= 20
    assert parts == plan(folder)
    assert len({part.file for part in parts}) == len(parts)


def test_what_changes_is_in_one_new_part(tmp_path: Path):
    """The contents of a file, its name, a file more, a file less; a file that is only touched changes nothing."""
    folder = write_files(tmp_path / "files")
    before = {part.file for part in plan(folder)}
    one = folder / "1" / "21.png"
    one.touch()
    assert {part.file for part in plan(folder)} == before
    changes = [
        lambda: one.write_text("other content"),
        lambda: (folder / "0" / "new.png").write_text("new"),
        lambda: (folder / "0" / "8.png").unlink(),
        lambda: one.rename(one.with_name("210.png")),  # beside it in the order of names
    ]
    for change in changes:
        change()
        now = {part.file for part in plan(folder)}
        assert 1 <= len(now - before) <= 2  # two where the name of a file that came or went is a part's last one
        before = now
    assert before.isdisjoint(part.file for part in plan(folder, model="another"))


def test_vectors_are_read_in_the_order_of_their_files(tmp_path: Path):
    folder, out = write_files(tmp_path / "files"), tmp_path / "out"
    parts = plan(folder)
    written(out, folder, parts)
    found = read_parts(out)
    assert (found.model, found.root, found.texts) == ("m", str(folder), ())
    assert list(found.names) == [name for part in parts for name in part.names]
    assert found.vectors.tolist() == torch.cat([numbers(part) for part in parts]).tolist()
    assert found.vectors.dtype == torch.float32

    from pyarrow import parquet

    table = parquet.read_table(out / parts[0].file)
    assert table.column_names == ["vector", "label", "path"]
    assert table.column("label")[0].as_py() == "0"
    assert table.column("path")[0].as_py() == str(folder / parts[0].names[0])


@pytest.mark.slow
def test_parts_that_nobody_needs_go_and_other_files_stay(tmp_path: Path):
    folder, out = write_files(tmp_path / "files"), tmp_path / "out"
    written(out, folder, plan(folder))
    (out / "part-0.parquet.part").write_text("of a process that was killed")
    (out / "notes.txt").write_text("mine")
    (folder / "1" / "21.png").write_text("other content")
    parts = plan(folder)
    written(out, folder, parts)
    assert {path.name for path in out.iterdir()} == {"embedding.json", "notes.txt", *(part.file for part in parts)}


def test_texts(tmp_path: Path):
    folder, out = write_files(tmp_path / "files", 6, ".txt"), tmp_path / "out"
    parts = plan(folder, texts=True)
    begin_parts(out, folder, texts=True, model="m")
    for part in parts:
        texts = [(folder / name).read_text() for name in part.names]
        write_part(out, part, str(folder), range(len(part.names)), numbers(part), texts)
    end_parts(out, parts)
    found = read_parts(out)
    assert found.texts == tuple(f"content {Path(name).stem}" for name in found.names)
    with pytest.raises(ValueError, match="no such folder of texts"):
        plan(tmp_path / "files.zip", texts=True)


def test_a_folder_is_of_one_model_and_one_set_of_files(tmp_path: Path):
    folder, out = write_files(tmp_path / "files", 6), tmp_path / "out"
    written(out, folder, plan(folder))
    with pytest.raises(ValueError, match=r"out holds vectors by another model: name another folder"):
        begin_parts(out, folder, texts=False, model="another")
    with pytest.raises(ValueError, match=r"out holds vectors of .*files: name another folder"):
        begin_parts(out, tmp_path, texts=False, model="m")
    with pytest.raises(ValueError, match=r"files is not empty, and holds no vectors of files"):
        begin_parts(folder, folder, texts=False, model="m")


def test_folders_that_cannot_be_read(tmp_path: Path):
    folder, out = write_files(tmp_path / "files", 6), tmp_path / "out"
    with pytest.raises(ValueError, match=r"holds no vectors of files: it has no embedding\.json"):
        read_parts(folder)
    begin_parts(out, folder, texts=False, model="m")
    with pytest.raises(ValueError, match="does not hold all vectors yet"):
        read_parts(out)
    end_parts(out, [])
    with pytest.raises(ValueError, match="holds no vector at all"):
        read_parts(out)
    parts = plan(folder)
    written(out, folder, parts)
    write_table(
        out / parts[0].file, torch.ones(1, 2), {"path": [str(folder / parts[0].names[0])]}, {"model": "another"}
    )
    with pytest.raises(ValueError, match=f"{parts[0].file} cannot be read .its vectors are by another model"):
        read_parts(out)
    (out / parts[0].file).write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(ValueError, match=f"{parts[0].file} cannot be read.*delete it, and embed the files again"):
        read_parts(out)
    (out / "embedding.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ValueError, match=r"embedding.json cannot be read \(it has model\).*embed the files anew"):
        read_parts(out)


def test_who_made_a_vector():
    shown = Preparation((8, 8), 1)
    assert identity_of("abc", shown) == "abc, 8 x 8, grey, bilinear"
    assert identity_of("abc", Tokenizer(lambda texts, cut: [], 3, "words")) == "abc, words"
