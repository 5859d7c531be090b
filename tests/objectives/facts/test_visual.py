"""The visual view is its model up to the cut, and two independent copies of the rest; nothing is shared by mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import oracles
import pytest
import torch
import torchvision
from architectures import settled
from torch import Tensor, nn

from tripletmas import local_mas_importance, make_model, mas_importance
from tripletmas.objectives.facts import visual
from tripletmas.objectives.facts.visual import VisualView, make_visual_view

PARTS = ("trunk", "subject", "predicate_object")

# name -> size of image, the default cut, and what comes right after it
CUTS = {
    "mlp": (8, "relu1", "hidden2"),
    "conv4": (28, "block2", "block3"),
    "resnet18": (32, "layer2", "layer3"),
    "mobilenet_v3_small": (32, "features.6", "features.7"),
    "squeezenet1_1": (32, "features.8", "features.9"),
    "shufflenet_v2_x0_5": (32, "stage2", "stage3"),
    "regnet_y_400mf": (32, "trunk_output.block2", "trunk_output.block3"),
    "googlenet": (32, "maxpool3", "inception4a"),
    # slow from here on
    "resnet50": (32, "layer2", "layer3"),
    "resnet152": (32, "layer2", "layer3"),
    "efficientnet_b0": (32, "features.4", "features.5"),
    "densenet121": (32, "features.transition2", "features.denseblock3"),
    "convnext_tiny": (32, "features.4", "features.5"),
    "swin_t": (32, "features.4", "features.5"),
    "inception_v3": (75, "Mixed_6c", "Mixed_6d"),
    "vit_b_16": (32, "encoder.layers.encoder_layer_5", "encoder.layers.encoder_layer_6"),
    "alexnet": (64, "features.5", "features.6"),
    "vgg16": (32, "features.16", "features.17"),  # as in Sherlock: behind the third of five blocks
}
ALL_CUTS = [pytest.param(name, marks=[pytest.mark.slow] * (number >= 8)) for number, name in enumerate(CUTS)]


def made(name: str, size: int, **options: object) -> VisualView:
    torch.manual_seed(0)
    return make_visual_view(name, (3, size, size), **{"dim": 5, **options})  # pyright: ignore[reportArgumentType]


def lively(view: VisualView, size: int) -> nn.Module:
    """With running statistics of real activations: with those it is made with, a deep model maps all to one vector."""
    for module in view.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    return settled(view, 3, size, size)


def storages(module: nn.Module) -> list[int]:
    return [value.untyped_storage().data_ptr() for value in [*module.parameters(), *module.buffers()]]


def names_of(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def assert_apart(view: VisualView) -> None:
    found = storages(view)
    assert len(set(found)) == len(found) == sum(len(storages(view.get_submodule(part))) for part in PARTS)


def whole(view: VisualView, name: str, size: int, branch: str, dim: int) -> nn.Module:
    """The model as it is without a cut, its weights those of the trunk and of one branch: by name, none missing."""
    model = make_model(name, (3, size, size), options={"dim": dim})
    model.load_state_dict({**view.trunk.state_dict(), **view.get_submodule(branch).state_dict()})
    return model.eval()


@pytest.mark.parametrize("name", ALL_CUTS)
def test_it_is_its_model_with_two_ends(name: str):
    size, cut, follows = CUTS[name]
    view = made(name, size)
    assert view.training
    assert view.branch_at == cut
    assert any(key == follows for key, _ in view.subject.named_modules())
    assert not any(key == follows for key, _ in view.trunk.named_modules())
    assert_apart(view)
    images = torch.rand(2, 3, size, size)
    lively(view, size).eval()
    with torch.no_grad():
        vectors = view(images)
        subject = whole(view, name, size, "subject", 5)(images)
        predicate_object = whole(view, name, size, "predicate_object", 10)(images)
    torch.testing.assert_close(vectors, torch.cat([subject, predicate_object], dim=1))
    assert vectors.shape == (2, 15)
    assert names_of(view.subject) == names_of(view.predicate_object)


def test_vectors_are_raw():
    view, images = made("conv4", 28).eval(), torch.rand(4, 3, 28, 28)
    before = view(images)
    with torch.no_grad():
        for parameter in view.subject.get_submodule("embedding").parameters():
            parameter.mul_(3)
    torch.testing.assert_close(view(images), before * torch.tensor([3.0] * 5 + [1.0] * 10))


@pytest.mark.parametrize("name", ["mlp", "conv4", "resnet18", "squeezenet1_1"])
def test_a_gradient_stays_in_its_branch(name: str):
    size = CUTS[name][0]
    view = made(name, size)
    images = torch.rand(4, 3, size, size)
    for columns, reached in ((slice(0, 5), "subject"), (slice(5, 10), PARTS[2]), (slice(10, 15), PARTS[2])):
        view.zero_grad(set_to_none=True)
        view(images)[:, columns].square().sum().backward()
        moved = {part: [each.grad for each in view.get_submodule(part).parameters()] for part in PARTS}
        for part, gradients in moved.items():
            if part in ("trunk", reached):
                assert all(each is not None for each in gradients)
            assert any(each is not None and each.any() for each in gradients) == (part in ("trunk", reached))


def test_names_are_those_of_the_model_below_the_part():
    names = names_of(made("resnet18", 32))
    assert names[0] == "trunk.conv1.weight"
    assert {"trunk.layer2.1.conv2.weight", "subject.layer3.0.downsample.0.weight", "subject.fc.bias"} <= set(names)
    assert {"predicate_object.layer3.0.downsample.0.weight", "predicate_object.fc.bias"} <= set(names)
    assert {name.split(".")[0] for name in names} == set(PARTS)


def test_the_branches_begin_apart_and_the_seed_decides():
    view, again = made("conv4", 28), made("conv4", 28)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in view.state_dict().items())
    weights = dict(view.named_parameters())
    assert not torch.equal(weights["subject.block3.conv.weight"], weights["predicate_object.block3.conv.weight"])
    other = make_visual_view("conv4", (3, 28, 28), dim=5)
    assert not torch.equal(
        weights["trunk.block1.conv.weight"], dict(other.named_parameters())["trunk.block1.conv.weight"]
    )


@pytest.mark.parametrize("name", ["conv4", "resnet18"])
def test_states_and_copies(name: str):
    size = CUTS[name][0]
    view, images = settled(made(name, size), 3, size, size).eval(), torch.rand(3, 3, size, size)
    expected = view(images)
    twin = copy.deepcopy(view)
    assert isinstance(twin, VisualView)
    assert_apart(twin)
    assert not set(storages(twin)) & set(storages(view))
    assert torch.equal(twin(images), expected)
    assert twin.branch_at == view.branch_at
    fresh = make_visual_view(name, (3, size, size), dim=5).eval()
    assert not torch.equal(fresh(images), expected)
    fresh.load_state_dict(view.state_dict())
    assert torch.equal(fresh(images), expected)
    with torch.no_grad():
        next(twin.subject.parameters()).zero_()
    assert torch.equal(view(images), expected)


def test_train_and_eval_reach_norms_and_dropout_in_all_parts():
    view = made("mobilenet_v3_small", 32)  # batch norm everywhere, dropout in the head
    images = torch.rand(8, 3, 32, 32)
    before = {key: value.clone() for key, value in view.named_buffers()}
    view(images)
    assert all(not torch.equal(value, before[key]) for key, value in view.named_buffers())
    view.eval()
    before = {key: value.clone() for key, value in view.named_buffers()}
    assert torch.equal(view(images), view(images))
    assert all(torch.equal(value, before[key]) for key, value in view.named_buffers())
    for part in ("subject", "predicate_object"):
        branch, shared = view.get_submodule(part), view.trunk(images).detach()
        for module in branch.modules():
            module.training = isinstance(module, nn.Dropout)
        assert not torch.equal(branch(shared.clone()), branch(shared.clone()))
        branch.eval()
        assert torch.equal(branch(shared.clone()), branch(shared.clone()))


def test_a_branch_that_begins_in_place_does_not_change_what_the_other_sees():
    view = lively(made("mobilenet_v3_small", 32, branch_at="features.0.1"), 32).eval()
    assert view.subject.get_submodule("features.0.2").inplace
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        shared = view.trunk(images)
        subject, predicate_object = view.subject(shared.clone()), view.predicate_object(shared.clone())
        torch.testing.assert_close(view(images), torch.cat([subject, predicate_object], dim=1))


# --- where it is cut


@pytest.mark.parametrize(
    ("name", "cut", "holds"),
    [("conv4", "block1", 1), ("conv4", "block3.conv", 3), ("resnet18", "layer3.0", 13), ("mlp", "flatten", 0)],
)
def test_a_cut_by_name(name: str, cut: str, holds: int):
    view = made(name, 32, branch_at=cut)
    assert view.branch_at == cut
    # layers by hand: resnet18 has a first convolution, 4 in each of layer1 and 2 and one beside, and 3 in layer3.0
    found = sum(parameter.ndim > 1 for parameter in view.trunk.parameters())
    assert found == holds
    assert view(torch.rand(2, 3, 32, 32)).shape == (2, 15)
    assert_apart(view)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("vgg16", "features.16"),
        ("densenet201", "features.transition2"),
        ("resnet152", "layer2"),
        ("swin_s", "features.4"),
    ],
)
def test_the_default_is_the_same_place_in_large_models(name: str, cut: str):
    with torch.device("meta"):  # without their weights
        model = torchvision.models.get_model(name)
    assert visual._default_cut(model, name) == cut


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("conv4", {"branch_at": "blok2"}, r"^conv4 has no module 'blok2' to branch at \(did you mean 'block2'\?\)$"),
        ("conv4", {"branch_at": ""}, r"^conv4 has no module '' to branch at \(known: block1, "),
        (
            "conv4",
            {"branch_at": "embedding"},
            "conv4 cannot branch at 'embedding': .* possible are block1, block2, block3",
        ),
        (
            "resnet18",
            {"branch_at": "layer1.0.conv1"},
            r"resnet18 cannot branch at 'layer1.0.conv1': .* conv1, bn1, relu",
        ),
        ("mlp", {"options": {"hidden": ()}}, "mlp has no place in the middle to branch at"),
        ("resnet81", {}, r"unknown model 'resnet81' \(did you mean 'resnet18'\?\)"),
        ("conv4", {"options": {"widht": 3}}, r"model 'conv4' has no option 'widht' \(did you mean 'width'\?\)$"),
        ("conv4", {"options": {"dim": 3}}, "the length of a part's vector is given as dim="),
        ("resnet18", {"dim": 0}, "dim must be >= 1, got 0"),
    ],
)
def test_what_cannot_be_cut(name: str, options: Mapping, message: str):
    with pytest.raises(ValueError, match=message):
        made(name, 32, **options)


class Odd(nn.Module):
    """A model that `make_model` does not make."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)


class Branching(Odd):
    """Its forward method looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x) if x.sum() > 0 else self.two(-x)


class TrainsOtherwise(Odd):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.dropout(self.one(x), 0.5, self.training))


class CalledTwice(Odd):
    """One layer before the cut and behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.two(self.one(x)))


def of_odd(model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch, branch_at: str | None = None) -> VisualView:
    monkeypatch.setattr(visual, "make_model", lambda name, shape, options: model())
    return make_visual_view("odd", (4,), dim=4, branch_at=branch_at)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching, r"the forward method of odd cannot be traced \(.*\): branch at a module"),
        (TrainsOtherwise, "the forward method of odd computes other things in training"),
    ],
)
def test_a_forward_method_that_cannot_be_traced(model: type[nn.Module], message: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=message):
        of_odd(model, monkeypatch)
    # inside a module that stays whole, it is right
    view = of_odd(lambda: nn.Sequential(model(), nn.Linear(4, 4)), monkeypatch, branch_at="0")
    assert view(torch.rand(2, 4)).shape == (2, 8)


def test_a_module_called_on_both_sides_is_one_in_each_part(monkeypatch: pytest.MonkeyPatch):
    view = of_odd(CalledTwice, monkeypatch, branch_at="two")
    assert names_of(view.trunk) == ["one.weight", "one.bias", "two.weight", "two.bias"]
    assert names_of(view.subject) == ["one.weight", "one.bias"]
    assert_apart(view)


@pytest.mark.slow
def test_pretrained_weights_are_in_all_parts_and_shared_by_none(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(1)
    weights = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: weights)
    for branch_at in (None, "layer2", "backbone.layer2"):
        view = made("resnet18", 32, options={"pretrained": True}, branch_at=branch_at)
        assert view.branch_at == "backbone.layer2"
        assert torch.equal(view.trunk.get_parameter("backbone.conv1.weight"), weights["conv1.weight"])
        for part in (view.subject, view.predicate_object):
            assert torch.equal(part.get_parameter("backbone.layer4.0.conv1.weight"), weights["layer4.0.conv1.weight"])
        assert_apart(view)
    with pytest.raises(ValueError, match=r"no module 'layer5' to branch at \(did you mean 'layer"):
        made("resnet18", 32, options={"pretrained": True}, branch_at="layer5")


def test_conv4_keeps_its_layout():
    view = made("conv4", 28)
    for part, block in (("trunk", 1), ("trunk", 2), ("subject", 3), ("predicate_object", 4)):
        weight = view.get_submodule(part).get_parameter(f"block{block}.conv.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last)
    shared = view.trunk(torch.rand(2, 3, 28, 28))
    assert shared.is_contiguous(memory_format=torch.channels_last)
    assert shared.clone().is_contiguous(memory_format=torch.channels_last)


# --- importance


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("conv4", {"width": 6}), ("resnet18", {})])
def test_importance_is_that_of_single_samples(name: str, options: dict):
    size = CUTS[name][0]
    view = settled(made(name, size, options=options), 3, size, size).double()
    images = torch.rand(3, 3, size, size, dtype=torch.float64)
    found = mas_importance(view, images.split(2))
    assert_same(found, oracles.mas_importance(view, images.split(1)))
    for part in PARTS:
        assert all(value.any() for key, value in found.items() if key.startswith(part))


def test_local_importance_is_that_of_each_part_alone():
    """A layer by itself knows nothing of the other branch: what each chain gives on its own input."""
    view = settled(made("conv4", 28, options={"width": 6}), 3, 28, 28).double().eval()
    images = torch.rand(5, 3, 28, 28, dtype=torch.float64)
    found = local_mas_importance(view, images.split(3))
    assert list(found) == names_of(view)
    shared = view.trunk(images).detach()
    expected = {}
    for part, inputs in (("trunk", images), ("subject", shared), ("predicate_object", shared)):
        alone = local_mas_importance(view.get_submodule(part), [inputs])
        expected |= {f"{part}.{key}": value for key, value in alone.items()}
    assert_same(found, expected)
    last = view.subject.get_submodule("embedding")
    seen: list[Tensor] = []
    with last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach())):
        view(images)
    assert_same(
        {key: found[f"subject.embedding.{key}"] for key in ("weight", "bias")},
        oracles.mas_importance(last, seen[0].split(1)),
    )
    assert all(value.any() for value in found.values())
