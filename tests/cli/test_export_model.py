"""The model of a run taken elsewhere: a folder that stands alone and starts other runs, and ONNX."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import tripletmas as tm
from tripletmas.basics.weights import state_of
from tripletmas.data.images import ImageFiles
from tripletmas.models.exported import read_exported
from tripletmas.models.making import make_model
from tripletmas.runs import onnx_file
from tripletmas.runs.deployed import from_pretrained
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import config_of
from tripletmas.runs.models import load_model, load_with_tasks
from tripletmas.runs.onnx_file import write_onnx
from tripletmas.runs.pretrained import save_pretrained

DATA = ("--data", "folder", "--data.tasks", "2", "--training.epochs", "1", "--training.batch_size", "8")


@pytest.fixture
def place(tmp_path, monkeypatch, write_images, call):
    """A run on images of two sides, by a network of timm, and the images."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        write_images(tmp_path / "images" / f"class{number}", count=6, seed=number)
    model = ("--model", "timm:resnet10t", "--data.size", "32x24", "--model.dim", "4")
    arguments = ("--data.root", "images", *DATA, *model, "--strategy", "finetune", "--out", "run")
    assert call("train", *arguments)[0] == 0
    return tmp_path


def images(model: tm.runs.models.RunModel) -> torch.Tensor:
    files = ImageFiles("images", ["class0/0.png", "class3/5.png"], model.prepared)
    return torch.stack([files[0], files[1]]).float() / 255


@pytest.mark.slow
def test_a_folder_stands_alone_and_starts_another_run(place, call, caplog):
    assert call("export", "run", "--pretrained", "exported")[0] == 0
    own, found = load_model(RunDirectory("run")), tm.from_pretrained("exported")
    assert found.hash == own.hash
    assert (found.prepared, found.mean, found.dim) == (own.prepared, own.mean, 4)
    torch.testing.assert_close(found.model(images(found)), own.model.eval()(images(own)))
    assert read_exported("exported")["classes"] == ["class0", "class1", "class2", "class3"]
    recall = RunDirectory("run").records("task")[-1]["scores"]["seen"]["recall@1"]
    card = Path("exported/README.md").read_text()
    assert f"| {recall[0]:.3f} |" in card
    assert "32 x 24" in card

    (place / "run").rename(place / "elsewhere")  # it stands alone
    with caplog.at_level(logging.INFO, "tripletmas"):
        arguments = ("--data.root", "images", *DATA, "--strategy", "pretrained", "--out", "again")
        assert call("train", "--model", "exported", *arguments)[0] == 0
    count = len(state_of(found.model))
    assert f"{count} of {count} tensors of the network start from it" in caplog.text
    config = config_of(RunDirectory("again"))
    assert (config["model"]["name"], config["data"]["size"]) == ("timm:resnet10t", "32x24")
    assert load_model(RunDirectory("again")).hash == found.hash  # trained by nothing: the same to the bit

    assert (
        call("train", "--model", "exported", "--data.root", "images", *DATA, "--data.size", "32", "--out", "b")[0] == 0
    )
    status, _, text = call(
        "train", "--model", "exported", "--model.dim", "5", "--data.root", "images", *DATA, "--out", "c"
    )
    assert status == 0, text  # a last layer of another size is drawn anew
    assert config_of(RunDirectory("c"))["model"]["dim"] == 5


@pytest.mark.slow
def test_what_export_refuses(place, call):
    for arguments, message in (
        ((), "export needs one of --embeddings FILE, --onnx FILE and --pretrained FOLDER"),
        (("--onnx", "a.onnx", "--pretrained", "b"), "export needs one of"),
        (("--pretrained", "images"), "images is there already: name another folder, or delete it"),
        (("--pretrained", "run/exported"), "would be written into the run"),
        (("--onnx", "images/class0/0.png"), "images/class0/0.png must end in .onnx"),
        (("--onnx", "a.onnx", "--after", "7"), "task 7"),
    ):
        status, _, text = call("export", "run", *arguments)
        assert status == 2
        assert message in text
    assert call("export", "run", "--pretrained", "exported")[0] == 0
    weights = Path("exported/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-100] ^= 64
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read \(its checksum is wrong\)"):
        from_pretrained("exported")
    config = json.loads(Path("exported/config.json").read_text())
    for broken, message in (
        ("[]", "is no model that tripletmas export --pretrained wrote"),
        ("{", "config.json cannot be read"),
        (json.dumps({**config, "model": 3}), "config.json is damaged"),
        (json.dumps({**config, "preparation": {"size": 3, "colours": 3}}), "config.json is damaged"),
        (
            json.dumps({**config, "model": {"name": "code.py:make"}}),
            "needs the code 'code.py:make', which is not executed",
        ),
    ):
        Path("exported/config.json").write_text(broken)
        with pytest.raises(ValueError, match=message):
            from_pretrained("exported")
    status, _, text = call("train", "--model", "exported", "--data.root", "images", *DATA, "--out", "d")
    assert status == 2
    assert "exported needs the code 'code.py:make'" in text


NET = """from torch import nn


def make(sample_shape):
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))
"""


@pytest.mark.slow
def test_what_goes_on_from_a_model_of_ones_own_code_is_said(tmp_path, monkeypatch, write_images, call):
    """A folder has no code, so what is printed and what the card says is to name the code, and it works."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        write_images(tmp_path / "images" / f"class{number}", count=6, seed=number)
    Path("nets.py").write_text(NET)
    arguments = ("--data.root", "images", *DATA, "--data.size", "8", "--strategy", "finetune")
    assert call("train", *arguments, "--model", "nets.py:make", "--out", "run")[0] == 0
    _, text, _ = call("export", "run", "--pretrained", "exported")
    said = " ".join(text.split()).partition("go on from it: tripletmas train ")[2].removesuffix(" ...").split()
    assert said == ["--model", f"{tmp_path}/nets.py:make", "--model.weights", "exported/model.safetensors"]
    assert call("train", *arguments, *said, "--out", "again")[0] == 0
    card = Path("exported/README.md").read_text()
    assert "--model nets.py:make --model.weights FOLDER/model.safetensors" in card
    assert "from_pretrained" not in card
    assert str(tmp_path) not in card


@pytest.mark.slow
def test_onnx_gives_the_same_embeddings(place, call):
    onnxruntime = pytest.importorskip("onnxruntime")
    status, text, _ = call("export", "run", "--onnx", "shop.onnx")
    assert status == 0
    assert "images (n, 3, 32, 24) with values in [0, 1] to embeddings (n, 4)" in " ".join(text.split())
    session, own = onnxruntime.InferenceSession("shop.onnx"), load_model(RunDirectory("run"))
    for count in (1, 2, 5):
        shown = images(own).repeat(3, 1, 1, 1)[:count]
        found = torch.from_numpy(session.run(["embeddings"], {"images": shown.numpy()})[0])
        torch.testing.assert_close(found, own.model.eval()(shown), rtol=1e-4, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["preparation"])["size"] == [32, 24]
    assert json.loads(about["classes"]) == ["class0", "class1", "class2", "class3"]
    assert about["model"] == own.hash


class Ending(nn.Module):
    """A network of one layer, and a function of images and of what that gives."""

    def __init__(self, end):
        super().__init__()
        self.layer, self.end = nn.Linear(32 * 24, 3), end

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.end(samples, self.layer(samples[:, 0].flatten(1)))


@pytest.mark.slow
def test_what_onnx_cannot_express_or_computes_otherwise(place, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_file, "FURTHEST", 0.0)
    with pytest.raises(ValueError, match=r"a\.onnx is not written: under onnxruntime embeddings differ by"):
        write_onnx(RunDirectory("run"), "a.onnx")
    monkeypatch.setattr(onnx_file, "FURTHEST", 1e-5)
    own, learned = load_with_tasks(RunDirectory("run"))
    monkeypatch.setattr(onnx_file, "load_with_tasks", lambda *_, **__: (own, learned))
    for end, message in (
        (lambda x, y: torch.linalg.eigvals(x[:, 0, :3, :3]).real + y, "cannot be expressed in ONNX: .*eig"),
        (
            lambda x, y: y * (2.0 if float(x.mean()) > 0.5 else 1.0),
            r"cannot be expressed in ONNX: what it does, .* depends on values of its input \(File .*test_export_model",
        ),
        (
            lambda x, y: torch.stack([each + 1 for each in y]),
            "onnxruntime cannot run the model with 1 samples, as",
        ),
    ):
        object.__setattr__(own, "model", Ending(end))
        with pytest.raises(ValueError, match=message) as found:
            write_onnx(RunDirectory("run"), "a.onnx")
        assert "\n" not in str(found.value)
    assert not Path("a.onnx").exists()


@pytest.mark.slow
def test_of_a_run_that_has_learned_some_tasks_the_card_says_which(tmp_path, monkeypatch, write_images, call):
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        write_images(tmp_path / "images" / f"class{number}", count=6, seed=number)
    model = ("--model", "mlp", "--model.hidden", "[]", "--data.size", "4", "--strategy", "finetune")
    assert call("train", "--data.root", "images", *DATA, *model, "--out", "run")[0] == 0
    made = save_pretrained(RunDirectory("run"), "first", after=0)
    assert made.after_task == 0
    assert read_exported("first")["classes"] == ["class0", "class1"]
    assert from_pretrained("first").hash == load_model(RunDirectory("run"), after=0).hash
    options = {**read_exported("first")["model"], "weights": "first/model.safetensors"}
    again = make_model(options.pop("name"), (3, 4, 4), options=options)
    assert all(torch.equal(a, b) for a, b in zip(state_of(again).values(), state_of(made.model).values(), strict=True))
