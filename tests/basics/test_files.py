"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import json
import os
import re
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from tripletmas.basics.files import (
    Place,
    append_text,
    atomic_write,
    edition_of,
    read_json,
    read_tensors,
    save_json,
    save_tensors,
    save_text,
)


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


def test_a_folder_of_somebody_else_is_not_removed(tmp_path):
    """It is called like what is written aside."""
    mine = tmp_path / "x.json.part" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(OSError, match=r"x\.json\.part is a folder and in the way of what is written: move it away"):
        save_json(tmp_path / "x.json", {})
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_the_umask_or_of_what_was_there(umask, tmp_path):
    """And nothing is left of finding them out, whenever it is stopped: only the one path aside is ever there."""
    before, seen = os.umask(umask), []
    try:
        for folder in (False, True):
            with atomic_write(tmp_path / "x" / str(folder), folder=folder) as aside:
                seen += [each.name for each in aside.parent.iterdir() if each.suffix == ".part"]
                (aside / "y" if folder else aside).write_text("x")
        made = [tmp_path / "x" / "False", tmp_path / "x" / "True" / "y"]
        assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o666 & ~umask] * 2
        made[0].chmod(0o640)
        with atomic_write(made[0]) as aside:
            aside.write_text("y")
        assert stat.S_IMODE(made[0].stat().st_mode) == 0o640
    finally:
        os.umask(before)
    assert seen == ["False.part", "True.part"]


# --- seals

TENSORS = {
    "z": torch.tensor([1.5, -2.0]).bfloat16(),
    "a": torch.tensor(True),
    "m": torch.empty(0, 3),
    "c": torch.tensor([1 + 2j]),
    "i": torch.tensor([[1, 2], [3, 4]]).t(),
}
PLACE = Place("run", "weights/x", 2)


def test_tensors_of_all_kinds_come_back_in_their_order(tmp_path):
    path = tmp_path / "x"
    save_tensors(path, TENSORS, {"about": {"b": [1, None], "a": "ü"}}, PLACE)
    found, about = read_tensors(path, "restore it", header="about", place=PLACE)
    assert list(found) == list(TENSORS)
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    assert about == {"b": [1, None], "a": "ü"}
    assert read_tensors(path, "", header="other")[1] is None
    assert edition_of(path) == 2
    save_tensors(tmp_path / "y", TENSORS)
    assert edition_of(tmp_path / "y") == 0
    again = tmp_path / "again"
    save_tensors(again, TENSORS, {"about": {"b": [1, None], "a": "ü"}}, PLACE)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (Place("other", "weights/x", 2), "it belongs to another run"),
        (Place("run", "weights/y", 2), "it is another file of the run, weights/x"),
        (Place("run", "weights/x", 3), "it is older than the run's other files"),
        (Place("run", "weights/x", 1), None),  # a later edition: its writer was killed before it said so
    ],
)
def test_a_file_must_be_the_one_that_is_expected(expected, message, tmp_path):
    save_tensors(tmp_path / "x", TENSORS, place=PLACE)
    save_json(tmp_path / "y", {"a": 1}, PLACE)
    for read, name in ((read_tensors, "x"), (read_json, "y")):
        if message is None:
            assert read(tmp_path / name, "restore it", place=expected)
            continue
        with pytest.raises(ValueError, match=rf"{name} cannot be read .{message}.: .*; restore it"):
            read(tmp_path / name, "restore it", place=expected)


def test_a_file_without_a_seal_is_taken_where_none_is_expected(tmp_path):
    save_file({"b": torch.ones(2), "a": torch.zeros(2)}, tmp_path / "x", {"format": "pt"})
    (tmp_path / "y").write_text("[1, 2]")
    assert list(read_tensors(tmp_path / "x", "")[0]) == ["a", "b"]
    assert read_json(tmp_path / "y", "") == [1, 2]
    for read, name in ((read_tensors, "x"), (read_json, "y")):
        with pytest.raises(ValueError, match="it bears no checksum"):
            read(tmp_path / name, "", place=PLACE)
    assert [edition_of(tmp_path / name) for name in ("x", "y", "none")] == [None] * 3


@pytest.mark.parametrize("verify", [False, True])
def test_a_header_is_verified_in_any_case(verify, tmp_path):
    path = tmp_path / "x"
    save_tensors(path, {"a": torch.ones(3)}, {"about": "text"})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"text", b"tesst"[:4]))
    with pytest.raises(ValueError, match="the checksum of its header is wrong"):
        read_tensors(path, "", verify=verify)
    path.write_bytes(whole[:-1] + b"x")
    if verify:
        with pytest.raises(ValueError, match="its checksum is wrong"):
            read_tensors(path, "")
    else:
        assert len(read_tensors(path, "", verify=False)[0]) == 1


@pytest.mark.parametrize("content", [{"b": 1, "a": [None, 0.1]}, [1, {"x": 2}], "text", 7])
def test_json_comes_back_and_a_change_is_noticed(content, tmp_path):
    path = tmp_path / "x.json"
    save_json(path, content, PLACE)
    assert read_json(path, "", PLACE) == read_json(path, "") == content
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "more": 1}))
    with pytest.raises(ValueError, match="its checksum is wrong"):
        read_json(path, "")


@pytest.mark.parametrize("seal", [None, 5, [], ["run", "x", 0], ["run", "x", "0", "00000000"], {"run": "x"}])
def test_a_seal_of_another_shape_is_no_seal(seal, tmp_path):
    (tmp_path / "x").write_text(json.dumps({"a": 1, "seal": seal}))
    with pytest.raises(ValueError, match="its checksum is wrong"):
        read_json(tmp_path / "x", "")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff", '{"a": 1'])
def test_what_is_no_json_is_one_sentence(text, tmp_path):
    (tmp_path / "x").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/x cannot be read \(.*; train anew$"):
        read_json(tmp_path / "x", "train anew")


def test_what_is_appended_is_on_the_disk(tmp_path, monkeypatch):
    flushed, flush = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino) or flush(handle))
    path = tmp_path / "x"
    append_text(path, "a\n")
    append_text(path, "b\n")
    assert path.read_bytes() == b"a\nb\n"
    assert flushed == [path.stat().st_ino, tmp_path.stat().st_ino, path.stat().st_ino]


def test_tensors_need_not_be_contiguous(tmp_path):
    value = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "x.safetensors", {"a": value.T}, {"key": "text"})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], value.T)


def test_no_file_takes_the_place_of_a_pipe_or_a_device(tmp_path):
    """As /dev/null is one, which root can replace."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match=f"{name} is no file on a disk, but a device or a pipe: name a file"):
            save_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_folder_below_a_file_is_not_made(tmp_path):
    (tmp_path / "notes").write_text("of mine")
    with pytest.raises(ValueError, match="notes is a file, and a folder is to be made there: name another place"):
        save_text(tmp_path / "notes" / "run" / "x", "text")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (lambda: read_json(tmp_path / "pipe", "-"), lambda: read_tensors(tmp_path / "pipe", "-", header="x")):
        with pytest.raises(ValueError, match=r"pipe cannot be read \(it is no regular file\)"):
            read()


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
