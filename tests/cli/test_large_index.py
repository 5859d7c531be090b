"""Indexes that are built part by part, and such whose lists stay on the disk, by the command line."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from commands import SMALL

from tripletmas.basics import mapped, progress
from tripletmas.cli.main import main
from tripletmas.index import file as index_file
from tripletmas.index.images import ImageIndex
from tripletmas.runs import embedded_parts
from tripletmas.runs import models as run_models


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_images) -> Path:
    """A run that embeds four at once, and images of three classes."""
    folder = tmp_path_factory.mktemp("large")
    options = [*SMALL, "--training.eval_batch_size", "4", "--report", "false"]
    assert main(["train", "--strategy", "mas", *options, "--out", str(folder / "run")]) == 0
    for number, name in enumerate("abc"):
        write_images(folder / "images" / name, count=10, seed=number)
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch) -> Path:
    shutil.copytree(trained / "images", tmp_path / "images")
    (tmp_path / "run").symlink_to(trained / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parts(monkeypatch):
    """Eight images a part."""
    monkeypatch.setattr(embedded_parts, "PART", 8)


BUILD = ("index", "build", "run", "--images", "images")


def whole(call, out: str, *options: object) -> bytes:
    """The index that is built at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded_parts, "PART", 2048)
        assert call(*BUILD, "--out", out, *options)[0] == 0
    return Path(out).read_bytes()


def counting(embed: Callable, counted: list[int]) -> Callable:
    """The same, which notes how many it embeds."""

    def count(model, dataset, **options):
        counted.append(len(dataset))
        return embed(model, dataset, **options)

    return count


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [(), ("--kind", "IVF2,Flat", "--on-disk"), ("--kind", "IVF2,Flat"), ("--kind", "HNSW4")]
)
def test_an_index_built_in_parts_is_the_same_file(options, place, call, parts):
    expected = whole(call, "whole.index", *options)
    status, printed, complaint = call(*BUILD, "--out", "parts.index", *options)
    assert (status, complaint) == (0, "")
    assert printed == "parts.index: 30 vectors of dim 8 by run after task 2\n"
    assert Path("parts.index").read_bytes() == expected
    assert not Path("parts.index.parts").exists()
    os.rename("images/a", "images/d")  # ten more, in two parts
    for name, part in (("whole.index", 2048), ("parts.index", 8)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedded_parts, "PART", part)
            status, printed, _ = call("index", "add", name, "--images", "images")
        assert (status, "10 vectors added" in printed) == (0, True)
    assert Path("parts.index").read_bytes() == Path("whole.index").read_bytes()
    assert not Path("parts.index.parts").exists()


@pytest.mark.slow
def test_what_was_embedded_is_not_embedded_again(place, call, parts, monkeypatch):
    """Killed after any number of parts: those that are there are kept, and the file is the same at the end."""
    expected, embed = whole(call, "whole.index"), run_models.embed_shared
    for survived in range(4):  # parts of 8, 8, 8 and 6
        done = []

        def dying(model, dataset, *, survived=survived, done=done, **options):
            if len(done) == survived:
                raise KeyboardInterrupt
            done.append(len(dataset))
            return embed(model, dataset, **options)

        monkeypatch.setattr(run_models, "embed_shared", dying)
        with suppress(KeyboardInterrupt):  # or the command line tells of it
            assert call(*BUILD, "--out", "parts.index")[0] != 0
        assert len(list(Path().glob("parts.index.parts/*.safetensors"))) == survived
        assert not Path("parts.index").exists()
        counted: list[int] = []
        monkeypatch.setattr(run_models, "embed_shared", counting(embed, counted))
        status, printed, complaint = call(*BUILD, "--out", "parts.index")
        assert (status, complaint) == (0, "")
        assert done + counted == [8, 8, 8, 6]
        assert (f"{survived} of 4 parts were embedded already" in printed) == (survived > 0)
        assert Path("parts.index").read_bytes() == expected
        Path("parts.index").unlink()


@pytest.mark.slow
def test_parts_of_other_images_or_damaged_ones_are_made_anew(place, call, parts, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageIndex, "save", _fails)
        assert call(*BUILD, "--out", "parts.index")[0] == 2
    files = sorted(Path("parts.index.parts").iterdir())
    assert len(files) == 4
    content = bytearray(files[0].read_bytes())
    content[-3] ^= 64
    files[0].write_bytes(content)
    os.utime("images/c/9.png", ns=(0, 0))  # of the last part
    counted: list[int] = []
    monkeypatch.setattr(run_models, "embed_shared", counting(run_models.embed_shared, counted))
    status, printed, _ = call(*BUILD, "--out", "parts.index")
    assert status == 0
    # the first by name may be the one of the image that was touched
    again = "2 of 4" if len(counted) == 2 else "3 of 4"
    assert len(counted) in (1, 2)
    assert f"{again} parts were embedded already" in printed
    assert Path("parts.index").read_bytes() == whole(call, "whole.index")


def _fails(*_: object, **__: object) -> None:
    raise ValueError("no")


@pytest.mark.slow
def test_images_that_cannot_be_read_in_parts(place, call, parts, caplog):
    for name in ("a/1.png", "c/4.png"):
        Path("images", name).write_bytes(b"no image")
    status, _, complaint = call(*BUILD, "--out", "parts.index")
    assert status != 0
    assert "images/a/1.png" in complaint
    assert "(--skip-unreadable leaves out what cannot be read)" in complaint
    expected = whole(call, "whole.index", "--skip-unreadable")
    caplog.clear()
    status, printed, _ = call(*BUILD, "--out", "parts.index", "--skip-unreadable")
    assert (status, "28 vectors" in printed) == (0, True)
    assert [each.getMessage() for each in caplog.records if "skipped" in each.getMessage()] != []
    assert Path("parts.index").read_bytes() == expected
    Path("parts.index").unlink()
    with pytest.MonkeyPatch.context() as patch:  # parts with unreadable images are there, and not asked to be left out
        patch.setattr(ImageIndex, "save", _fails)
        call(*BUILD, "--out", "parts.index", "--skip-unreadable")
    status, _, complaint = call(*BUILD, "--out", "parts.index")
    assert (status != 0, "leaves out what cannot be read" in complaint) == (True, True)
    for each in Path("images").glob("*/*.png"):
        each.write_bytes(b"no image")
    status, _, complaint = call(*BUILD, "--out", "none.index", "--skip-unreadable")
    assert (status != 0, "no image can be read; the first: " in complaint) == (True, True)


@pytest.mark.slow
def test_a_collapse_is_told_of_parts(place, call, parts, monkeypatch):
    embed = run_models.embed_shared

    def one(*given, **options):
        found = embed(*given, **options)
        found.vectors[:] = 1.0
        return found

    monkeypatch.setattr(run_models, "embed_shared", one)
    status, _, complaint = call(*BUILD, "--out", "parts.index")
    assert (status != 0, "it has collapsed" in complaint) == (True, True)
    monkeypatch.setattr(run_models, "embed_shared", _fails)  # what is embedded stays
    assert call(*BUILD, "--out", "parts.index", "--force")[0] == 0


@pytest.mark.slow
def test_texts_in_parts(place, call, parts):
    """By a run on images: a text is refused before anything is embedded."""
    Path("t.csv").write_text("text\n" + "".join(f"number {each}\n" for each in range(30)))
    status, _, complaint = call("index", "build", "run", "--csv", "t.csv", "--text", "text", "--out", "t.index")
    assert (status != 0, "can read no texts" in complaint) == (True, True)
    assert not Path("t.index.parts").exists()


@pytest.mark.slow
def test_progress_is_told_where_no_terminal_is(place, call, parts, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", -math.inf)
    monkeypatch.setattr(mapped, "BLOCK", 256)
    monkeypatch.setattr(index_file, "BLOCK", 256)
    status, _, said = call(*BUILD, "--out", "parts.index", "--kind", "IVF2,Flat", "--on-disk")
    assert status == 0
    for line in ("in all, embedded 16 of 30", "vectors stored 16 of 30", "vectors put into lists 16 of 30"):
        assert line in said
    status, _, said = call("index", "remove", "parts.index", "images/a/3.png")
    assert (status, "vectors stored 16 of 29" in said or "vectors stored 15 of 29" in said) == (0, True)


@pytest.mark.slow
def test_lists_on_the_disk_by_the_command_line(place, call):
    """Built, told of, asked, removed from, added to, moved and embedded anew; the same that lists in memory find."""
    for name, options in (("disk.index", ["--on-disk"]), ("memory.index", [])):
        ivf = ["--kind", "IVF4,Flat", "--nprobe", "4"]
        assert call(*BUILD, "--after", 0, "--out", name, *ivf, *options)[0] == 0
    assert "IVF4,Flat, nprobe 4, its lists on the disk" in " ".join(call("index", "info", "disk.index")[1].split())

    def same(*line: str) -> None:
        found = []
        for name in ("disk.index", "memory.index"):
            status, _, complaint = call(*(name if word == "INDEX" else word for word in line))
            assert status == 0, complaint
            asked = call("query", name, "images/b/1.png", "--k", 5, "--after", 0, "--allow-stale", "--jsonl", "-")
            assert asked[0] == 0, asked[2]
            found.append([each.split(",")[0] for each in asked[1].split('"path": ')])
            ids = ImageIndex.open(name).ids
        assert found[0] == found[1]
        assert len(ids)

    same("index", "info", "INDEX")
    same("index", "remove", "INDEX", "images/a/3.png", "images/b/7.png")
    same("index", "add", "INDEX", "--images", "images")
    same("index", "refresh", "INDEX", "--compensate", "linear")
    same("index", "refresh", "INDEX", "--reembed")
    assert ImageIndex.open("disk.index").settings.on_disk
    status, _, complaint = call(*BUILD, "--out", "no.index", "--on-disk")
    assert (status != 0, "the kind 'exact' has none: choose such a --kind" in complaint) == (True, True)
    status, _, complaint = call(*BUILD, "--out", "no.index", "--kind", "IVF64,Flat", "--on-disk")
    assert (status != 0, "30 vectors cannot train the index" in complaint) == (True, True)
    assert not Path("no.index").exists()


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(place, call):
    """By the system, not by an exception, as soon as some parts are there."""
    expected = whole(call, "whole.index")
    code = "import sys; from tripletmas.runs import embedded_parts; from tripletmas.cli.main import main\n"
    code += "embedded_parts.PART = 4; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, *BUILD, "--out", "parts.index"]
    kills = 0
    for _ in range(20):
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            had = len(list(Path().glob("parts.index.parts/*.safetensors")))
            while child.poll() is None:
                if len(list(Path().glob("parts.index.parts/*.safetensors"))) > had + 2:
                    os.kill(child.pid, signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.001)
            child.communicate()
        if child.returncode == 0:
            break
    assert kills > 0
    assert Path("parts.index").read_bytes() == expected
    assert not Path("parts.index.parts").exists()
    assert torch.equal(ImageIndex.open("parts.index").vectors, ImageIndex.open("whole.index").vectors)
