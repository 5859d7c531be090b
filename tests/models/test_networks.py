"""Every model gives raw embeddings of the right shape and lets a gradient reach every parameter."""

from __future__ import annotations

import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from tripletmas.models.from_torchvision import backbone
from tripletmas.models.making import Normalize, constructor_for, make_model, model_names
from tripletmas.models.networks import conv4, embedding_dim, mlp
from tripletmas.objectives.collapse import spread

# name -> the smallest size of image at which it is tested here
SIZES = {
    "mlp": 8,
    "conv4": 28,
    "resnet18": 28,
    "mobilenet_v3_small": 28,
    "shufflenet_v2_x0_5": 28,
    "squeezenet1_1": 32,
    "googlenet": 32,
}
SLOW_SIZES = {"inception_v3": 75, "vit_b_16": 32, "densenet121": 32, "vgg11": 32, "convnext_tiny": 32, "swin_t": 32}
ALL_SIZES = [
    *SIZES.items(),
    *(pytest.param(name, size, marks=pytest.mark.slow) for name, size in SLOW_SIZES.items()),
]


def seeded(name: str, shape: tuple[int, ...], dim: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return make_model(name, shape, options={"dim": dim})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "size"), ALL_SIZES)
def test_embeddings_are_raw_and_every_parameter_gets_a_gradient(name: str, size: int, channels: int):
    model = seeded(name, (channels, size, size))
    assert model.training
    embeddings = model(torch.rand(4, channels, size, size))
    assert embeddings.shape == (4, 6)
    assert embeddings.norm(dim=1).std() > 0  # a normalised embedding has constant length
    embeddings.square().sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["mlp", "conv4", "resnet18", "squeezenet1_1"])
def test_the_seed_decides_the_weights(name: str):
    first, second = seeded(name, (1, 32, 32)).state_dict(), seeded(name, (1, 32, 32)).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    third = make_model(name, (1, 32, 32), options={"dim": 6}).state_dict()
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_squeezenet_embeddings_take_both_signs():
    model = seeded("squeezenet1_1", (3, 32, 32), dim=64).eval()
    embeddings = model(torch.rand(2, 3, 32, 32))
    assert embeddings.min() < 0 < embeddings.max()


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18", 32, 512),
        ("squeezenet1_1", 32, 512),
        pytest.param("alexnet", 64, 4096, marks=pytest.mark.slow),
        pytest.param("vit_b_16", 32, 768, marks=pytest.mark.slow),
    ],
)
def test_without_a_new_last_layer_the_embedding_is_what_the_classifier_sees(name: str, size: int, expected: int):
    torch.manual_seed(0)
    model = backbone((3, size, size), name=name, dim=0).eval()
    whole = torchvision.models.get_model(name, **({"image_size": size} if name.startswith("vit") else {})).eval()
    missing = whole.load_state_dict(model.state_dict(), strict=False)
    assert not missing.unexpected_keys
    classifier = [module for module in whole.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    seen: list[Tensor] = []
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        whole(images)
        embeddings = model(images)
    features = seen[0].mean(dim=(2, 3)) if seen[0].ndim == 4 else seen[0]  # squeezenet classifies, then takes the mean
    torch.testing.assert_close(embeddings, features)
    assert embeddings.shape == (2, expected)
    assert embedding_dim(model, (3, size, size)) == expected
    with pytest.raises(ValueError, match="dim must be >= 1, or 0 for no new last layer, got -1"):
        backbone((3, size, size), name=name, dim=-1)


def test_embedding_dim_leaves_the_model_as_it_was():
    model = conv4((1, 28, 28), dim=5)
    model.get_submodule("block2").eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert embedding_dim(model, (1, 28, 28)) == 5
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(
        ValueError, match=r"must return embeddings \(batch, dim\), but returned \(2, 4, 3, 3\) for two samples"
    ):
        embedding_dim(nn.Conv2d(1, 4, 2), (1, 4, 4))


def test_mlp_takes_any_shape_and_any_depth():
    assert mlp((5,), dim=3, hidden=())(torch.zeros(2, 5)).shape == (2, 3)
    model = mlp((1, 8, 8), dim=32, hidden=(256, 256))
    # 64*256 + 256, 256*256 + 256, 256*32 + 32
    assert sum(parameter.numel() for parameter in model.parameters()) == 16640 + 65792 + 8224


def test_conv4_at_28_ends_in_a_map_of_one_by_one():
    model = conv4((1, 28, 28), dim=10, width=7)
    assert model.get_submodule("embedding").weight.shape == (10, 7)
    assert conv4((1, 35, 48))(torch.zeros(2, 1, 35, 48)).shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv4", (1, 8, 8), "conv4 needs images of 16x16 or more, got 8x8"),
        ("conv4", (64,), r"conv4 takes images \(channels, height, width\), got samples of shape \(64,\)"),
        ("squeezenet1_1", (3, 8, 8), r"squeezenet1_1 cannot take images of shape \(3, 8, 8\): "),
        ("vit_b_16", (3, 28, 28), "vit_b_16 takes square images whose side is a multiple of 16, got 28x28"),
    ],
)
def test_a_shape_that_a_model_cannot_take(name: str, shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        make_model(name, shape)


def test_unknown_names_and_options_get_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown model 'resnet81' \(did you mean 'resnet18'\?\)"):
        make_model("resnet81", (3, 32, 32))
    with pytest.raises(ValueError, match=r"model 'conv4' has no option 'widht' \(did you mean 'width'\?\)$"):
        make_model("conv4", (1, 28, 28), options={"widht": 3})
    with pytest.raises(
        ValueError,
        match=r"model 'resnet18' has no option 'name' \(known: dim, pretrained, weights, ",
    ):
        make_model("resnet18", (3, 32, 32), options={"name": "resnet34"})
    with pytest.raises(ValueError, match="dim must be >= 1, got 0"):
        make_model("mlp", (4,), options={"dim": 0})


def test_the_names_are_ours_and_the_classification_models():
    names = model_names()
    assert names[:2] == ("mlp", "conv4")
    assert {"resnet50", "vit_b_16"} <= set(names)
    assert not any(name.startswith(("fcn", "fasterrcnn", "raft", "quantized", "r3d")) for name in names)
    assert all(callable(constructor_for(name)) for name in names)


def test_the_options_are_a_command_line():
    parser = ArgumentParser()
    parser.add_function_arguments(mlp, "model", skip={"sample_shape"})
    parsed = parser.parse_args(["--model.hidden", "[16,8]", "--model.dim", "4"])
    assert tuple(parsed.model.hidden) == (16, 8)
    assert parsed.model.dim == 4


class TestPretrained:
    """Pretrained weights without a download: torchvision's loader is replaced by one that gives known weights."""

    @pytest.fixture
    def weights(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
        torch.manual_seed(1)
        state = torchvision.models.resnet18().state_dict()
        monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: state)
        return state

    def test_colour_images_are_normalised_in_front(self, weights: dict[str, Tensor]):
        model = make_model("resnet18", (3, 32, 32), options={"dim": 5, "pretrained": True}).eval()
        assert isinstance(model, nn.Sequential)
        plain = torchvision.models.resnet18()
        plain.load_state_dict(weights)
        plain.fc = model.get_submodule("backbone.fc")  # pyright: ignore[reportAttributeAccessIssue]
        images = torch.rand(2, 3, 32, 32)
        # ImageNet's mean and deviation, as torchvision documents them for these weights
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        normalised = (images - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        torch.testing.assert_close(model(images), plain.eval()(normalised))
        assert not [key for key in model.state_dict() if key.startswith("normalize")]

    @pytest.mark.parametrize("channels", [1, 4])
    def test_equal_channels_give_the_activations_of_a_grey_rgb_image(self, weights: dict[str, Tensor], channels: int):
        model = make_model("resnet18", (channels, 32, 32), options={"pretrained": True})
        grey = torch.rand(2, 1, 32, 32)
        expected = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weights["conv1.weight"], stride=2, padding=3)
        first = model.get_submodule("backbone.conv1")
        torch.testing.assert_close(first(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "size", "weights_of"),
        [
            ("googlenet", 32, torchvision.models.GoogLeNet_Weights),
            pytest.param("inception_v3", 75, torchvision.models.Inception_V3_Weights, marks=pytest.mark.slow),
        ],
    )
    def test_inceptions_normalise_once_and_have_no_auxiliary_heads(
        self, monkeypatch: pytest.MonkeyPatch, name: str, size: int, weights_of: type
    ):
        state = torchvision.models.get_model(name, init_weights=False).state_dict()
        monkeypatch.setattr(weights_of, "get_state_dict", lambda *_, **__: state)
        model = make_model(name, (1, size, size), options={"dim": 4, "pretrained": True})
        assert model(torch.rand(2, 1, size, size)).shape == (2, 4)
        assert not [key for key in model.state_dict() if "aux" in key.lower()]
        torch.testing.assert_close(model.get_submodule("normalize")(torch.ones(1, 1, 2, 2)), torch.ones(1, 1, 2, 2))

    def test_without_a_network_one_sentence(self, monkeypatch: pytest.MonkeyPatch):
        def offline(*_: object, **__: object) -> None:
            raise OSError("Name or service not known")

        monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
        with pytest.raises(ValueError, match=r"cannot download the pretrained weights of 'resnet18' \(Name or service"):
            backbone((3, 32, 32), name="resnet18", pretrained=True)

    def test_a_pretrained_transformer_has_one_size(self):
        with pytest.raises(ValueError, match="the pretrained vit_b_16 takes images of 224x224, got 32x32"):
            backbone((3, 32, 32), name="vit_b_16", pretrained=True)

    def test_normalize_by_hand(self):
        images = torch.full((1, 2, 1, 1), 0.9)
        # other than three channels: mean (0.2 + 0.3 + 0.4) / 3 = 0.3, deviation (0.1 + 0.2 + 0.3) / 3 = 0.2; 0.6 / 0.2
        normalised = Normalize((0.2, 0.3, 0.4), (0.1, 0.2, 0.3), channels=2)(images)
        torch.testing.assert_close(normalised, torch.full((1, 2, 1, 1), 3.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_from_scratch_eval_mode_tells_images_apart_after_a_few_steps(name: str):
    """torchvision's mobilenet_v3 moves running statistics by 0.01 a step: all embeddings were then equal to 1e-14."""
    torch.manual_seed(0)
    model, images = make_model(name, (3, 32, 32), options={"dim": 16}), torch.rand(16, 3, 32, 32)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {module.momentum for module in norms} == {0.1}
    with torch.no_grad():
        for _ in range(60):
            model(images)
        assert spread(model(images)) > 1e-3
        assert spread(model.eval()(images)) > 1e-3


class Returning(nn.Module):
    """A model that returns what a function makes of its embeddings."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = nn.Linear(4, 3), change

    def forward(self, samples: Tensor):
        return self.change(self.layer(samples))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: (found, found), "embeddings \\(batch, dim\\) alone, but returned a tuple"),
        (lambda found: {"embedding": found}, "alone, but returned a dict"),
        (lambda found: found.mean(dim=0), "but returned \\(3,\\) for two samples"),
        (lambda found: found[:1], "but returned \\(1, 3\\) for two samples"),
        (lambda found: found.round().long(), "but returned \\(2, 3\\) of torch.int64 for two samples"),
    ],
)
def test_what_is_no_embedding(change, message: str):
    with pytest.raises(ValueError, match=message):
        embedding_dim(Returning(change), (4,))
