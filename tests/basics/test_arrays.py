"""What is read without torch, beside what torch reads of the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tripletmas.basics import weights
from tripletmas.basics.arrays import Unclear, read_sealed, weight_hash
from tripletmas.basics.files import Place, read_tensors, save_tensors
from tripletmas.basics.mapped import DTYPES

PLACE = Place("0123", "weights/task00.safetensors", 2)


def tensors() -> dict[str, torch.Tensor]:
    """One of each type, and one without elements, in an order that is not that of the file."""
    found = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in sorted(DTYPES.items())}
    return {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), **found}


def test_types_shapes_and_bytes_are_those_of_torch(tmp_path):
    save_tensors(tmp_path / "file", tensors(), {"note": {"a": 1}}, PLACE)
    expected, note = read_tensors(tmp_path / "file", "", header="note", place=PLACE)
    found, same_note = read_sealed(tmp_path / "file", header="note", place=PLACE)
    assert note == same_note == {"a": 1}
    assert list(found) == list(expected)
    for name, value in expected.items():
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert found[name] == (str(value.dtype), tuple(value.shape), content)
    assert weight_hash(found) == weights.weight_hash(expected)


def test_what_is_skipped_is_compared_with_its_checksum_all_the_same(tmp_path):
    save_tensors(tmp_path / "file", tensors())
    assert read_sealed(tmp_path / "file", skip=("F32",))[0]["F32"] == ("torch.float32", (2, 3), None)
    content = (tmp_path / "file").read_bytes()
    value = tensors()["F32"].numpy().tobytes()
    (tmp_path / "file").write_bytes(content.replace(value, value[:-1] + b"\x41"))
    with pytest.raises(Unclear):
        read_sealed(tmp_path / "file", skip=("F32",))


@pytest.mark.slow
def test_no_changed_bit_and_no_cut_is_taken(tmp_path):
    """Where torch's way refuses a file, this one does."""
    save_tensors(tmp_path / "file", {"a": torch.arange(3.0), "b": torch.tensor([1, 2])}, {"note": 1}, PLACE)
    content = (tmp_path / "file").read_bytes()
    changed = tmp_path / "changed"
    for at in range(len(content)):
        for other in (content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :], content[:at]):
            changed.write_bytes(other)
            if refused(changed):
                with pytest.raises(Unclear):
                    read_sealed(changed, header="note", place=PLACE)


def refused(path: Path) -> bool:
    try:
        read_tensors(path, "", header="note", place=PLACE)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("place", [PLACE._replace(run="4567"), PLACE._replace(name="b"), PLACE._replace(edition=3)])
def test_another_file_is_unclear(place, tmp_path):
    save_tensors(tmp_path / "file", tensors(), None, PLACE)
    with pytest.raises(Unclear):
        read_sealed(tmp_path / "file", place=place)


def test_files_of_other_programs_and_none_are_unclear(tmp_path):
    from safetensors.torch import save_file

    save_file(tensors(), tmp_path / "other")
    for name in ("other", "none"):
        with pytest.raises(Unclear):
            read_sealed(tmp_path / name)
