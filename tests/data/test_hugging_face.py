"""Folders of Hugging Face's data sets: as `save_to_disk` writes them, and as Parquet."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from tripletmas.data.hugging_face import hf

pa = pytest.importorskip("pyarrow")


def picture(level: int) -> dict:
    content = io.BytesIO()
    Image.new("L", (8, 6), level).save(content, "png")
    return {"bytes": content.getvalue(), "path": None}


def table(columns: dict, names=None, column="label"):
    """With the names of a ClassLabel, as `datasets` keeps them in the schema."""
    made = pa.table(columns)
    if names is None:
        return made
    features = {column: {"names": names, "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path, content):
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path)


def write_saved(folder, content):
    """As `save_to_disk` writes a split: in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    half = len(content) // 2
    files = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, part in zip(files, (content.slice(0, half), content.slice(half)), strict=True):
        with pa.ipc.new_stream(str(folder / name), content.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))


def test_texts_in_parquet(tmp_path, caplog):
    write_parquet(
        tmp_path / "data/train-00000-of-00001.parquet", table({"text": ["b", " a "], "label": [1, 0]}, ["x", "y"])
    )
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", table({"text": ["c"], "label": [1]}, ["x", "y"]))
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", table({"text": ["d"], "label": [1]}, ["x", "y"]))
    source = hf(root=str(tmp_path), text="text")
    assert source.train.texts == ("b", "a")
    assert [source.train.class_names[label] for label in source.train.labels.tolist()] == ["y", "x"]
    assert source.test is not None
    assert source.test.texts == ("c",)
    assert source.test.paths == (f"{tmp_path}, test row 0",)
    assert "left out validation" in caplog.text


def test_images_that_were_saved(tmp_path):
    for split, levels in (("train", [0, 51, 102]), ("test", [255, 204])):
        write_saved(tmp_path / split, table({"image": [picture(level) for level in levels], "label": levels}))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = hf(root=str(tmp_path), size=4, channels=1)
    assert source.train.sample_shape == (1, 4, 4)
    assert source.train[[0, 1, 2]][0].amax(dim=(1, 2, 3)).tolist() == pytest.approx([0, 0.2, 0.4])
    assert source.test is not None
    assert source.test[[1, 0]][0].amin(dim=(1, 2, 3)).tolist() == pytest.approx([0.8, 1])
    assert source.train.class_names == ("0", "51", "102", "204", "255")


def test_pairs(tmp_path):
    write_saved(tmp_path, table({"q": ["a", "b"], "a": ["x", "y"]}))
    assert hf(root=str(tmp_path), text="q", positive="a").train.texts == ("x", "a", "y", "b")


def test_what_is_wrong_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        hf(root=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="is no data set that can be read"):
        hf(root=str(tmp_path))
    write_parquet(tmp_path / "train.parquet", table({"text": ["a", None], "label": [1, 0]}))
    with pytest.raises(ValueError, match=r"train row 1: the cell in the column 'text' is empty"):
        hf(root=str(tmp_path), text="text")
    with pytest.raises(ValueError, match=r"no column 'txt' \(did you mean 'text'\?\) \(there are text, label\)"):
        hf(root=str(tmp_path), text="txt")
    with pytest.raises(ValueError, match="holds string, no images: name texts with text"):
        hf(root=str(tmp_path), image="text")
    with pytest.raises(ValueError, match="positive is for texts"):
        hf(root=str(tmp_path), positive="text")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read"):
        hf(root=str(tmp_path), text="text")
    (tmp_path / "train.parquet").unlink()
    broken = {"image": [{"bytes": b"no image", "path": None}], "label": [1]}
    write_parquet(tmp_path / "train.parquet", table(broken))
    with pytest.raises(ValueError, match=r"the image of .* train row 0 cannot be read"):
        hf(root=str(tmp_path)).train[0]


def test_what_the_library_saves_is_read(tmp_path):
    """`datasets` comes with sentence-transformers."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    made.select([2, 0]).save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "parquet" / "train.parquet")
    assert hf(root=str(tmp_path / "saved"), text="text").train.texts == ("c", "a")
    read = hf(root=str(tmp_path / "parquet"), text="text").train
    assert read.texts == ("a", "b", "c")
    assert read.class_names == ("x", "y")
