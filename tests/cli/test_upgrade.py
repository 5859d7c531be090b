"""The plan of an upgrade, by the command: what it prints and keeps, and what it refuses in a sentence."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import failed
from tiny_texts import WORDS, write_encoder

from tripletmas.basics.files import checksum
from tripletmas.cli.main import main
from tripletmas.index.images import ImageIndex
from tripletmas.runs.upgrades.kept import Plan
from tripletmas.stores.opening import opened

CLASSES, EACH = 6, 16


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_images) -> Path:
    """Images, a run that has learned two tasks of them, and an index of them by its first model."""
    folder = tmp_path_factory.mktemp("upgrade")
    for number in range(CLASSES):
        write_images(folder / "images" / f"c{number}", count=EACH, seed=number)
    data = ["--data", "folder", "--data.root", f"{folder}/images", "--data.size", "8", "--data.channels", "1"]
    model = ["--data.tasks", "2", "--model", "mlp", "--model.hidden", "[16]", "--model.dim", "8"]
    train = ["train", "--out", f"{folder}/run", "--strategy", "finetune", "--report", "false"]
    assert main([*train, "--training.epochs", "2", *data, *model]) == 0
    build = ["index", "build", f"{folder}/run", "--images", f"{folder}/images", "--out", f"{folder}/shop.index"]
    assert main([*build, "--after", "0"]) == 0
    return folder


@pytest.fixture
def shop(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of one's own, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "shop.index", tmp_path / "shop.index")
    (tmp_path / "run").symlink_to(made / "run")
    (tmp_path / "images").symlink_to(made / "images")
    return tmp_path


UPGRADE = ("upgrade", "shop.index", "--old", "run", "--old-after", "0", "--new", "run")


@pytest.mark.slow
def test_the_plan_changes_nothing_and_is_kept(shop: Path, call):
    before = checksum((shop / "shop.index").read_bytes())
    status, printed, _ = call(*UPGRADE, "--sample", "80", "--out", "plan")
    assert status == 0
    assert checksum((shop / "shop.index").read_bytes()) == before
    assert re.search(r"shop.index: 96 vectors 'vector' of dim 8 by run after task 0; run after task 1 gives", printed)
    assert "sample: 80 pictures, cosine 1.000 of the old model to what is stored" in printed
    for way in ("leave, with the old", "leave, and ask by the new", "map, and re-embed 25%", "re-embed all"):
        assert way in printed
    plan = Plan.open("plan")
    assert (plan.points, plan.sample, plan.missing) == (96, 80, 0)
    assert plan.fitted.choice.num_pairs == 40
    assert [way.share for way in plan.ways] == ["old", "as it is", 0.0, 0.1, 0.25, 0.5, 1.0]
    for way in plan.ways:
        assert 0 <= way.recall.low <= way.recall.middle <= way.recall.high <= 1
        assert 0 <= way.overlap.low <= way.overlap.middle <= way.overlap.high <= 1
    assert [way.pictures for way in plan.ways] == [0, 0, 0, 10, 24, 48, 96]
    assert [way.bytes for way in plan.ways] == [0, 0] + [96 * 8 * 4] * 5
    assert plan.ways[-1].overlap == (1, 1, 1)


@pytest.mark.slow
def test_the_plan_is_a_function_of_the_seed(shop: Path, call):
    for out, seed in (("one", 0), ("again", 0), ("other", 1)):
        assert call(*UPGRADE, "--sample", "60", "--out", out, "--seed", seed)[0] == 0
    one, again, other = (Plan.open(each) for each in ("one", "again", "other"))
    assert one.fitted.map.identity == again.fitted.map.identity != other.fitted.map.identity
    assert [way.recall for way in one.ways] == [way.recall for way in again.ways]


@pytest.mark.slow
def test_pictures_of_a_folder_are_known_again_in_the_store(shop: Path, call):
    status, printed, _ = call(*UPGRADE, "--sample", "60", "--images", "images", "--out", "plan")
    assert status == 0
    assert "sample: 60 pictures, cosine 1.000" in printed
    assert Plan.open("plan").sample == 60


@pytest.mark.slow
def test_missing_pictures_are_counted(made: Path, shop: Path, call, write_images):
    images = shop / "mine"
    for number in range(CLASSES):
        write_images(images / f"c{number}", count=EACH, seed=number)
    assert call("index", "build", "run", "--images", images, "--out", "mine.index", "--after", "0")[0] == 0
    for number in range(5):
        (images / "c0" / f"{number}.png").unlink()
    (images / "c1" / "0.png").write_bytes((images / "c1" / "0.png").read_bytes()[:60])  # its header is whole
    command = ("upgrade", "mine.index", *UPGRADE[2:], "--out", "plan")
    status, printed, _ = call(*command, "--sample", "96")
    assert status == 0
    assert "sample: 90 pictures" in printed
    assert "6 more could not be read, or have changed" in printed
    for picture in images.rglob("*.png"):
        picture.unlink()
    failed(call(*command), "there are 0 pictures to be had for the sample, and 40 are the least: .* the first: .*png")


@pytest.mark.slow
def test_what_it_refuses(made: Path, shop: Path, call, tmp_path: Path):
    failed(call(*UPGRADE, "--sample", "39"), "--sample must be >= 40: half of it fits a map, and half measures it")
    failed(call(*UPGRADE, "--new-after", "0"), "run and run are one model .*: there is nothing to upgrade")
    failed(call("upgrade", "shop.index", "--old", "run", "--new", "run"), "were made by the model .*, and --old run is")
    failed(call(*UPGRADE, "--shares", "0,10"), "--shares must be percents between 0 and 100 .*, got '0,10'")
    failed(call(*UPGRADE[:-1], "runs/none"), "runs/none is no model that has learned anything")
    failed(call("upgrade", "none.index", *UPGRADE[2:]), "no such index file: none.index")
    failed(call(*UPGRADE, "--images", "none"), "none")
    assert not (shop / "upgrades").exists()


@pytest.mark.slow
def test_texts_for_a_store_of_images_and_the_other_way_round(shop: Path, call, tiny_encoder: Path):
    failed(call(*UPGRADE[:-1], tiny_encoder), "reads texts and run takes images: an upgrade is from one to its like")
    failed(call(*UPGRADE[:2], "--old", tiny_encoder, "--new", "run"), "have dim 8, and --old .* gives 16")


def other_vectors(shop: Path, change) -> None:
    """Other vectors in the index, which still says that the run's model made them."""
    index = ImageIndex.open("shop.index")
    replace(index, vectors=change(index.vectors.clone())).save("shop.index")


@pytest.mark.slow
def test_the_wrong_model_is_told_by_a_cosine(shop: Path, call):
    """All vectors turned by a rotation: of random directions in 8 dimensions the cosine is small."""
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    other_vectors(shop, lambda vectors: vectors @ turn)
    failed(call(*UPGRADE, "--sample", "60"), r"shop.index are not those that --old gives: .* the cosine is -?0\.\d")
    failed(
        call(*UPGRADE, "--sample", "60", "--images", "images"),
        r"only \d+ of 60 pictures are points of shop.index: .* the cosine is 0\.\d",
    )


def test_vectors_that_are_of_no_use(shop: Path, call):
    def spoil(vectors: torch.Tensor) -> torch.Tensor:
        vectors[3, 0], vectors[5] = torch.nan, 0
        return vectors

    other_vectors(shop, spoil)
    failed(
        call(*UPGRADE, "--sample", "60"), "the vector 'vector' of point 3 holds NaN or infinity: mend it, or --leave"
    )
    status, printed, _ = call(*UPGRADE, "--sample", "60", "--leave-unusable")
    assert status == 0
    assert "94 vectors 'vector' of dim 8 by run after task 0; 2 more have none that is of use" in printed


def test_a_plan_that_is_damaged(shop: Path, call):
    assert call(*UPGRADE, "--sample", "40", "--out", "plan")[0] == 0
    for file in ("map.safetensors", "pairs.safetensors", "upgrade.json"):
        shutil.copytree("plan", f"bad-{file}")
        (shop / f"bad-{file}" / file).write_bytes(b"{}")
        with pytest.raises(ValueError, match=r"make the plan anew|fit the map anew"):
            Plan.open(f"bad-{file}")
    said = json.loads((shop / "plan" / "upgrade.json").read_text())
    (shop / "plan" / "upgrade.json").write_text(json.dumps({**said, "map": {**said["map"], "identity": "0"}}))
    with pytest.raises(ValueError, match=r"map.safetensors is another one.*make the plan anew"):
        Plan.open("plan")
    with pytest.raises(ValueError, match="none holds no plan of an upgrade: make the plan anew"):
        Plan.open("none")


@pytest.mark.slow
def test_a_store_of_texts_to_a_model_of_another_dim(tmp_path: Path, call, monkeypatch: pytest.MonkeyPatch):
    """From 16 to 24 dimensions: there is no identity, and no asking the old vectors by the new model."""
    pytest.importorskip("lancedb")
    monkeypatch.chdir(tmp_path)
    old, new = write_encoder(tmp_path / "old"), write_encoder(tmp_path / "new", width=24, seed=1)
    texts = [f"{one} {other} {name}" for name, words in WORDS.items() for one in words for other in words]
    with open("texts.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "kind"), *((each, each.split()[-1]) for each in texts)])
    from tripletmas.runs.deployed import load_deployed
    from tripletmas.runs.models import embed_texts
    from tripletmas.stores.opening import created
    from tripletmas.stores.store import VectorField

    vectors = torch.nn.functional.normalize(embed_texts(load_deployed(old), texts))
    kinds = [each.split()[-1] for each in texts]
    columns = {"text": str, "label": str}
    place = f"lancedb://{tmp_path}/store#faq"
    with created(place, VectorField("vector", 16, "cosine"), columns) as store:
        store.insert("vector", list(range(len(texts))), vectors, {"text": texts, "label": kinds})
    command = ("upgrade", place, "--old", old, "--new", new, "--sample", "80")
    status, printed, complaint = call(*command, "--out", "plan")
    assert status == 0, complaint
    assert "sample: 80 texts, cosine 1.000" in printed
    plan = Plan.open("plan")
    assert (plan.fitted.map.dim, plan.fitted.map.new_dim) == (16, 24)
    assert "as it is" not in [way.share for way in plan.ways]
    assert call(*command, "--out", "other", "--csv", "texts.csv", "--text", "text", "--label", "kind")[0] == 0
    with opened(place) as store:
        assert list(store.fields()) == ["vector"]
