"""Files embedded by actors of Ray: killed actors, killed jobs, changed files; and what a user can get wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tripletmas.cli.main import main
from tripletmas.data.images import ImageFiles, find_images
from tripletmas.data.vector_parts import begin_parts, end_parts, plan_parts, read_parts
from tripletmas.integrations.ray import _Embedder, _Job, _tell, embed_files
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.models import embed_images, load_model

JOB = Path(__file__).with_name("ray_job.py")
ROOT = Path(__file__).resolve().parents[2]
COUNT = 1000


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_images) -> Path:
    """A run that has learned images of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("run")
    for number, name in enumerate(("one", "other")):
        write_images(folder / "images" / name, seed=number)
    data = ["--data", "folder", "--data.root", str(folder / "images"), "--data.size", "8", "--data.channels", "1"]
    model = ["--data.tasks", "1", "--model", "mlp", "--model.hidden", "[16]", "--model.dim", "8"]
    out = str(folder / "run")
    train = ["train", "--out", out, "--strategy", "finetune", "--report", "false", "--training.epochs", "1"]
    assert main([*train, *data, *model]) == 0
    return Path(out)


def write_files(folder: Path) -> None:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, 64), generator=random, dtype=torch.uint8)
    for number, each in enumerate(pixels):
        path = folder / f"{number % 3}" / f"{number:04}.pgm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P5 8 8 255\n" + each.numpy().tobytes())


def started(folder: Path, run: Path) -> subprocess.Popen:
    settings = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(JOB), str(folder), str(run)],
            stdout=log,
            stderr=log,
            env={**os.environ, **settings},
            start_new_session=True,
        )


def wait(until: Callable[[], bool], job: subprocess.Popen, folder: Path) -> None:
    limit = time.monotonic() + 240
    while not until():
        assert job.poll() is None and time.monotonic() < limit, (folder / "log").read_text()[-3000:]  # noqa: PT018
        time.sleep(0.02)


def parts_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}


@pytest.mark.slow
def test_a_thousand_files_a_killed_job_and_a_killed_actor(tmp_path: Path, run: Path):
    files, out, actors = tmp_path / "files", tmp_path / "slow", tmp_path / "actors"
    write_files(files)
    (tmp_path / "photos").symlink_to(files)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "shop").symlink_to(run)
    job = started(tmp_path, run)
    wait(lambda: len(parts_in(out)) >= 3, job, tmp_path)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    with pytest.raises(ValueError, match=r"slow does not hold all vectors yet: embed the files again"):
        read_parts(out)
    time.sleep(1)  # its actors end when they notice
    made, before = parts_in(out), set(os.listdir(actors))

    job = started(tmp_path, run)
    wait(lambda: len(parts_in(out)) >= len(made) + 2, job, tmp_path)
    killed = int(min(set(os.listdir(actors)) - before))
    os.kill(killed, signal.SIGKILL)
    wait(lambda: len(set(os.listdir(actors)) - before) >= 3, job, tmp_path)  # another one in its place
    assert job.wait(240) == 0, (tmp_path / "log").read_text()[-3000:]
    done = json.loads((tmp_path / "done.json").read_text())

    # the parts that there were are those that there were, by another process
    present = parts_in(out)
    assert made.keys() <= set(done["first"])
    changed, *parts = done["changed"]
    gone = set(done["first"]) - set(parts)
    assert len(gone) == 1  # that of the file that has changed
    assert {name: present[name] for name in made.keys() - gone} == {n: t for n, t in made.items() if n not in gone}
    assert present.keys() == set(parts)
    found = read_parts(out)
    names = find_images(files)
    names.remove(str(Path(changed).parent.relative_to(files) / "broken.pgm"))  # which came later
    assert list(found.names) == names
    expected = [list((files / name).read_bytes()[-4:]) for name in names]
    assert found.vectors.tolist() == expected

    # by a run's model: the vectors that it gives in one process; what cannot be read is left out
    model = load_model(RunDirectory.open(run), device="cpu")
    vectors, _ = embed_images(model, ImageFiles(files, names, model.prepared))
    found = read_parts(tmp_path / "photos.vectors")
    assert list(found.names) == names
    torch.testing.assert_close(found.vectors, vectors)
    assert done["complaint"] == "3 actors need a CPU each, and Ray has 2: give fewer actors="


def test_an_image_that_cannot_be_read(tmp_path: Path, run: Path, write_images, caplog: pytest.LogCaptureFixture):
    """What an actor says of it, in this process, and what is made of that."""
    files, out = write_images(tmp_path / "files"), tmp_path / "out"
    (files / "broken.png").write_bytes(b"no image")
    for skips in (False, True):
        job = _Job(run, None, None, None, str(files), out, skip_unreadable=skips)
        (part,) = plan_parts(files, texts=False, model=job.identity, part_size=10**9)
        begin_parts(out, files, texts=False, model=job.identity)
        said = _Embedder(job)({"file": part.file, "names": part.names})
        if skips:
            _tell(out, len(part.names), [said])
            assert "skipped 1 of 7 files, which cannot be read" in caplog.text
            assert (out / part.file).exists()
        else:
            message = (
                r"broken.png cannot be read: not an image \(skip_unreadable=True leaves out what cannot be read\)$"
            )
            with pytest.raises(ValueError, match=message):
                _tell(out, len(part.names), [said])
            assert not (out / part.file).exists()


@pytest.mark.slow
def test_texts_by_a_sentence_encoder(tmp_path: Path, tiny_encoder: Path):
    """What an actor does, in this process."""
    texts = {"card/a.txt": "where is my card?", "card/b.txt": "the pin is lost", "parcel/a.txt": "it is late\n"}
    for name, text in texts.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_text(text)
    out = tmp_path / "out"
    job = _Job(tiny_encoder, None, None, None, str(tmp_path / "files"), out, skip_unreadable=False)
    assert job.texts
    parts = plan_parts(job.root, texts=True, model=job.identity, part_size=2)
    begin_parts(out, job.root, texts=True, model=job.identity)
    actor = _Embedder(job)
    assert [actor({"file": part.file, "names": part.names})["error"] for part in parts] == [""] * len(parts)
    end_parts(out, parts)
    found = read_parts(out)
    assert dict(zip(found.names, found.texts, strict=True)) == {name: text.strip() for name, text in texts.items()}

    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_encoder), device="cpu")  # whose vectors are normalised
    expected = torch.from_numpy(model.encode(list(found.texts)))
    torch.testing.assert_close(torch.nn.functional.normalize(found.vectors), expected)


def test_what_a_function_of_ones_own_needs(tmp_path: Path, run: Path, write_images):
    write_images(tmp_path / "files")
    with pytest.raises(ValueError, match="a function of your own needs identity="):
        embed_files(lambda: None, tmp_path / "files", tmp_path / "out")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="identity= and texts= are for a function of your own"):
        embed_files(run, tmp_path / "files", tmp_path / "out", identity="mine")
    with pytest.raises(ValueError, match="no exported model"):
        embed_files(tmp_path / "files", tmp_path / "files", tmp_path / "out")
    with pytest.raises(ValueError, match="no such folder or zip archive"):
        embed_files(run, tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="after= is a task of a run"):
        embed_files(tmp_path / "files", tmp_path / "files", tmp_path / "out", after=0)
    with pytest.raises(ValueError, match="part_size must be >= 1 file, got 0"):
        embed_files(run, tmp_path / "files", tmp_path / "out", part_size=0)


@pytest.mark.parametrize(
    ("gives", "complaint"),
    [
        (lambda paths: [1.0], "your function must give .n, dim. for the paths of n files: for 6 it gave list"),
        (lambda paths: torch.zeros(5, 2), r"for 6 it gave \(5, 2\)"),
        (lambda paths: torch.full((6, 2), torch.nan), "your function gave vectors that are not finite"),
    ],
)
def test_what_a_function_of_ones_own_must_give(tmp_path: Path, write_images, gives: Callable, complaint: str):
    files = str(write_images(tmp_path / "files"))
    job = _Job(lambda: gives, None, "mine", None, files, tmp_path / "out", skip_unreadable=False)
    (part,) = plan_parts(files, texts=False, model="mine", part_size=10**9)
    assert re.search(complaint, _Embedder(job)({"file": part.file, "names": part.names})["error"])
    assert not (tmp_path / "out").exists()


def fails(*given: object):
    raise KeyError("weights")


@pytest.mark.parametrize("make", [fails, lambda: fails])
def test_a_function_of_ones_own_that_fails_is_a_sentence(tmp_path: Path, write_images, make: Callable):
    files = str(write_images(tmp_path / "files"))
    job = _Job(make, None, "mine", None, files, tmp_path / "out", skip_unreadable=False)
    (part,) = plan_parts(files, texts=False, model="mine", part_size=10**9)
    said = _Embedder(job)({"file": part.file, "names": part.names})["error"]
    assert re.fullmatch(r"KeyError: 'weights' \(.*test_ray.py, line \d+\)", said)
