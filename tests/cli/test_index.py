"""The commands index, query and export, end to end, on a small run of two tasks."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import failed, write_config
from PIL import Image

from tripletmas.basics.weights import state_of, weight_hash
from tripletmas.cli.main import main
from tripletmas.data.images import ImageFiles
from tripletmas.data.vector_parts import begin_parts, end_parts, identity_of, plan_parts, write_part
from tripletmas.index import drift
from tripletmas.index.base import unit
from tripletmas.index.choice import choose_drift
from tripletmas.index.drift import fit_drift
from tripletmas.index.file import locked
from tripletmas.index.images import ImageIndex
from tripletmas.models.embedding import embed
from tripletmas.runs import drifts
from tripletmas.runs import models as run_models
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import load_trained
from tripletmas.runs.models import weight_hashes

CLASSES = {"a": ("a/x", "a/y"), "b": ("b/x", "b/y")}  # task -> classes


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_images) -> Path:
    """A folder with `images` of two tasks, and the run `run` that learned them."""
    folder = tmp_path_factory.mktemp("trained")
    for number, name in enumerate(name for names in CLASSES.values() for name in names):
        write_images(folder / "images" / name, seed=number)
    data = ["--data", "folder", "--data.root", str(folder / "images"), "--data.size", "8", "--data.channels", "1"]
    model = ["--model", "mlp", "--model.hidden", "[16]", "--model.dim", "8", "--training.epochs", "3"]
    run = str(folder / "run")
    assert main(["train", "--out", run, "--strategy", "finetune", "--report", "false", *data, *model]) == 0
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch) -> Path:
    """A copy to be changed, which is the working directory, with `old.index`: task a's images by the first model."""
    copied = Path(shutil.copytree(trained, tmp_path / "copied"))
    monkeypatch.chdir(copied)
    config = (copied / "run" / "config.yaml").read_text().replace(str(trained), str(copied))
    write_config(copied / "run", config)
    assert main(["index", "build", "run", "--images", "images/a", "--out", "old.index", "--after", "0"]) == 0
    return copied


def embedded(run: str, after: int, part: str = "train") -> dict[str, torch.Tensor]:
    """path -> unit vector of the samples of all tasks, by the model after a task."""
    experiment, _ = load_trained(RunDirectory.open(run), after)
    found = {}
    for task in experiment.stream:
        for dataset in (task.train.plain(), task.query):
            vectors = unit(embed(experiment.model, dataset).vectors)
            found |= {Path(path).as_posix(): vector for path, vector in zip(dataset.paths or (), vectors, strict=True)}
    return found


def rows_of(index: ImageIndex, found: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([found[path] for path in index.paths])


def below(index: ImageIndex, place: Path) -> tuple[str, ...]:
    """The paths of an index below the working directory; all are absolute."""
    return tuple(Path(path).relative_to(place).as_posix() for path in index.paths)


# --- build


@pytest.mark.slow
def test_build_embeds_the_images_of_a_folder(place, call):
    status, text, complaint = call("index", "build", "run", "--images", "images", "--out", "new/new.index")
    assert (status, complaint) == (0, "")
    assert "new/new.index: 24 vectors of dim 8 by run after task 1" in text
    index = ImageIndex.open("new/new.index")
    assert (index.paths[0], index.run) == (str(place / "images/a/x/0.png"), str(place / "run"))
    assert [index.label_of(row) for row in (0, 6, 12, 18)] == ["a/x", "a/y", "b/x", "b/y"]
    assert torch.allclose(index.vectors, rows_of(index, embedded("run", 1)), atol=1e-6)
    part = index.parts[0]
    experiment, _ = load_trained(RunDirectory.open("run"))
    assert (
        part.model == part.moved_to == weight_hash(state_of(experiment.model)) == weight_hashes(RunDirectory("run"))[1]
    )
    old = ImageIndex.open("old.index")
    assert torch.allclose(old.vectors, rows_of(old, embedded("run", 0)), atol=1e-6)
    assert old.parts[0].after_task == 0


@pytest.mark.slow
def test_an_image_at_the_top_has_no_label_and_split_folders_are_no_label(place, call):
    shutil.copy("images/a/x/0.png", "images/top.png")
    assert call("index", "build", "run", "--images", "images", "--out", "new.index")[0] == 0
    index = ImageIndex.open("new.index")
    assert [index.label_of(below(index, place).index(path)) for path in ("images/top.png", "images/a/x/0.png")] == [
        None,
        "a/x",
    ]
    for name in ("train/x", "test/x", "val/y"):
        shutil.copytree("images/a/x", f"split/{name}")
    assert call("index", "build", "run", "--images", "split", "--out", "split.index")[0] == 0
    assert ImageIndex.open("split.index").class_names == ("x", "y")


def collapse(run: str, left: float = 1e-8) -> None:
    """The last layer gives every image the same vector, but for what is left of its differences, in float32."""
    directory = RunDirectory(run)
    weights = directory.weights.read(1)
    last = list(weights)[-2:]
    changed = {last[0]: weights[last[0]] * left, last[1]: torch.ones_like(weights[last[1]])}
    directory.weights.write(1, {name: value.clone() for name, value in (weights | changed).items()})


@pytest.mark.slow
def test_an_embedding_that_has_collapsed_is_refused(place, call):
    """Every score would be 1.000000: what is told of it is not that the images are alike."""
    shutil.copytree("run", "collapsed")
    collapse("collapsed")
    message = r"gives \d+ images one and the same vector: it has collapsed, .*; --force goes on all the same$"
    build = ("index", "build", "collapsed", "--images", "images", "--out", "new.index")
    add = ("index", "add", "old.index", "--images", "images/b", "--run", "collapsed")
    reembed = ("index", "refresh", "old.index", "--reembed", "--run", "collapsed")
    for command in (build, (*build, "--no-normalize"), (*build, "--metric", "l2", "--kind", "HNSW8"), add, reembed):
        failed(call(*command), message)
    assert not Path("new.index").exists()
    assert call(*build, "--force")[0] == 0
    query = ("query", "new.index", "images/a/x/0.png")
    failed(call(*query), message.replace("gives", "new.index: the model after task 1 gives"))
    status, text, _ = call(*query, "--force")
    assert (status, text.count("1.000000")) == (0, 10)
    os.rename("images/a", "images/c")  # nor where the images are gone
    failed(call("query", "new.index", "images/b/x/0.png"), message)
    os.rename("images/c", "images/a")
    for command in (add, reembed):
        assert call(*command, "--force")[0] == 0
    failed(call("query", "old.index", "images/a/x/0.png", "--run", "collapsed"), message)


@pytest.mark.slow
def test_an_embedding_that_has_nearly_collapsed_is_refused(place, call):
    """What is left of the differences is a thousandth: scores differ in the sixth digit. Two images may be as near."""
    shutil.copytree("run", "nearly")
    collapse("nearly", 1e-2)
    build = ("index", "build", "nearly", "--images", "images", "--out", "new.index")
    message = r"gives \d+ images nearly one and the same vector: it has collapsed, .*; --force goes on all the same$"
    failed(call(*build), message)
    assert call(*build, "--force")[0] == 0
    failed(call("query", "new.index", "images/a/x/0.png"), message)
    Path("one/class").mkdir(parents=True)
    for number, path in enumerate(sorted(Path("images/a").rglob("*.png"))):
        shutil.copy(path, f"one/class/{number}.png")
    assert number >= 10
    assert call("index", "build", "nearly", "--images", "one", "--out", "one.index")[0] == 0, "one class may be as near"


@pytest.mark.slow
def test_copies_of_one_image_are_no_collapse(place, call):
    """Nor is a single image."""
    for number in range(3):
        Path("copies").mkdir(exist_ok=True)
        shutil.copy("images/a/x/0.png", f"copies/{number}.png")
        assert call("index", "build", "run", "--images", "copies", "--out", f"{number}.index")[0] == 0
        assert call("query", f"{number}.index", "images/a/x/0.png")[0] == 0


def test_build_does_not_read_the_training_data_where_the_size_is_configured(place, call, monkeypatch):
    monkeypatch.setattr(run_models, "load_trained", None)
    assert call("index", "build", "run", "--images", "images/a", "--out", "new.index")[0] == 0


@pytest.mark.slow
def test_build_for_data_of_a_size_of_their_own(place, call):
    """digits have one size, which no configuration says."""
    small = ("--model.hidden", "[16]", "--data.tasks", "2", "--training.epochs", "1", "--report", "false")
    assert call("train", "--out", "digits", *small)[0] == 0
    assert call("index", "build", "digits", "--images", "images/a", "--out", "plain.index")[0] == 0
    assert call("index", "build", "digits", "--images", "images/a", "--out", "inverted.index", "--invert")[0] == 0
    plain, inverted = (ImageIndex.open(f"{name}.index") for name in ("plain", "inverted"))
    assert (plain.settings.transform.size, inverted.settings.transform.invert) == ((8, 8), True)
    assert not torch.allclose(plain.vectors, inverted.vectors)
    assert call("query", "inverted.index", plain.paths[3], "-k", "1", "--json", "found.json")[0] == 0
    nearest = json.loads(Path("found.json").read_text())["queries"][0]["neighbours"][0]
    assert (nearest["path"], nearest["score"]) == (plain.paths[3], pytest.approx(1))


@pytest.mark.slow
def test_build_for_a_sequence_that_configures_no_channels(place, call):
    """Its parts say how many: in the configuration they are null."""
    data = ("--data", "sequence", "--data.parts", "[digits, {name: digits, as: again}]")
    small = ("--model", "mlp", "--model.hidden", "[16]", "--training.epochs", "1", "--report", "false")
    assert call("train", "--out", "sequence", *data, *small)[0] == 0
    assert call("index", "build", "sequence", "--images", "images/a", "--out", "new.index")[0] == 0
    assert ImageIndex.open("new.index").settings.transform.size == (28, 28)  # the default
    assert call("query", "new.index", "images/a/x/0.png", "-k", "1")[0] == 0


def test_build_does_not_overwrite(place, call):
    before = Path("old.index").read_bytes()
    failed(
        call("index", "build", "run", "--images", "images", "--out", "old.index"),
        r"old\.index exists: choose another --out, or change it with: tripletmas index add",
    )
    assert Path("old.index").read_bytes() == before


@pytest.mark.slow
def test_images_in_an_archive(place, call):
    with zipfile.ZipFile("all.zip", "w") as archive:
        for path in Path("images/a").rglob("*.png"):
            archive.write(path)
    assert call("index", "build", "run", "--images", "all.zip", "--out", "zip.index", "--after", "0")[0] == 0
    index = ImageIndex.open("zip.index")
    assert below(index, place)[0] == "all.zip/images/a/x/0.png"
    assert torch.equal(index.vectors, ImageIndex.open("old.index").vectors)
    assert call("index", "refresh", "zip.index", "--reembed")[0] == 0
    assert call("query", "zip.index", "images/a/x/0.png", "--html", "page.html")[0] == 0
    whole = Path("all.zip").read_bytes()
    Path("all.zip").write_bytes(whole[:-30])
    before = Path("zip.index").read_bytes()
    cut = r"all\.zip is no zip archive, or was cut short \(.*\): restore it"
    failed(call("index", "remove", "zip.index", "--missing"), cut)
    Path("all.zip").unlink()
    failed(call("index", "remove", "zip.index", "--missing"), "nothing is there any more of .*all.zip")
    assert Path("zip.index").read_bytes() == before
    assert call("index", "remove", "zip.index", "all.zip")[1].startswith("zip.index: 12 of 12 vectors removed")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["IVF2,Flat", "HNSW8", "PCA4,Flat"])
def test_approximate_kinds(kind, place, call):
    assert call("index", "build", "run", "--images", "images", "--out", "new.index", "--kind", kind)[0] == 0
    status, text, _ = call("index", "info", "new.index")
    assert status == 0
    assert kind in text
    assert call("query", "new.index", "images/a/x/0.png", "-k", "3")[0] == 0


BUILD = "index build run --out new.index"
REFUSED = [
    ("index", "index needs one of build, add, remove, info, refresh"),
    ("index bild", r"unknown command 'index bild' \(did you mean 'build'\?\)"),
    ("index build images --images images --out new.index", "images is no run directory"),
    (f"{BUILD} --images empty", "no images in empty"),
    (f"{BUILD} --images nowhere", "no such folder or zip archive: nowhere"),
    (f"{BUILD} --images images --kind IVF64,Flat", "IVF64,Flat"),
    (f"{BUILD} --images images --kind nonsense", "nonsense"),
    (f"{BUILD} --images images --metric cosine", "metric must be one of inner_product, l2, got 'cosine'"),
    (f"{BUILD} --images images --nprobe 2", "kind 'exact' has no nprobe"),
    (f"{BUILD} --images images --after 2", "tasks 0 to 1 are done, so there is no model after task 2"),
    (f"{BUILD} --images images --device gpu", "unknown device 'gpu'"),
    (f"{BUILD} --images broken", r"broken/c/bad\.png cannot be read: .*--skip-unreadable leaves out"),
    (f"{BUILD} --images hopeless --skip-unreadable", r"no image can be read; the first: hopeless/bad\.png"),
    ("index remove old.index", "name the paths to remove, or give --missing"),
    ("index remove old.index images/c", "old.index holds no image images/c, and none below it"),
    ("index remove old.index ''", "a path to remove is empty"),  # which would be the working directory: everything
    ("index refresh old.index", "say how: --compensate moves the stale vectors, --reembed"),
    ("index refresh old.index --compensate --reembed", "give one of the two: --compensate moves"),
    ("index refresh old.index --compensate --map cubic", "the map must be one of sdc, linear, .*auto, got 'cubic'"),
    ("index refresh old.index --compensate cubic", "the map must be one of sdc, linear, .*auto, got 'cubic'"),
    ("index refresh old.index --compensate auto --map sdc", "--compensate auto names a map, and --map sdc too"),
    ("index refresh old.index --reembed --map sdc", "--map is for --compensate"),
    ("index refresh old.index --compensate --images images", "--images is for --reembed"),
    ("index refresh old.index --compensate --drop-missing", "--drop-missing is for --reembed"),
    ("index refresh old.index --compensate --device cpu", "--device is for --reembed"),
    ("query old.index images/a/x/0.png --device cuda:99", "error: device 'cuda:99' was asked for"),  # not: other index
    ("query old.index images/a/x/0.png -k 0 --allow-stale", "-k must be >= 1, got 0"),
    ("export run --embeddings out.csv", r"out\.csv must end in \.parquet or \.npz"),
    ("export run --embeddings out.npz --part test", "--part must be one of train, query"),
    ("export run --embeddings out.npz --part gallery", "no task has a gallery of its own"),
    ("export run --embeddings out.npz --after 5", "tasks 0 to 1 are done"),
]


@pytest.mark.slow
def test_what_is_refused(place, call):
    """In one sentence; and nothing is written."""
    Path("empty").mkdir()
    for name in ("broken/c", "hopeless"):
        Path(name).mkdir(parents=True)
        Path(name, "bad.png").write_bytes(b"no image")
    before = Path("old.index").read_bytes()
    for line, message in REFUSED:
        failed(call(*shlex.split(line)), message)
        assert not any(Path(name).exists() for name in ("new.index", "out.csv", "out.npz")), line
    assert Path("old.index").read_bytes() == before


@pytest.mark.slow
def test_images_that_cannot_be_read_are_left_out_if_asked_for(place, call, caplog):
    """A truncated one, too, whose header is whole."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save("images/a/x/cut.jpg")
    Path("images/a/x/cut.jpg").write_bytes(Path("images/a/x/cut.jpg").read_bytes()[:-900])
    arguments = ("index", "build", "run", "--images", "images/a", "--out", "new.index", "--after", "0")
    failed(call(*arguments), r"images/a/x/cut\.jpg cannot be read: .*truncated")
    assert call(*arguments, "--skip-unreadable")[0] == 0
    assert "skipped 1 of 13 images; the first: images/a/x/cut.jpg cannot be read" in caplog.text
    new, old = ImageIndex.open("new.index"), ImageIndex.open("old.index")
    assert new.paths == old.paths
    assert torch.allclose(new.vectors, old.vectors, atol=1e-6)


@pytest.mark.slow
def test_adding_nothing_but_what_cannot_be_read_is_no_failure_where_it_may_be_left_out(place, call, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "bad.png").write_text("no picture")
    before = Path("old.index").read_bytes()
    status, text, _ = call("index", "add", "old.index", "--images", tmp_path / "new", "--skip-unreadable")
    assert status == 0
    assert "old.index: nothing added: no image can be read; the first: " in text
    assert Path("old.index").read_bytes() == before
    failed(call("index", "add", "old.index", "--images", tmp_path / "new"), r"bad\.png cannot be read: not an image")


def test_a_model_that_gives_nan_is_told(place, call):
    weights = RunDirectory("run").read_tensors("weights/task01.safetensors")
    RunDirectory("run").write_tensors(
        "weights/task01.safetensors", {name: value * torch.nan for name, value in weights.items()}
    )
    result = call("index", "build", "run", "--images", "images/a", "--out", "new.index")
    failed(result, r"the embedding of sample 0 \(images/a/x/0\.png\) holds NaN or infinity")


# --- add, remove


@pytest.mark.slow
def test_add_makes_a_part_of_the_present_model_and_says_what_is_stale(place, call):
    status, text, complaint = call("index", "add", "old.index", "--images", "images/b")
    assert (status, complaint) == (0, "")
    assert f"old.index: 12 vectors added by {place}/run after task 1" in text
    assert "12 of 24 vectors are stale" in text
    assert "refresh old.index --compensate moves them" in text
    index = ImageIndex.open("old.index")
    hashes = weight_hashes(RunDirectory("run"))
    assert [(part.model, part.after_task) for part in index.parts] == [(hashes[0], 0), (hashes[1], 1)]
    assert torch.allclose(index.vectors[12:], rows_of(index, embedded("run", 1))[12:], atol=1e-6)


def test_images_that_a_link_leads_to_are_in_the_index_already(place, call):
    """Whether the index was made by the link, or is given it."""
    os.symlink("images", "linked")
    os.symlink("linked/a", "other")
    for root in ("linked/a", "other", "images/b/../a"):
        assert call("index", "add", "old.index", "--images", root) == (
            0,
            "old.index: 12 of 12 images are in it already and stay\n",
            "",
        )
    assert call("index", "build", "run", "--images", "other", "--out", "by_link.index")[0] == 0
    for root in ("images/a", "linked/a"):
        assert "12 of 12 images are in it already" in call("index", "add", "by_link.index", "--images", root)[1]
    assert len(ImageIndex.open("by_link.index")) == 12


def test_add_of_a_folder_that_has_grown_adds_what_is_new(place, call):
    before = Path("old.index").read_bytes()
    assert call("index", "add", "old.index", "--images", "images/a") == (
        0,
        "old.index: 12 of 12 images are in it already and stay\n",
        "",
    )
    assert Path("old.index").read_bytes() == before
    old = ImageIndex.open("old.index")
    shutil.copy("images/a/x/0.png", "images/a/x/new.png")
    status, text, complaint = call("index", "add", "old.index", "--images", "images/a", "--run", "run")
    assert (status, complaint) == (0, "")
    assert "12 of 13 images are in it already and stay" in text
    assert "1 vector added" in text
    new = ImageIndex.open("old.index")
    assert new.paths == (*old.paths, str(place / "images/a/x/new.png"))
    assert torch.equal(new.vectors[:12], old.vectors)
    assert new.label_of(12) == "x"


def test_what_is_searched_is_not_overwritten(place, call):
    before = {path: Path(path).read_bytes() for path in ("old.index", "images/b/x/0.png")}
    os.symlink("old.index", "link.index")
    for option, path in (("--json", "old.index"), ("--html", "link.index"), ("--json", "images/b/x/0.png")):
        result = call("query", "old.index", "images/b/x/0.png", "--allow-stale", option, path)
        failed(result, f"{option} {path} would overwrite what is read or written besides: name another file")
    assert {path: Path(path).read_bytes() for path in before} == before


def test_vectors_that_were_damaged_are_told(place, call):
    content = Path("old.index").read_bytes()
    vectors = ImageIndex.open("old.index").vectors.numpy().tobytes()
    start = content.index(vectors)
    Path("old.index").write_bytes(content[: start + 5] + bytes([content[start + 5] ^ 64]) + content[start + 6 :])
    for command in (("index", "info", "old.index"), ("query", "old.index", "images/b/x/0.png", "--allow-stale")):
        failed(call(*command), "old.index cannot be read .its checksum is wrong.*; restore it from a copy")


def test_an_index_can_be_read_by_those_who_could(place, call):
    """safetensors writes files that only their owner can read."""
    mask = os.umask(0o022)
    try:
        assert call("index", "build", "run", "--images", "images/a", "--out", "new.index")[0] == 0
        assert Path("new.index").stat().st_mode & 0o777 == 0o644
        Path("new.index").chmod(0o664)
        assert call("index", "remove", "new.index", "images/a/x/0.png")[0] == 0
        assert Path("new.index").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(mask)


def test_remove_by_path_by_folder_and_what_has_vanished(place, call):
    status, text, _ = call("index", "remove", "old.index", "images/a/x/0.png", "images/a/y")
    assert (status, "7 of 12 vectors removed" in text) == (0, True)
    assert below(ImageIndex.open("old.index"), place) == tuple(f"images/a/x/{number}.png" for number in range(1, 6))
    assert "0 of 5 vectors removed" in call("index", "remove", "old.index", "--missing")[1]
    Path("images/a/x/3.png").unlink()
    assert f"1 of 5 vectors removed: {place}/images/a/x/3.png" in call("index", "remove", "old.index", "--missing")[1]
    assert call("index", "remove", "old.index", "images/a")[0] == 0
    failed(call("query", "old.index", "images/b/x/0.png"), "old.index holds no vectors: tripletmas index add old.index")


@pytest.mark.slow
def test_an_index_is_used_from_any_directory(place, call, monkeypatch):
    """Roots and the run are absolute: elsewhere nothing is missing, and `photos` and `./photos` are one root."""
    assert call("index", "add", "old.index", "--images", "./images/b/")[0] == 0
    assert "12 of 12 images are in it already" in call("index", "add", "old.index", "--images", "images/b")[1]
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    index = place / "old.index"
    assert "0 of 24 vectors removed" in call("index", "remove", index, "--missing")[1]
    assert "12 images embedded again" in call("index", "refresh", index, "--reembed", "--drop-missing")[1]
    assert call("query", index, place / "images/b/x/0.png", "-k", "1")[0] == 0
    assert ImageIndex.open(index).roots == (str(place / "images/a"), str(place / "images/b"))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["folder", "content"])
def test_what_vanishes_with_its_whole_root_is_not_taken_for_removed(lost, place, call):
    """A disk that is not mounted is no folder, or an empty one."""
    Path("images/a").rename("unmounted")
    if lost == "content":
        Path("images/a").mkdir()
    before = Path("old.index").read_bytes()
    message = "nothing is there any more of .*images/a, so .*index remove old.index .*images/a"
    failed(call("index", "remove", "old.index", "--missing"), message)
    failed(call("index", "refresh", "old.index", "--reembed", "--drop-missing"), message)
    failed(call("index", "refresh", "old.index", "--reembed", "--drop-missing", "--images", "images/b/x"), message)
    assert Path("old.index").read_bytes() == before
    Path("unmounted/x/3.png").unlink()
    moved = call("index", "refresh", "old.index", "--reembed", "--drop-missing", "--images", "unmounted")
    assert "11 images embedded again by the model after task 1, 0 were current, 1 removed" in moved[1]


@pytest.mark.slow
def test_vectors_are_dropped_and_replaced_in_their_rows(place, call):
    assert call("index", "build", "run", "--images", "images", "--out", "new.index", "--after", "0")[0] == 0
    Path("images/a/x/2.png").unlink()
    found = embedded("run", 1)
    Path("images/a/y/1.png").write_bytes(b"no image")
    assert "22 images embedded again" in call("index", "refresh", "new.index", "--reembed", "--drop-missing")[1]
    index = ImageIndex.open("new.index")
    assert torch.allclose(index.vectors, rows_of(index, found), atol=1e-6)


def test_a_path_is_shown_as_it_is(place, call):
    """Not as markup of rich: `[/]` would close what was not opened."""
    shutil.move("images/a/x", "images/a/[/]x :cat:")
    assert call("index", "build", "run", "--images", "images/a", "--out", "new.index")[0] == 0
    status, text, _ = call("query", "new.index", "images/a/[/]x :cat:/1.png", "-k", "1")
    assert (status, text.count("[/]x :cat:")) == (0, 3)  # title, label, path
    shutil.move("new.index", "[b]:cat:.index")
    assert "[b]:cat:.index" in call("index", "info", "[b]:cat:.index")[1]


@pytest.mark.slow
def test_a_name_that_is_not_utf_8(place, call):
    name = os.fsdecode(b"images/a/x/\xff.png")
    try:
        shutil.move("images/a/x/0.png", name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert call("index", "build", "run", "--images", "images/a", "--out", "new.index")[0] == 0
    assert call("query", "new.index", name, "-k", "1", "--html", "page.html", "--json", "found.json")[0] == 0
    assert "\\udcff.png" in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_index_of_an_earlier_model_is_told_when_it_is_built(place, call):
    arguments = ("index", "build", "run", "--images", "images/a", "--out")
    text = call(*arguments, "first.index", "--after", "0")[1]
    assert "run has a later model: query with --after 0, or tripletmas index refresh first.index --compensate" in text
    assert "later" not in call(*arguments, "last.index", "--after", "1")[1]


@pytest.mark.slow
def test_another_place_of_the_run_is_kept(place, call):
    assert call("index", "build", "run", "--images", "images", "--out", "new.index")[0] == 0
    for way, name in (("--compensate", "second"), ("--reembed", "third")):
        shutil.copytree("run", name)
        assert "all vectors are current" in call("index", "refresh", "new.index", way, "--run", name)[1]
        assert ImageIndex.open("new.index").run == str(place / name)


# --- info


def test_info_tells_what_is_stale(place, call):
    hashes = weight_hashes(RunDirectory("run"))
    assert call("index", "add", "old.index", "--images", "images/b")[0] == 0
    status, text, _ = call("index", "info", "old.index")
    assert status == 0
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert f"present model {hashes[1][:12]}, after task 1" in lines
    assert {
        "vectors 24",
        "dim 8",
        "metric inner_product",
        "normalised yes",
        "kind exact",
        "images 8 x 8, grey, bilinear",
    } < {*lines}
    assert f"12 {hashes[0][:12]} 0 stale" in lines
    assert f"12 {hashes[1][:12]} 1 current" in lines
    assert "12 of 24 vectors are stale: tripletmas index refresh" in text


def test_info_without_the_run(place, call):
    Path("run").rename("elsewhere")
    status, text, _ = call("index", "info", "old.index")
    assert status == 0
    assert f"which vectors are stale cannot be told: {place}/run is no run directory" in text
    assert "--run says where it is now" in text
    assert "12 of 12 vectors are stale" in call("index", "info", "old.index", "--run", "elsewhere")[1]
    failed(call("index", "info", "old.index", "--run", "nowhere"), "nowhere is no run directory")
    failed(call("query", "old.index", "images/a/x/0.png"), "run is no run directory .*--run says where it is now")
    assert call("query", "old.index", "images/a/x/0.png", "--run", "elsewhere", "--allow-stale")[0] == 0


# --- refresh


def with_pairs(run: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes the pairs of task 1 into a run, as training does: its training images before and after it was learned."""
    pairs = {}
    for key, after in (("before", 0), ("after", 1)):
        experiment, _ = load_trained(RunDirectory.open(run), after)
        pairs[key] = embed(experiment.model, experiment.stream[1].train.plain()).vectors
    saved = RunDirectory(run).read_tensors("gallery/task01.safetensors") if Path(run, "gallery").exists() else {}
    for key, value in pairs.items():
        assert key not in saved or torch.allclose(saved[key], value, atol=1e-6)  # training writes the same
    RunDirectory(run).write_tensors("gallery/task01.safetensors", saved | pairs)
    return pairs["before"], pairs["after"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "sdc", "mlp", "procrustes", None])
def test_compensate_moves_stale_vectors_and_reads_no_image(name, place, call):
    before, after = with_pairs("run")
    assert call("index", "add", "old.index", "--images", "images/b")[0] == 0
    old = ImageIndex.open("old.index")
    shutil.rmtree("images")
    status, text, complaint = call("index", "refresh", "old.index", "--compensate", *(["--map", name] if name else []))
    assert (status, complaint) == (0, "")
    kind = name or "linear"
    assert (
        f"12 vectors moved by the map {kind} to the model after task 1, 12 were current; 12 images were not read"
        in text
    )
    new = ImageIndex.open("old.index")
    expected = unit(fit_drift(kind, unit(before), unit(after))(old.vectors[:12]))
    assert torch.allclose(new.vectors[:12], expected, atol=1e-6)
    assert torch.equal(new.vectors[12:], old.vectors[12:])
    hashes = weight_hashes(RunDirectory("run"))
    assert (new.parts[0].model, new.parts[0].moved_to, new.parts[0].maps) == (hashes[0], hashes[1], (kind,))
    unchanged = Path("old.index").read_bytes()
    assert "all vectors are current, nothing was moved" in call("index", "refresh", "old.index", "--compensate")[1]
    assert Path("old.index").read_bytes() == unchanged
    text = call("index", "info", "old.index")[1]
    assert "all vectors are current" in text
    assert kind in text


@pytest.mark.parametrize("normalize", [True, False])
def test_a_map_that_chooses_itself(normalize, place, call, monkeypatch):
    monkeypatch.setattr(drift, "_STEPS", 5)
    before, after = with_pairs("run")
    options = () if normalize else ("--no-normalize", "--metric", "l2")
    assert (
        call("index", "build", "run", "--images", "images/a", "--out", "auto.index", "--after", "0", *options)[0] == 0
    )
    old = ImageIndex.open("auto.index").vectors.clone()
    status, text, complaint = call("index", "refresh", "auto.index", "--compensate", "auto")
    assert (status, complaint) == (0, "")
    pairs = (unit(before), unit(after)) if normalize else (before, after)
    choice = choose_drift(*pairs, normalize=normalize)
    assert f"task 1: {choice.sentence()}" in text
    assert "12 vectors moved by the map auto to the model after task 1" in text
    moved = fit_drift(choice.name, *pairs)(old)
    new = ImageIndex.open("auto.index")
    assert torch.allclose(new.vectors, unit(moved) if normalize else moved, atol=1e-5)
    assert new.parts[0].maps == ("auto",)


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "linear", "auto"])
def test_queries_are_moved_back_to_stale_vectors(name, place, call, monkeypatch):
    """By hand: the part of task a is asked by a query that was moved by the map from after to before, b's as it is."""
    monkeypatch.setattr(drift, "_STEPS", 5)
    before, after = with_pairs("run")
    assert call("index", "add", "old.index", "--images", "images/b")[0] == 0
    stored, index = Path("old.index").read_bytes(), ImageIndex.open("old.index")
    options = ["--move-queries", *([name] if name else []), "-k", "24", "--json", "found.json"]
    status, text, complaint = call("query", "old.index", "images/b/x/0.png", *options)
    assert (status, complaint) == (0, "")
    pairs = unit(after), unit(before)
    choice = choose_drift(*pairs)
    assert (f"back over task 1: {choice.sentence()}" in text) == (name == "auto")
    query = index.vectors[index.paths.index(str(place / "images/b/x/0.png"))][None]
    moved = unit(fit_drift(choice.name if name == "auto" else "linear", *pairs)(query))
    expected = torch.cat([index.vectors[:12] @ moved[0], index.vectors[12:] @ query[0]])
    found = json.loads(Path("found.json").read_text())["queries"][0]["neighbours"]
    assert [each["score"] for each in found] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-5)
    assert found[0]["path"] == str(place / "images/b/x/0.png")
    assert Path("old.index").read_bytes() == stored


@pytest.mark.slow
def test_queries_that_cannot_be_moved_back(place, call):
    with_pairs("run")
    asked = ("query", "old.index", "images/a/x/0.png", "--move-queries")
    failed(call(*asked, "cubic"), "the map must be one of sdc, linear, .*auto, got 'cubic'")
    assert call("index", "refresh", "old.index", "--reembed")[0] == 0
    result = call(*asked, "--after", "0")
    failed(result, "holds vectors of the model after task 1, .* only be moved back: ask with --after 1")
    Path("run/gallery/task01.safetensors").unlink()
    assert call(*asked)[0] == 0  # all vectors are current


@pytest.mark.slow
def test_compensation_of_raw_vectors_is_that_of_raw_pairs(place, call):
    before, after = with_pairs("run")
    options = ("--out", "raw.index", "--after", "0", "--no-normalize", "--metric", "l2")
    assert call("index", "build", "run", "--images", "images/a", *options)[0] == 0
    old = ImageIndex.open("raw.index").vectors.clone()
    result = call("index", "refresh", "raw.index", "--compensate", "--map", "sdc")
    failed(result, "the map sdc is for vectors of length 1, .*: use linear or mlp")
    assert call("index", "refresh", "raw.index", "--compensate")[0] == 0
    assert torch.allclose(ImageIndex.open("raw.index").vectors, fit_drift("linear", before, after)(old), atol=1e-5)


@pytest.mark.slow
def test_compensation_over_two_tasks_applies_one_map_after_the_other(place, call, monkeypatch):
    """A third model, whose weights are those of the second doubled, and the pairs of its task; maps are fitted once."""
    assert call("index", "add", "old.index", "--images", "images/b")[0] == 0
    fitted = []
    monkeypatch.setattr(drifts, "fit_drift", lambda *pairs: fitted.append(1) or fit_drift(*pairs))
    run = RunDirectory("run")
    before, after = with_pairs("run")
    weights = run.read_tensors("weights/task01.safetensors")
    run.write_tensors("weights/task02.safetensors", {name: 2 * value for name, value in weights.items()})
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    run.write_tensors("gallery/task02.safetensors", {"before": after, "after": after @ turn})
    old = ImageIndex.open("old.index").vectors.clone()
    assert call("index", "refresh", "old.index", "--compensate")[0] == 0
    first, second = (fit_drift("linear", unit(a), unit(b)) for a, b in ((before, after), (after, after @ turn)))
    expected = torch.cat([unit(second(unit(first(old[:12])))), unit(second(old[12:]))])
    assert torch.allclose(ImageIndex.open("old.index").vectors, expected, atol=1e-5)
    assert len(fitted) == 2


@pytest.mark.slow
def test_the_map_of_the_run_is_the_default(place, call):
    with_pairs("run")
    config = RunDirectory("run").config()
    for value, expected in (({"compensate": "sdc"}, "sdc"), ({"compensate": None}, "linear"), (None, "linear")):
        with_gallery = {**config, "gallery": value} if value else {k: v for k, v in config.items() if k != "gallery"}
        write_config(Path("run"), json.dumps(with_gallery))
        assert drifts.default_map(RunDirectory("run")) == expected


@pytest.mark.slow
def test_vectors_whose_layers_were_held_are_moved_no_further(place, call, monkeypatch):
    """After gram, maps that would move stored vectors further than its layers moved are refused, and info says how far
    that is: 1 - cosine is at most ten times the sum of the shares, each a hundredth squared of two layers."""
    monkeypatch.setattr(drift, "_STEPS", 5)
    data = ("--data", "folder", "--data.root", place / "images", "--data.size", "8", "--data.channels", "1")
    model = ("--model", "mlp", "--model.hidden", "[16]", "--model.dim", "8", "--training.epochs", "3")
    held = ("--strategy", "gram", "--strategy.budget", "0.01", "--gallery.compensate", "null", "--report", "false")
    assert call("train", "--out", "held", *held, *data, *model)[0] == 0
    assert call("index", "build", "held", "--images", "images/a", "--out", "held.index", "--after", "0")[0] == 0
    shares = RunDirectory("held").records("task")[1]["changed_responses"]
    assert len(shares) == 2
    assert sum(shares.values()) <= 2 * 0.01**2 * 1.01
    known = f"to a mean cosine of {1 - 10 * sum(shares.values()):.3f} at least, since the layers were held"
    assert known in " ".join(call("index", "info", "held.index")[1].split())
    failed(call("query", "held.index", "images/a/x/0.png"), f"{known}.*--allow-stale")
    old = ImageIndex.open("held.index").vectors.clone()
    status, text, _ = call("index", "refresh", "held.index", "--compensate")
    assert status == 0
    assert "12 vectors moved by the map auto" in text
    moved = 1 - float((old * ImageIndex.open("held.index").vectors).sum(dim=1).mean())
    assert moved <= 10 * sum(shares.values())
    assert call("query", "held.index", "images/a/x/0.png")[0] == 0


@pytest.mark.slow
def test_compensation_that_is_not_possible(place, call):
    with_pairs("run")
    before = Path("old.index").read_bytes()
    Path("run/gallery/task01.safetensors").unlink()
    result = call("index", "refresh", "old.index", "--compensate")
    failed(result, r"run/gallery/task01\.safetensors is missing, from which drift is estimated .*: use --reembed")
    RunDirectory("run").write_tensors("gallery/task01.safetensors", {"before": torch.ones(3, 5)})
    failed(call("index", "refresh", "old.index", "--compensate"), "holds no pairs of vectors of dim 8: use --reembed")
    weights = RunDirectory("run").read_tensors("weights/task00.safetensors")
    RunDirectory("run").write_tensors(
        "weights/task00.safetensors", {name: value + 1 for name, value in weights.items()}
    )
    result = call("index", "refresh", "old.index", "--compensate")
    failed(result, "12 vectors lie in the space of the model .* which is none of .*run, .*use --reembed")
    assert Path("old.index").read_bytes() == before


@pytest.mark.slow
def test_reembed_reads_the_images_of_stale_vectors(place, call):
    assert call("index", "add", "old.index", "--images", "images/b")[0] == 0
    status, text, _ = call("index", "refresh", "old.index", "--reembed")
    assert status == 0
    assert "12 images embedded again by the model after task 1, 12 were current, 0 removed" in text
    index = ImageIndex.open("old.index")
    assert torch.allclose(index.vectors, rows_of(index, embedded("run", 1)), atol=1e-6)
    assert len(index.parts) == 1
    assert "all vectors are current, no image was read" in call("index", "refresh", "old.index", "--reembed")[1]


@pytest.mark.slow
def test_reembed_where_images_have_vanished(place, call):
    Path("images/a/x/2.png").unlink()
    Path("images/a/y/1.png").write_bytes(b"no image")
    before = Path("old.index").read_bytes()
    result = call("index", "refresh", "old.index", "--reembed")
    failed(result, r"1 of 12 images are not where they were, the first is .*images/a/x/2\.png: --images says where")
    assert Path("old.index").read_bytes() == before
    status, text, _ = call("index", "refresh", "old.index", "--reembed", "--drop-missing")
    assert status == 0
    assert "10 images embedded again" in text
    assert f"2 removed ({place}/images/a/x/2.png, {place}/images/a/y/1.png)" in text
    assert len(ImageIndex.open("old.index")) == 10


def test_reembed_where_images_were_moved(place, call):
    Path("images/a").rename("archive")
    shutil.move("archive/x/5.png", "gone.png")
    result = call("index", "refresh", "old.index", "--reembed", "--images", "archive")
    failed(result, r"1 of 12 images are not where they were, the first is .*images/a/x/5\.png")
    shutil.move("gone.png", "archive/x/5.png")
    assert call("index", "refresh", "old.index", "--reembed", "--images", "archive")[0] == 0
    index = ImageIndex.open("old.index")
    assert below(index, place)[0] == "archive/x/0.png"
    assert index.label_of(0) == "x"


def test_an_unreadable_image_stops_reembedding(place, call):
    Path("images/a/y/1.png").write_bytes(b"no image")
    result = call("index", "refresh", "old.index", "--reembed")
    failed(result, r"images/a/y/1\.png cannot be read: not an image \(--drop-missing leaves out what cannot be read\)")


# --- query


def test_query_finds_the_image_itself_first(place, call):
    assert call("index", "build", "run", "--images", "images", "--out", "new.index")[0] == 0
    images = ("images/b/y/4.png", "images/a/x/1.png")
    status, text, complaint = call("query", "new.index", *images, "-k", "3", "--json", "found.json")
    assert (status, complaint) == (0, "")
    assert re.search(r"1 +1\.0000\d\d|1 +0\.99999\d", text)
    found = json.loads(Path("found.json").read_text())["queries"]
    assert [each["query"] for each in found] == list(images)
    index = ImageIndex.open("new.index")
    for each in found:
        assert [neighbour["rank"] for neighbour in each["neighbours"]] == [1, 2, 3]
        nearest = each["neighbours"][0]
        assert (nearest["path"], nearest["score"]) == (str(place / each["query"]), pytest.approx(1))
        assert nearest["label"] == "/".join(Path(each["query"]).parts[1:3])
    query = index.vectors[below(index, place).index(images[0])]
    expected = (index.vectors @ query).topk(3)
    assert [index.paths[row] for row in expected.indices] == [each["path"] for each in found[0]["neighbours"]]


@pytest.mark.slow
def test_query_with_another_model_says_what_differs_and_what_to_do(place, call):
    hashes = weight_hashes(RunDirectory("run"))
    result = call("query", "old.index", "images/a/x/0.png")
    failed(result, f"12 of 12 vectors are stale: .* {hashes[0][:12]}, that of .*/run after task 1 is {hashes[1][:12]}")
    assert call("query", "old.index", "images/a/x/0.png", "--after", "0")[2] == ""
    for way in ("refresh old.index --compensate", "refresh old.index --reembed", "--allow-stale"):
        assert way in result[2]
    status, text, complaint = call("query", "old.index", "images/a/x/0.png", "--allow-stale")
    assert status == 0
    assert "images/a/" in text
    assert "scores with them do not compare" in complaint
    with_pairs("run")
    assert call("index", "refresh", "old.index", "--compensate")[0] == 0
    assert call("query", "old.index", "images/a/x/0.png")[2] == ""


def test_more_neighbours_than_there_are(place, call):
    status, text, complaint = call("query", "old.index", "images/a/x/0.png", "-k", "50", "--allow-stale")
    assert status == 0
    assert "the index holds 12 vectors, fewer than the 50 that are asked for" in complaint
    assert text.count("images/a/") == 1 + 12


def test_query_images_that_cannot_be_read(place, call):
    failed(call("query", "old.index", "none.png", "--allow-stale"), r"none\.png cannot be read: no such file$")
    Path("bad.png").write_bytes(b"no image")
    failed(call("query", "old.index", "bad.png", "--allow-stale"), r"bad\.png cannot be read: not an image$")


@pytest.mark.slow
def test_a_run_of_another_dim_or_size_is_refused(place, call):
    other = {"dim": (8, 5), "size": (6, 8)}
    for name, (size, dim) in other.items():
        data = ("--data", "folder", "--data.root", "images", "--data.size", size, "--data.channels", "1")
        model = ("--model", "mlp", "--model.hidden", "[4]", "--model.dim", dim, "--training.epochs", "1")
        assert call("train", "--out", name, "--report", "false", *data, *model)[0] == 0
    result = call("query", "old.index", "images/a/x/0.png", "--run", "dim")
    failed(result, "the index holds vectors of dim 8, the model of dim gives dim 5; the index was not made with dim")
    result = call("query", "old.index", "images/a/x/0.png", "--run", "size")
    failed(result, "the model of size takes images as 6 x 6, grey, bilinear, not as 8 x 8, grey, bilinear; .*--run")
    failed(call("index", "add", "old.index", "--images", "images/b", "--run", "dim"), "gives dim 5")


class _Page(HTMLParser):
    """The pictures of a page, and its text."""

    def __init__(self):
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.missing: list[str | None] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [str(given[name]) for name in ("href", "src") if name in given]
        if tag == "img":
            self.images.append(given)
        if given.get("class") == "vanished":
            self.missing.append(given.get("aria-label"))


def test_the_page_is_self_contained_and_shows_what_has_vanished(place, call):
    assert call("index", "build", "run", "--images", "images", "--out", "new.index")[0] == 0
    shutil.move("images/a/x/1.png", "images/a/x/<b>&.png")
    status, text, _ = call(
        "query", "new.index", "images/a/x/0.png", "images/a/x/<b>&.png", "-k", "24", "--html", "p/page.html"
    )
    assert status == 0
    assert "page: p/page.html" in text
    content = Path("p/page.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(content)
    assert all(link.startswith("data:image/webp;base64,") for link in page.links)
    assert len(page.images) == 2 * (1 + 23)
    assert all(image["alt"] for image in page.images)
    assert len(page.missing) == 2
    assert "the file is missing" in str(page.missing[0])
    assert "<b>&.png" not in content
    assert "prefers-color-scheme: dark" in content
    assert "@media (max-width" in content


# --- bad files, two writers


@pytest.mark.parametrize("action", [("query", "images/a/x/0.png"), ("info",), ("add", "--images", "images/b")])
@pytest.mark.parametrize("damage", ["cut", "foreign", "gone"])
def test_a_bad_index_file_is_one_sentence(action, damage, place, call):
    path = Path("old.index")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10] if damage == "cut" else b"a text")
    first = ("query",) if action[0] == "query" else ("index", action[0])
    message = "no such index file: old.index" if damage == "gone" else "old.index cannot be read .*cut short"
    failed(call(*first, "old.index", *action[1:]), message)
    assert damage != "gone" or not Path("old.index").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "old.index", "--images", "images/b"),
        ("remove", "old.index", "images/a/x"),
        ("refresh", "old.index", "--reembed"),
        ("build", "run", "--images", "images", "--out", "old.index"),
    ],
)
def test_the_second_of_two_writers_is_told(arguments, place, call):
    before = Path("old.index").read_bytes()
    with locked("old.index"):
        failed(
            call("index", *arguments),
            r"old.index is being changed by another process \(.*\): try again",
        )
        assert call("index", "info", "old.index")[0] == 0  # readers need not wait
    assert Path("old.index").read_bytes() == before


@pytest.mark.parametrize("action", ["build", "add", "remove", "info", "refresh"])
def test_every_action_has_help(action, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["index", action, "--help"])
    assert stopped.value.code == 0
    assert f"usage: tripletmas index {action}" in capsys.readouterr().out


# --- export


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_export_gives_every_sample_with_its_vector(ending, place, call):
    if ending == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    status, text, _ = call("export", "run", "--embeddings", f"out.{ending}")
    assert status == 0
    assert f"out.{ending}: 24 vectors of dim 8 by run after task 1" in text
    if ending == "parquet":
        table = parquet.read_table("out.parquet")
        assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[8]"
        columns = table.to_pydict()
        assert table.schema.metadata[b"model"].decode() == weight_hashes(RunDirectory("run"))[1]
    else:
        with np.load("out.npz", allow_pickle=False) as file:
            columns = {name: file[name].tolist() for name in file}
    found = embedded("run", 1)
    for path, vector, label, task, part in zip(
        columns["path"], columns["vector"], columns["label"], columns["task"], columns["part"], strict=True
    ):
        assert torch.allclose(torch.nn.functional.normalize(torch.tensor(vector), dim=0), found[path], atol=1e-5)
        assert label == "/".join(Path(path).parts[-3:-1])
        assert task == label[0]
        assert part in ("train", "query")
    assert len({*columns["path"]}) == 24


def test_export_of_a_part_after_a_task(place, call):
    assert call("export", "run", "--embeddings", "out.npz", "--part", "query", "--after", "0")[0] == 0
    with np.load("out.npz") as file:
        assert {*file["task"].tolist()} == {"a"}
        assert {*file["part"].tolist()} == {"query"}


@pytest.mark.slow
def test_samples_that_are_no_files_have_no_path(place, call):
    parquet = pytest.importorskip("pyarrow.parquet")
    small = ("--model.hidden", "[16]", "--data.tasks", "2", "--training.epochs", "1", "--report", "false")
    assert call("train", "--out", "digits", *small)[0] == 0
    for ending in ("npz", "parquet"):
        assert call("export", "digits", "--embeddings", f"out.{ending}", "--part", "query")[0] == 0
    assert set(parquet.read_table("out.parquet").to_pydict()["path"]) == {None}
    with np.load("out.npz") as file:
        assert set(file["path"].tolist()) == {""}


def test_an_export_that_needs_pyarrow(place, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = call("export", "run", "--embeddings", "out.parquet")
    failed(result, r'out\.parquet needs pyarrow: pip install "tripletmas\[parquet\]", or write out\.npz')
    assert not list(Path().glob("out.*"))


# --- of files that are embedded already


def in_parts(run: str, images: str, out: str, after: int | None = None) -> None:
    """As `integrations.ray` embeds them, in this process."""
    model = run_models.load_model(RunDirectory.open(run), after=after, device="cpu")
    made_by = identity_of(model.hash, model.shown)
    begin_parts(Path(out), images, texts=False, model=made_by)
    parts = plan_parts(images, texts=False, model=made_by, part_size=2)
    for part in parts:
        vectors, kept = run_models.embed_images(model, ImageFiles(images, part.names, model.prepared))
        write_part(Path(out), part, images, kept, vectors, ())
    end_parts(Path(out), parts)


@pytest.mark.slow
def test_an_index_of_files_that_are_embedded_already(place, call):
    """The same index as one that embeds them itself."""
    in_parts("run", "images", "parts")
    for given, out in (("--vectors parts", "given.index"), ("--images images", "own.index")):
        status, printed, complaint = call("index", "build", "run", *given.split(), "--out", out)
        assert status == 0, complaint
        assert "24 vectors of dim 8 by run after task 1" in printed
    given, own = ImageIndex.open("given.index"), ImageIndex.open("own.index")
    assert given.paths == own.paths
    assert [given.label_of(row) for row in range(24)] == [own.label_of(row) for row in range(24)]
    torch.testing.assert_close(given.vectors, own.vectors)
    assert given.settings == own.settings
    status, printed, _ = call("index", "add", "given.index", "--vectors", "parts")
    assert (status, printed) == (0, "given.index: 24 of 24 images are in it already and stay\n")
    in_parts("run", "images", "early", after=0)
    status, printed, complaint = call("index", "build", "run", "--after", 0, "--vectors", "early", "--out", "0.index")
    assert status == 0, complaint


def test_vectors_that_an_index_does_not_take(place, call):
    in_parts("run", "images/a", "early", after=0)
    build = ("index", "build", "run", "--out", "new.index")
    failed(
        call(*build, "--vectors", "early"), "the vectors of --vectors are by another model than that of run after task"
    )
    failed(call(*build, "--vectors", "images"), "images holds no vectors of files")
    failed(call(*build, "--vectors", "early", "--after", 0, "--invert"), "--vectors are embedded already")
    failed(call(*build, "--vectors", "early", "--images", "images"), "one of them")
    failed(call(*build, "--vectors", "early", "--text", "column"), "--text and --label name columns of --csv")
    failed(
        call("index", "build", "run", "--vectors", "early", "--out", "old.index"), "index add old.index --vectors early"
    )
