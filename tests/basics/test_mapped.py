"""Tensors that are used where they lie in a file, and files that are written block after block."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tripletmas.basics import files, mapped
from tripletmas.basics.files import Place, read_tensors, save_tensors
from tripletmas.basics.mapped import blocks, is_mapped, mapped_tensors, release
from tripletmas.basics.tensor_stream import Room, stream_tensors

TENSORS = {
    "vectors": torch.arange(12.0).reshape(3, 4),
    "ids": torch.arange(3),
    "part": torch.zeros(3, dtype=torch.int32),
    "a": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "none": torch.empty(0, dtype=torch.uint8),
    "half": torch.ones(1, dtype=torch.float16),
    "brain": torch.ones(3, dtype=torch.bfloat16),
    "double": torch.ones(1, 1, dtype=torch.float64),
    "bool": torch.tensor([True, False]),
    "short": torch.ones(2, dtype=torch.int16),
    "byte": torch.ones(2, dtype=torch.int8),
    "scalar": torch.tensor(3.5),
}
HEADER = {"what": {"name": 'quoted " Ü\n', "number": 3}}


@pytest.mark.parametrize("place", [None, Place("run", "name", 3)])
def test_a_file_that_is_filled_in_is_the_same_to_the_byte(place, tmp_path):
    save_tensors(tmp_path / "whole", TENSORS, HEADER, place)
    names = ("vectors", "a", "none")
    with_room = {name: Room(value.dtype, tuple(value.shape)) for name, value in TENSORS.items() if name in names}

    def fill(places):
        assert places.keys() == set(names)
        places["vectors"].write(32, TENSORS["vectors"][2:])  # 8 cells of 4 bytes before
        places["vectors"].write(0, TENSORS["vectors"][:2])
        assert places["vectors"].read(16, 8).view(torch.float32).tolist() == [4.0, 5.0]
        places["a"].write(0, TENSORS["a"])

    stream_tensors(tmp_path / "streamed", {**TENSORS, **with_room}, HEADER, place, fill=fill)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("large", [True, False])
def test_both_ways_to_map_a_file_give_the_same(large, tmp_path):
    save_tensors(tmp_path / "file", TENSORS, HEADER)
    found, header = read_tensors(tmp_path / "file", "mend it", header="what", large=large)
    assert header == HEADER["what"]
    assert list(found) == list(TENSORS)
    for name, value in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value)


def test_a_file_of_another_program_without_alignment(tmp_path):
    text = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    text += b" " * (3 - len(text) % 8 % 3)
    content = torch.tensor([1.5, 2.5]).numpy().tobytes()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + content)
    assert mapped_tensors(tmp_path / "file")[1]["x"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "no header"),
        (b"[]", "no attribute|pop"),
        (b'{"x": 3}', "mapping"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 3]}}', "do not fit its shape"),
        (b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', "4 bytes of tensors in place of 8"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "one after the other"),
        (b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}', "a shape or a place that is none"),
        (b'{"x": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4.0]}}', "a shape or a place that is none"),
        (b'{"x": {"dtype": "C64", "shape": [1], "data_offsets": [0, 4]}}', "of type C64"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "y": 1}}', "unexpected keyword"),
        (b'{"__metadata__": {"a": 1}, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "than texts"),
    ],
)
def test_a_header_that_does_not_fit_is_one_sentence(header, message, tmp_path):
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(ValueError, match=f"file cannot be read .*({message}).*mend it"):
        read_tensors(tmp_path / "file", "mend it", large=True)


def test_a_file_that_is_larger_than_the_memory(tmp_path):
    """2 TiB without content, of which a row is read; safetensors itself does not map it."""
    rows = 2**30
    text = json.dumps({"x": {"dtype": "F32", "shape": [rows, 512], "data_offsets": [0, rows * 2048]}}).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "file"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    try:
        with open(path, "rb+") as file:
            file.truncate(8 + len(text) + rows * 2048)
            file.seek(8 + len(text) + 2048 * 12345)
            file.write(torch.ones(512).numpy().tobytes())
    except OSError:
        pytest.skip("this file system has no files so large")
    try:
        vectors = mapped_tensors(path)[1]["x"]
    finally:
        path.unlink()
    assert vectors.shape == (rows, 512)
    assert vectors[12344:12347].sum(dim=1).tolist() == [0.0, 512.0, 0.0]


def resident() -> float:
    """MiB of mapped files that are in memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("resident memory is read from /proc")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssFile", "RssShmem")) / 1024


@pytest.mark.slow
def test_what_was_read_is_given_back_and_read_again(tmp_path, monkeypatch):
    """32 MiB in blocks of 1 MiB: at most a few of them are in memory, and each is right, also the second time."""
    monkeypatch.setattr(mapped, "BLOCK", 2**20)
    x = torch.randn(2**17, 64, generator=torch.Generator().manual_seed(0))
    save_file({"x": x}, tmp_path / "file")
    found = mapped_tensors(tmp_path / "file")[1]["x"]
    assert is_mapped(found)
    assert is_mapped(found[5:])
    assert not is_mapped(x)
    before, most, total = resident(), 0.0, 0.0
    for block in blocks(found):
        total += float(block.double().sum())
        most = max(most, resident() - before)
    assert total == pytest.approx(float(x.double().sum()))
    assert most < 8
    assert torch.equal(found, x)
    assert resident() - before > 24
    release(found[2**16 :])
    assert torch.equal(found, x)
    release(found)
    assert resident() - before < 8
    release(x)  # what is not mapped stays
    assert torch.equal(found, x)


def test_a_tensor_that_is_changed_does_not_change_the_file(tmp_path):
    save_file({"x": torch.zeros(4)}, tmp_path / "file")
    found = mapped_tensors(tmp_path / "file")[1]["x"]
    found += 1
    assert found.tolist() == [1.0] * 4
    assert mapped_tensors(tmp_path / "file")[1]["x"].tolist() == [0.0] * 4


def test_a_disk_that_is_full_while_a_file_is_filled_in_leaves_the_old_one(tmp_path):
    resource = pytest.importorskip("resource")
    save_tensors(tmp_path / "file", TENSORS)
    before = (tmp_path / "file").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            stream_tensors(tmp_path / "file", {"x": Room(torch.float32, (1000,))}, fill=lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "file").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert files.read_tensors(tmp_path / "file", "mend it")[0].keys() == TENSORS.keys()
