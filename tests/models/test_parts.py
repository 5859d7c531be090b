"""What is called the last layer, and what is frozen by which name."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

from tripletmas.basics.weights import trainable
from tripletmas.models.making import make_model
from tripletmas.models.parts import freeze, last_layer, still_norms


def block(width: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(2, width, 1), norm=nn.BatchNorm2d(width)))


def staged() -> nn.Module:
    """backbone.stem, backbone.blocks.0, .1 and .10, embedding."""
    blocks = nn.ModuleDict({name: block(2) for name in ("0", "1", "10")})
    backbone = nn.ModuleDict({"stem": block(2), "blocks": blocks})
    return nn.ModuleDict({"backbone": backbone, "embedding": nn.Linear(2, 3)})


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ("backbone.stem", ["backbone.stem"]),
        ("stem,blocks.0", ["backbone.stem", "backbone.blocks.0"]),  # what stands before them may be left out
        (" stem , ", ["backbone.stem"]),
        ("blocks.1", ["backbone.blocks.1"]),  # and not blocks.10
        ("blocks.1*", ["backbone.blocks.1", "backbone.blocks.10"]),
        ("backbone.blocks.[0-1]", ["backbone.blocks.0", "backbone.blocks.1"]),
        ("backbone", ["backbone"]),
        ("embedding.bias", ["embedding.bias"]),
    ],
)
def test_names_and_patterns(patterns: str, frozen: list[str]):
    model = staged()
    freeze(model, patterns)
    expected = {name for name, _ in model.named_parameters() if name.startswith(tuple(f"{each}." for each in frozen))}
    expected |= {name for name in frozen if name in dict(model.named_parameters())}
    assert {name for name, each in model.named_parameters() if not each.requires_grad} == expected
    assert expected


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_a_stage_of_timm(name: str):
    """`stem` is what timm's own tables call conv_stem and bn1, or conv1 and bn1, and is no name in the network."""
    model = make_model(f"timm:{name}", (3, 32, 32), options={"mean": [0.5], "deviation": [0.5]})
    freeze(model, "stem")
    first = "conv_stem" if name.startswith("tf_") else "conv1"
    expected = {f"backbone.{first}.weight", "backbone.bn1.weight", "backbone.bn1.bias"}
    assert {name for name, each in model.named_parameters() if not each.requires_grad} == expected
    assert still_norms(model) == [model.get_submodule("backbone.bn1")]


def test_patterns_of_weights():
    model = staged()
    freeze(model, "*.bias,*norm*")
    assert set(trainable(model)) == {
        name for name, _ in model.named_parameters() if name.endswith(("v.weight", "g.weight"))
    }


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("stme", r"the model has no 'stme' \(did you mean 'stem'\?\)"),
        ("block", r"the model has no 'block' \(did you mean 'blocks'\?\)"),
        ("bone", r"the model has no 'bone' \(did you mean 'backbone'\?\)"),
        ("backbone.stim", r"the model has no 'backbone.stim' \(did you mean 'backbone.stem'\?\)"),
        ("zzz", r"the model has no 'zzz' \(known: backbone, embedding, backbone.blocks, "),
        ("conv", r"'conv' is in several parts of the model \(backbone.stem, backbone.blocks.0, .*'\*.conv' for all"),
        ("backbone,embedding", r"leaves nothing of the model to train \('backbone,embedding' is all\)"),
        ("*", "leaves nothing of the model to train"),
        (" , ", "freeze takes names of parts of the model, separated by commas, got ' , '"),
    ],
)
def test_names_that_cannot_be(patterns: str, message: str):
    model = staged()
    with pytest.raises(ValueError, match=message):
        freeze(model, patterns)
    assert trainable(model).keys() == dict(model.named_parameters()).keys()  # nothing was touched


def test_what_is_already_frozen_counts_as_such():
    model = staged()
    model.get_submodule("embedding").requires_grad_(False)
    with pytest.raises(ValueError, match="leaves nothing"):
        freeze(model, "backbone")
    freeze(model, "backbone.blocks")
    freeze(model, "backbone.blocks")
    assert set(trainable(model)) == {f"backbone.stem.{name}" for name, _ in block(2).named_parameters()}


def test_a_tied_weight_is_known_by_both_of_its_names():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    freeze(model, "b.weight")
    assert set(trainable(model)) == {"a.bias", "b.bias"}


def test_batch_norm_whose_weights_are_frozen_stands_still():
    plain = nn.BatchNorm2d(2, affine=False)
    model = nn.ModuleDict({"one": block(2), "two": block(2)})
    model["one"].add_module("plain", plain)
    assert still_norms(model) == []
    freeze(model, "one.norm")
    assert still_norms(model) == [model["one"].norm]
    freeze(model, "one")  # a norm without weights goes with what is beside it
    assert still_norms(model) == [model["one"].norm, plain]
    assert still_norms(nn.BatchNorm1d(2, affine=False)) == []


@pytest.mark.parametrize(
    ("name", "shape", "options", "last"),
    [
        ("timm:efficientnet_lite0", (3, 32, 32), {"dim": 4}, "backbone.classifier"),
        ("timm:convnext_atto", (3, 32, 32), {"dim": 4}, "backbone.head.fc"),
        ("timm:resnet10t", (3, 32, 32), {"dim": 4}, "backbone.fc"),
        ("resnet18", (3, 32, 32), {"dim": 4, "mean": [0.5], "deviation": [0.5]}, "backbone.fc"),
    ],
)
def test_the_last_layer_of_models_of_others(name: str, shape: tuple[int, ...], options: dict, last: str):
    path, weights = last_layer(make_model(name, shape, options=options))
    assert (path, [len(each) for each in weights]) == (last, [4, 4])


def test_a_linear_head_on_features_is_the_last_layer():
    features = timm.create_model("efficientnet_lite0", num_classes=0)
    assert last_layer(features)[1] == []  # it ends in batch norm
    head = nn.Linear(1280, 8)
    path, weights = last_layer(nn.Sequential(OrderedDict(backbone=features, embedding=head)))
    assert path == "embedding"
    assert weights == list(head.parameters())


def test_the_last_layer_of_an_encoder_of_texts():
    import transformers

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    encoder = transformers.BertModel(config, add_pooling_layer=False)
    assert last_layer(encoder)[1] == []  # it ends in layer norm
    assert last_layer(nn.ModuleDict({"encoder": encoder, "head": nn.Linear(8, 3)}))[0] == "head"
    assert torch.is_tensor(encoder.embeddings.word_embeddings.weight)
