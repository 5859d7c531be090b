"""Weights of other programs: what wrappers and other last layers leave of them, and what is another network's."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from tripletmas.basics.foreign_weights import file_sha256, read_foreign_weights
from tripletmas.models.making import make_model
from tripletmas.models.start_weights import load_start_weights

SHAPE = (3, 32, 32)


@pytest.fixture
def resnet() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return torchvision.models.resnet18(num_classes=10).state_dict()


def started(file: Path, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return make_model("resnet18", SHAPE, options={"weights": str(file), "mean": [0.0], "deviation": [1.0], **options})


def wrapped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.model.", "model._orig_mod.net."])
@pytest.mark.parametrize("around", [None, "state_dict", "model"])
def test_wrappers_are_taken_off(resnet, prefix: str, around: str | None, tmp_path):
    content = wrapped(resnet, prefix)
    torch.save({around: content, "epoch": 3, "args": {"lr": 0.1}} if around else content, tmp_path / "net.pth")
    model = started(tmp_path / "net.pth").get_submodule("backbone")
    own = model.state_dict()
    for name, value in resnet.items():
        assert torch.equal(own[name], value) is not name.startswith("fc."), name


def test_safetensors_and_a_checkpoint_that_holds_more(resnet, tmp_path):
    save_file(resnet, tmp_path / "net.safetensors")
    # a checkpoint of Lightning: the network below `model.`, a teacher and a loss beside it
    state = wrapped(resnet, "model.") | {"loss.proxies": torch.zeros(3, 4), "teacher.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "hyper_parameters": {"dim": 3}}, tmp_path / "last.ckpt")
    for file in ("net.safetensors", "last.ckpt"):
        model = started(tmp_path / file).get_submodule("backbone")
        assert torch.equal(model.get_submodule("layer4.1.conv2").weight, resnet["layer4.1.conv2.weight"])


def test_names_can_need_a_prefix(tmp_path):
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    torch.save(inner.state_dict(), tmp_path / "inner.pth")
    outer = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))})
    load_start_weights(outer, str(tmp_path / "inner.pth"))
    assert torch.equal(outer["encoder"][0].weight, inner[0].weight)  # pyright: ignore[reportIndexIssue]


def test_what_is_left_out_is_said(resnet, tmp_path, caplog):
    torch.save(resnet, tmp_path / "net.pth")
    with caplog.at_level(logging.INFO, "tripletmas"):
        started(tmp_path / "net.pth", dim=5)
        started(tmp_path / "net.pth", dim=0)
    assert (
        "120 of 122 tensors of the network start from it; newly drawn: backbone.fc.weight, backbone.fc.bias"
        in caplog.text
    )
    assert "120 of 120 tensors of the network start from it; left out of the file: fc.weight, fc.bias" in caplog.text


def test_grey_images_get_the_mean_of_the_filters(resnet, tmp_path):
    torch.save(resnet, tmp_path / "net.pth")
    torch.manual_seed(0)
    options = {"weights": str(tmp_path / "net.pth"), "mean": [0.0], "deviation": [1.0]}
    model = make_model("resnet18", (1, 32, 32), options=options)
    grey = torch.rand(2, 1, 32, 32)
    expected = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), resnet["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(model.get_submodule("backbone.conv1")(grey), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "mobilenet_v3_small"])
def test_weights_of_another_network_are_refused(name: str, tmp_path):
    """resnet34 has all of resnet18's tensors in their shapes, and layers within it that it has not."""
    torch.save(torchvision.models.get_model(name).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth has the weights of another network: \d+ of 122 tensors fit; "):
        started(tmp_path / "net.pth")


def test_what_a_file_is_it_says_itself(resnet, tmp_path):
    """A file of safetensors that is called .pth was refused as one that would execute code."""
    save_file(resnet, tmp_path / "net.pth")
    torch.save(resnet, tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        assert torch.equal(read_foreign_weights(tmp_path / name)["conv1.weight"], resnet["conv1.weight"])


def test_integers_are_no_weights(resnet, tmp_path):
    """As a quantised network has them: rounded to -1, 0 and 1, all embeddings would be one."""
    torch.save({name: value.to(torch.int8) for name, value in resnet.items()}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth has the weights of another network: 20 of 122 tensors fit"):
        started(tmp_path / "net.pth")  # the 20 counters of batch norm are integers
    torch.save({name: value.half() for name, value in resnet.items()}, tmp_path / "half.pth")
    half = started(tmp_path / "half.pth").get_submodule("backbone.conv1").weight
    assert torch.equal(half, resnet["conv1.weight"].half().float())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_positions_of_another_size_are_resampled_as_timm_does(prefix: str, tmp_path, caplog):
    name = "vit_tiny_patch16_224"
    given = timm.create_model(name, num_classes=3).state_dict()
    torch.save(wrapped(given, prefix), tmp_path / "vit.pth")
    with caplog.at_level(logging.INFO, "tripletmas"):
        model = make_model(f"timm:{name}", (3, 64, 48), options={"weights": str(tmp_path / "vit.pth")})
    own = model.get_submodule("backbone").state_dict()
    expected = timm.layers.resample_abs_pos_embed(given["pos_embed"], [4, 3], num_prefix_tokens=1)
    assert torch.equal(own["pos_embed"], expected)
    assert torch.equal(own["blocks.3.mlp.fc1.weight"], given["blocks.3.mlp.fc1.weight"])
    assert "150 of 150 tensors of the network start from it; left out of the file: head.weight" in caplog.text


def test_weights_that_are_not_finite_are_refused(resnet, tmp_path):
    """Trained on, they would make the loss nan, for which the learning rate would be blamed."""
    resnet["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(resnet, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth holds weights that are nan or infinite, in: \S*layer1\.0\.conv1"):
        started(tmp_path / "net.pth")


def test_files_that_hold_no_weights(tmp_path, resnet):
    torch.save(resnet, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "hello.pth").write_text("hello\n")  # torch's own words for it are "101"
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "folder").mkdir()
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for file, message in (
        ("absent.pth", "no such file: .*absent.pth"),
        ("folder", "is no file of weights"),
        ("cut.pth", r"cut\.pth cannot be read as a torch file, and may be damaged: [^.]*$"),
        ("text.pth", r"text\.pth (cannot be read as a torch file|holds more than tensors)"),
        ("empty.pth", r"empty\.pth cannot be read as a torch file: it is none"),
        ("hello.pth", r"hello\.pth cannot be read as a torch file: it is none"),
        ("text.safetensors", "cannot be read as safetensors: "),
        ("none.pth", "holds no weights: tensors by name"),
        ("module.pth", r"would execute code: save model\.state_dict\(\) alone"),
    ):
        with pytest.raises(ValueError, match=message):
            read_foreign_weights(tmp_path / file)


def test_the_file_must_be_the_one_that_was_recorded(tmp_path, resnet):
    torch.save(resnet, tmp_path / "net.pth")
    found = file_sha256(tmp_path / "net.pth")
    assert read_foreign_weights(tmp_path / "net.pth", found).keys() == resnet.keys()
    with pytest.raises(ValueError, match=r"net\.pth is not the file it was: its SHA-256 is"):
        started(tmp_path / "net.pth", weights_sha256="0" * 64)
