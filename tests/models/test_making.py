"""Models of libraries and files: their options, what is put around them, what their weights were made for."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from tripletmas.models import making
from tripletmas.models.making import completed, made_for, make_model, model_options, without_start
from tripletmas.models.networks import embedding_dim

SHAPE = (3, 32, 32)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"])
def test_timm_gives_what_its_classifier_would_see(name: str):
    torch.manual_seed(0)
    model = make_model(f"timm:{name}", SHAPE).eval()
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    images = torch.rand(2, *SHAPE)
    config = timm.get_pretrained_cfg(name)
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (config.mean, config.std))
    torch.testing.assert_close(model(images), network((images - mean) / deviation))
    assert embedding_dim(model, SHAPE) == network.num_features or name.startswith("mobilenet")


def test_timm_with_a_last_layer_and_grey_images_of_another_shape():
    model = make_model("timm:resnet18", (1, 40, 32), options={"dim": 7})
    assert model(torch.rand(2, 1, 40, 32)).shape == (2, 7)
    transformer = make_model("timm:vit_tiny_patch16_224", (3, 48, 32), options={"dim": None})
    assert transformer(torch.rand(2, 3, 48, 32)).shape == (2, 192)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("timm:resnet81", SHAPE, {}, r"timm has no model 'resnet81' \(did you mean"),
        (
            "timm:vit_tiny_patch16_224",
            (3, 8, 8),
            {},
            r"timm:vit_tiny_patch16_224 cannot take images of shape \(3, 8",
        ),
        ("timm:vit_tiny_patch16_224", (3, 30, 32), {}, "takes images of whole patches of 16x16 pixels, got 30x32"),
        ("timm:", SHAPE, {}, r"timm has no model '' \(timm\.list_models\(\) in Python lists them\)"),
        ("timm:resnet18", (16,), {}, r"timm:resnet18 takes images \(channels, height, width\)"),
        ("timm:resnet18", SHAPE, {"dim": 0}, "dim must be >= 1, or null for the features as they are, got 0"),
        ("timm:resnet18", SHAPE, {"mean": [0.5]}, "mean and deviation are given together"),
        ("timm:resnet18", SHAPE, {"mean": [0.5], "deviation": [0.0]}, "deviation must be > 0"),
        (
            "timm:resnet18",
            SHAPE,
            {"mean": [0.5, 0.5], "deviation": [1.0]},
            "mean has 2 numbers for images of 3 channels",
        ),
        ("timm:resnet18", SHAPE, {"dimm": 3}, r"model 'timm:resnet18' has no option 'dimm' \(did you mean 'dim'\?\)"),
    ],
)
def test_what_timm_cannot_do(name: str, shape: tuple[int, ...], options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_model(name, shape, options=options)


def test_without_a_network_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"timm's weights of 'resnet18' cannot be had \(.*\): connect to the internet"):
        make_model("timm:resnet18", SHAPE, options={"pretrained": True})


def test_a_network_is_completed():
    """By what it expects in front, and a last layer behind; where neither is asked for, it stays what it is."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    nn.init.constant_(network[1].weight, 1 / 3)
    assert completed(network, (3, 1, 1)) is network
    images = torch.ones(2, 3, 1, 1)
    torch.testing.assert_close(
        completed(network, (3, 1, 1), mean=[0.5], deviation=[0.25])(images), torch.full((2, 2), 2.0)
    )
    longer = completed(network, (3, 1, 1), dim=5)
    assert longer(images).shape == (2, 5)
    assert [name for name, _ in longer.named_parameters()] == [
        "backbone.1.weight",
        "embedding.weight",
        "embedding.bias",
    ]
    with pytest.raises(ValueError, match="dim must be >= 1, or null for what the network gives, got 0"):
        completed(network, (3, 1, 1), dim=0)


class TestOfOnesOwn:
    @pytest.fixture(autouse=True)
    def models(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def features(sample_shape: tuple[int, ...]) -> nn.Module:
            return nn.Flatten()

        def with_dim(sample_shape: tuple[int, ...], *, dim: int = 4) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(sample_shape).numel(), dim))

        features.preparation = {"size": 48, "crop": 0.9}  # pyright: ignore[reportFunctionMemberAccess]
        monkeypatch.setitem(making.MODELS, "features", features)
        monkeypatch.setitem(making.MODELS, "with_dim", with_dim)

    def test_dim_is_a_keyword_or_a_last_layer(self):
        assert make_model("features", (1, 2, 3))(torch.rand(2, 1, 2, 3)).shape == (2, 6)
        assert make_model("features", (1, 2, 3), options={"dim": 5})(torch.rand(2, 1, 2, 3)).shape == (2, 5)
        assert model_options("features")["dim"].default is None
        made = make_model("with_dim", (1, 2, 3), options={"dim": 5})
        assert [name for name, _ in made.named_parameters()] == ["1.weight", "1.bias"]
        assert model_options("with_dim")["dim"].default == 4

    def test_what_it_was_made_for_is_an_attribute(self, monkeypatch: pytest.MonkeyPatch):
        assert made_for("features", {}) == {"size": 48, "crop": 0.9}
        assert made_for("with_dim", {}) == {}
        monkeypatch.setattr(making.MODELS["features"], "preparation", {"sise": 48})
        with pytest.raises(ValueError, match=r"model 'features': preparation has no 'sise', only size, interpolation"):
            made_for("features", {})


def test_what_weights_were_made_for():
    """As timm and torchvision document them: resnet18 in torchvision is resized to 256 and cut to 224."""
    lite = made_for("timm:tf_efficientnet_lite0", {})
    half = [0.5, 0.5, 0.5]
    assert lite == {"size": 224, "interpolation": "bicubic", "crop": 0.875, "mean": half, "deviation": half}
    assert made_for("resnet18", {"pretrained": False}) == made_for("mlp", {}) == {}
    found = made_for("resnet18", {"pretrained": True})
    assert (found["size"], found["crop"], found["interpolation"]) == (224, 0.875, "bilinear")
    assert found["mean"] == [0.485, 0.456, 0.406]
    assert made_for("resnet18", {"weights": "net.pth"}) == found
    assert made_for("inception_v3", {"pretrained": True})["deviation"] == half


def test_where_weights_come_from_a_run_nothing_is_read(tmp_path):
    given = {"dim": 3, "pretrained": True, "weights": str(tmp_path / "gone.pth"), "weights_sha256": "00"}
    assert without_start("resnet18", given) == {**dict.fromkeys(given), "dim": 3, "pretrained": False}
    own = without_start("mine.py:make", {"pretrained": "imagenet", "weights": "gone.pth"})
    assert own == {"pretrained": "imagenet", "weights": None}  # what its own option means nobody knows


def test_each_gives_a_gradient_to_every_parameter():
    model = make_model("timm:efficientnet_lite0", SHAPE, options={"dim": 4})
    embeddings: Tensor = model(torch.rand(4, *SHAPE))
    embeddings.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_errors_of_code_of_ones_own_name_it(monkeypatch: pytest.MonkeyPatch):
    def broken(sample_shape: tuple[int, ...]) -> nn.Module:
        raise KeyError("scale")

    monkeypatch.setitem(making.MODELS, "/my/models.py:broken", broken)
    with pytest.raises(
        ValueError, match=r"model '/my/models.py:broken' cannot be made for samples \(3, 2, 2\): KeyError"
    ):
        make_model("/my/models.py:broken", (3, 2, 2))
