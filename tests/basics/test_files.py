"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from safetensors.torch import load_file

from tripletmas.basics.files import atomic_write, save_tensors


def test_the_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as aside:
        aside.write_text("x")
        assert not path.exists()
    assert path.read_text() == "x"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x")])
def test_after_an_error_the_old_file_is_there_and_nothing_else(error, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with atomic_write(path) as aside:
            aside.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told(number, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(number, "full")

    monkeypatch.setattr(os, "fsync", full)
    message = r"no space left to write .*x\.safetensors; what was saved before is whole"
    with pytest.raises(OSError, match=message) as caught:
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(3)})
    assert caught.value.errno == number
    assert not list(tmp_path.iterdir())


def test_tensors_need_not_be_contiguous(tmp_path):
    value = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "x.safetensors", {"a": value.T}, {"key": "text"})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], value.T)


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "there" / "file.txt")
    with atomic_write(link) as aside:
        aside.write_text("x")
    assert link.is_symlink()
    assert (tmp_path / "there" / "file.txt").read_text() == "x"
    assert [each.name for each in tmp_path.iterdir() if each.is_file() and not each.is_symlink()] == []


def test_the_folder_is_flushed_too_if_it_can_be(tmp_path, monkeypatch):
    flushed, flush = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino) or flush(handle))
    with atomic_write(tmp_path / "file.txt") as aside:
        aside.write_text("x")
    assert flushed == [(tmp_path / "file.txt").stat().st_ino, tmp_path.stat().st_ino]
