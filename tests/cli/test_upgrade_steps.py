"""What follows the plan of an upgrade, by the command: in an index file and in LanceDB."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import failed

from tripletmas.basics.files import checksum
from tripletmas.cli.main import main
from tripletmas.index.base import unit
from tripletmas.index.images import ImageIndex
from tripletmas.runs.deployed import load_deployed
from tripletmas.runs.stored import embedded
from tripletmas.runs.upgrades.kept import Plan
from tripletmas.stores.identity import read_notes
from tripletmas.stores.opening import opened

CLASSES, EACH = 6, 16
STORES = {"file": "shop.index", "lancedb": "lancedb://data#products"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_images) -> Path:
    """Images, a run that has learned two tasks of them, and an index of them by its first model."""
    folder = tmp_path_factory.mktemp("steps")
    for number in range(CLASSES):
        write_images(folder / "images" / f"c{number}", count=EACH, seed=number)
    data = ["--data", "folder", "--data.root", f"{folder}/images", "--data.size", "8", "--data.channels", "1"]
    model = ["--data.tasks", "2", "--model", "mlp", "--model.hidden", "[16]", "--model.dim", "8"]
    train = ["train", "--out", f"{folder}/run", "--strategy", "finetune", "--report", "false"]
    assert main([*train, "--training.epochs", "2", *data, *model]) == 0
    build = ["index", "build", f"{folder}/run", "--images", f"{folder}/images", "--out", f"{folder}/shop.index"]
    assert main([*build, "--after", "0"]) == 0
    return folder


@pytest.fixture(params=STORES)
def store(request, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call) -> str:
    """A gallery of one's own, with the vectors of the first model."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "shop.index", tmp_path / "shop.index")
    (tmp_path / "run").symlink_to(made / "run")
    (tmp_path / "images").symlink_to(made / "images")
    if request.param != "file":
        assert call("index", "push", "shop.index", STORES[request.param])[0] == 0
    return STORES[request.param]


MODELS = ("--old", "run", "--old-after", "0", "--new", "run", "--sample", "80", "--out", "plan")


def vectors(store: str, name: str = "vector") -> torch.Tensor:
    with opened(store) as found:
        return torch.cat([block.vectors for block in found.scan(name)])


def best(store: str, call, *, old: bool = False) -> dict:
    """What is nearest to one of the images; by the old model, which a store finds by itself."""
    after = ["--after", "0"] if old and store == "shop.index" else []
    status, out, error = call("query", store, "images/c3/5.png", "-k", "1", "--jsonl", "-", *after)
    assert (status, error) == (0, "")
    return json.loads(out)["neighbours"][0]


@pytest.mark.slow
def test_apply_switch_and_drop(store, call):
    before = vectors(store)
    status, printed, _ = call("upgrade", store, *MODELS, "--apply")
    assert status == 0
    assert "96 points have their new vector" in printed
    assert "nothing in the store was changed" not in printed
    assert torch.equal(vectors(store), before), "searched until the switch"
    plan = Plan.open("plan")
    moved = plan.fitted.map.apply(before)
    assert best(store, call, old=True)["score"] == pytest.approx(1, abs=1e-5)
    assert call("upgrade", store, "--switch")[0] == 0
    assert torch.allclose(vectors(store), moved, atol=1e-6)
    after = best(store, call)
    assert after["label"] == "c3"
    assert after["score"] < 1 - 1e-7, "a map is not the model itself"
    status, printed, _ = call("upgrade", store, "--drop-old")
    assert (status, "are gone" in printed) == (0, True)
    assert torch.allclose(vectors(store), moved, atol=1e-6)
    failed(call("upgrade", store, "--rollback"), "no upgrade under way")
    with opened(store) as found:
        identity = read_notes(found).identities["vector"]
        assert (identity.model, identity.embedded_by) == (plan.becomes.model, plan.was.model)


@pytest.mark.slow
def test_as_json_each_step_is_one_document(store, call):
    def told(*options: str) -> dict:
        status, printed, _ = call("upgrade", store, *options, "--json")
        assert status == 0
        return json.loads(printed)

    assert told(*MODELS)["folder"] == "plan"
    for step in ("--apply", "--switch", "--rollback"):
        assert told(*(MODELS if step == "--apply" else ()), step)["store"], step
    assert told(*MODELS, "--apply", "--switch")
    assert told("--drop-old")["store"]


@pytest.mark.slow
def test_some_are_embedded_anew(store, call):
    assert call("upgrade", store, *MODELS, "--apply", "--reembed", "25%")[0] == 0
    assert call("upgrade", store, "--reembed", "25")[1].strip().endswith("24 of 96 points are embedded anew, 0 now")
    assert call("upgrade", store, "--reembed", "50%")[1].strip().endswith("48 of 96 points are embedded anew, 24 now")
    assert call("upgrade", store, "--apply", "--switch")[0] == 0
    plan, model = Plan.open("plan"), load_deployed("run")
    old = ImageIndex.open("plan/../shop.index" if store != "shop.index" else "shop.index.vector_" + plan.was.model[:8])
    anew = unit(embedded(model, list(old.paths)))
    now = vectors(store)
    is_anew = (now - anew).abs().amax(dim=1) < 1e-5
    assert int(is_anew.sum()) >= 48
    moved = plan.fitted.map.apply(old.vectors)
    assert bool((is_anew | ((now - moved).abs().amax(dim=1) < 1e-5)).all())
    unsure = plan.fitted.uncertainty(old.vectors)
    assert float(unsure[is_anew].mean()) > float(unsure[~is_anew].mean()), "the least sure are first"


@pytest.mark.slow
@pytest.mark.parametrize("how_far", [("--apply",), ("--apply", "--reembed", "10%"), ("--apply", "--switch")])
def test_it_is_taken_back(store, call, how_far):
    before = vectors(store)
    was = checksum(Path("shop.index").read_bytes())
    assert call("upgrade", store, *MODELS, *how_far)[0] == 0
    status, printed, _ = call("upgrade", store, "--rollback")
    assert (status, printed.strip()) == (0, f"{store} is as it was before")
    assert torch.equal(vectors(store), before)
    assert checksum(Path("shop.index").read_bytes()) == was
    with opened(store) as found:
        assert set(found.fields()) == {"vector"}
        assert read_notes(found).upgrade is None
    assert best(store, call, old=True)["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_bad_input_is_a_sentence_and_changes_nothing(store, call):
    before = vectors(store)
    failed(call("upgrade", store), "--old MODEL is needed for a plan")
    failed(call("upgrade", store, "--apply"), "it needs a plan: --old MODEL --new MODEL makes one")
    failed(call("upgrade", store, "--switch"), "there is no upgrade under way")
    failed(call("upgrade", store, "--rollback", "--apply"), "--rollback stands alone")
    failed(call("upgrade", store, "--apply", "--out", "nowhere"), "holds no plan")
    assert call("upgrade", store, *MODELS)[0] == 0
    failed(call("upgrade", store, "--out", "plan", "--switch"), "no upgrade under way")
    for share in ("0", "101", "many", "nan"):
        failed(call("upgrade", store, "--out", "plan", "--apply", "--reembed", share), "percentage between 0 and 100")
    with opened(store) as found:
        assert read_notes(found).upgrade is None
    assert call("upgrade", store, "--out", "plan", "--apply")[0] == 0
    failed(call("upgrade", store, *MODELS), "has an upgrade under way, applied, whose plan is in")
    other = ("--old", "run", "--old-after", "1", "--new", "run", "--new-after", "0")
    for named in (("--out", "plan", *other), other):
        failed(
            call("upgrade", store, *named, "--apply", "--switch"),
            "--old run is the model .* is from .* leave --old and --new",
        )
    failed(call("upgrade", store, *other[4:], "--switch"), "--new run is the model .* the plan in .* is to ")
    failed(call("upgrade", store, "--drop-old"), "old vectors can go after --switch")
    other = ("upgrade", "shop.index" if store != "shop.index" else "other.index")
    shutil.copy("shop.index", "other.index")
    failed(call(*other, "--out", "plan", "--apply"), "the plan in plan is of")
    assert call("upgrade", store, "--switch")[0] == 0
    failed(call("upgrade", store, "--apply"), "nothing is left to be applied")
    failed(call("upgrade", store, "--reembed", "10%"), "comes after --apply and before --switch")
    assert call("upgrade", store, "--rollback")[0] == 0
    assert torch.equal(vectors(store), before)


@pytest.mark.slow
def test_for_pictures_that_are_gone_others_are_embedded_anew(store, call, made: Path):
    assert call("upgrade", store, *MODELS, "--apply")[0] == 0
    images = made / "images"
    for number in range(3):
        (images / f"c{number}").rename(made / f"c{number}")
    try:
        printed = call("upgrade", store, "--reembed", "50%")[1]
    finally:
        for number in range(3):
            (made / f"c{number}").rename(images / f"c{number}")
    assert "48 of 96 points are embedded anew, 48 now; " in printed
    assert "could not be read and stay as they were moved" in printed
