"""Every name in the catalog: its options have types and help, and it can be built."""

from __future__ import annotations

import inspect
import typing

import pytest
import torch

from tripletmas.models.making import make_model
from tripletmas.objectives.facts.kind import FactsKind
from tripletmas.objectives.retrieval import losses
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs import catalog
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.combine import Combine
from tripletmas.strategies.distill import Distill

ALL = [(part, name) for part in catalog.PARTS for name in catalog.names(part)]
DOWNLOADED = {"mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "cub200", "cars196", "sop"}
DOWNLOADED |= {"aircraft", "flowers102"}


@pytest.mark.parametrize("part", catalog.PARTS)
def test_what_the_issue_asks_for_is_there(part):
    wanted = {
        "data": {"digits", "omniglot", "folder", "csv"} | DOWNLOADED,
        "model": {"mlp", "conv4", "resnet18"},
        "loss": {"triplet", "contrastive", "multi_similarity", "ntxent", "proxy_anchor"},
        "strategy": {
            "finetune",
            "pretrained",
            "frozen",
            "mas",
            "joint",
            "l2",
            "ewc",
            "si",
            "distill",
            "ebll",
            "imm",
            "replay",
            "anchors",
        },
    }
    assert wanted[part] <= set(catalog.names(part))


@pytest.mark.parametrize(("part", "name"), ALL, ids=lambda value: value)
def test_every_option_has_a_type_and_help(part, name):
    for key, option in catalog.options(part, name).items():
        assert option.type not in (typing.Any, inspect.Parameter.empty), key
        assert option.help, key
        assert not option.help.startswith("as in ") or part == "loss", key  # a foreign loss is described by its class


REQUIRED = {"folder": {"root"}, "csv": {"path"}, "sequence": {"parts"}, "facts": {"csv"}} | {
    "texts": {"root"},
    "jsonl": {"path"},
    "hf": {"root"},
}


@pytest.mark.parametrize("name", sorted(set(catalog.names("data"))))
def test_data_options_are_those_of_the_reader_and_of_the_stream(name):
    options = catalog.options("data", name)
    of_facts = {"split", "words", "word_dim", "word_seed"}
    of_classes = {"groups", "order_seed", "augment", "per_class"}
    assert {"tasks", "test_share", "split_seed", "validation"} <= options.keys()
    assert (of_facts <= options.keys()) == (name in FactsKind.datasets) == of_classes.isdisjoint(options.keys())
    assert ("download" in options) == (name in DOWNLOADED | {"omniglot", "sequence"})
    required = {key for key, option in options.items() if option.default is inspect.Parameter.empty}
    assert required == REQUIRED.get(name, set())


def test_an_option_is_read_from_signature_and_docstring():
    strength = catalog.options("strategy", "mas")["strength"]
    assert strength == catalog.Option(float, 0.3, "weight of the penalty; 0 is finetune.")
    mining = catalog.options("loss", "triplet")["mining"]
    assert mining.default == "batch_hard"
    assert "semihard" in typing.get_args(mining.type)
    assert "name" not in catalog.options("model", "resnet18")


def test_digits_are_built_with_options_of_reader_and_stream():
    stream = catalog.build_data("digits", {"tasks": [4, 6], "order_seed": None, "test_share": 0.5}).stream
    assert [len(task.classes) for task in stream] == [4, 6]
    sizes = [len(task.train) + len(task.query) for task in stream]
    assert sum(sizes) == 1797
    assert len(stream[0].query) == pytest.approx(sizes[0] / 2, abs=4)


def test_folder_and_csv_are_built(write_images, tmp_path):
    lines = ["path,label"]
    for number, name in enumerate("abc"):
        write_images(tmp_path / "images" / name, seed=number)
        lines += [f"images/{name}/{image}.png,{name}" for image in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    options = {"size": 8, "channels": 1, "tasks": 3}
    by_folder = catalog.build_data("folder", {"root": str(tmp_path / "images"), **options}).stream
    by_list = catalog.build_data("csv", {"path": str(tmp_path / "list.csv"), **options}).stream
    assert [task.name for task in by_folder] == [task.name for task in by_list] == ["a", "b", "c"]
    assert by_folder[0].train.sample_shape == (1, 8, 8)


@pytest.mark.slow
def test_omniglot_is_built(shared_data):
    archive = next((shared_data / "omniglot").rglob("*.zip"), None)
    if archive is None:
        pytest.skip("no zip archive of omniglot")
    stream = catalog.build_data("omniglot", {"root": str(archive), "groups": ["Greek", "Korean"]}).stream
    assert [task.name for task in stream] == ["Greek", "Korean"]


@pytest.mark.parametrize("name", sorted(DOWNLOADED))
def test_data_that_must_be_downloaded_say_so(name, tmp_path):
    with pytest.raises(ValueError, match="download"):
        catalog.build_data(name, {"root": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mlp", "conv4", "resnet18"])
def test_models_are_built_with_their_defaults(name):
    defaults = {key: option.default for key, option in catalog.options("model", name).items()}
    model = make_model(name, (3, 32, 32), options=defaults).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, defaults["dim"])


@pytest.mark.parametrize("name", [each for each in catalog.names("loss") if each in losses.LOSSES])
def test_losses_are_built_with_their_defaults(name):
    options = {key: option.default for key, option in catalog.options("loss", name).items()}
    mining = options.pop("mining")
    loss = make_loss(name, dim=4, num_classes=3, mining=mining, options=options)
    torch.manual_seed(0)
    value = loss(torch.randn(12, 4), torch.arange(3).repeat_interleave(4))
    assert value.ndim == 0
    assert value.isfinite()


@pytest.mark.parametrize("name", catalog.names("strategy"))
def test_strategies_are_built_with_their_defaults(name):
    strategy = catalog.build_strategy(name, {key: o.default for key, o in catalog.options("strategy", name).items()})
    assert isinstance(strategy, Strategy)
    strategy.prepare(torch.nn.Linear(2, 2), Retrieval(torch.nn.TripletMarginLoss()), ())
    assert bool(strategy.protections) == (name in ("mas", "local_mas", "gram", "l2", "ewc", "si"))


def test_a_combination_has_the_options_of_its_parts():
    options = catalog.options("strategy", "mas+distill")
    assert options["mas.strength"] == catalog.options("strategy", "mas")["strength"]
    assert options["distill.strength"] == catalog.options("strategy", "distill")["strength"]
    assert len(options) == sum(len(catalog.options("strategy", name)) for name in ("mas", "distill"))
    assert catalog.options("strategy", "finetune+joint") == {}
    assert not any("+" in name for name in catalog.names("strategy"))


def test_a_combination_is_built_from_nested_options():
    strategy = catalog.build_strategy("mas+distill", {"mas": {"strength": 0.125}, "distill": {}}, searched="distill")
    assert isinstance(strategy, Combine)
    assert list(strategy.parts) == ["mas", "distill"]
    strategy.prepare(torch.nn.Linear(2, 2), Retrieval(torch.nn.TripletMarginLoss()), ())
    assert strategy.protections[0].strength == 0.125
    strategy.set_strength(7.0)
    distill = strategy.parts["distill"]
    assert isinstance(distill, Distill)
    assert distill.strength == 7.0
    assert list(catalog.build_strategy("replay+l2", {}).parts) == ["replay", "l2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mas+mass", r"unknown strategy 'mass' in 'mas\+mass' \(did you mean 'mas'\?\)"),
        ("mas+", r"unknown strategy '' in 'mas\+' \(known: finetune, "),
        ("mas+distill+mas", r"strategy 'mas' is in 'mas\+distill\+mas' twice"),
    ],
)
def test_a_wrong_combination_is_refused(name, message):
    for refused in (lambda: catalog.options("strategy", name), lambda: catalog.build_strategy(name, {})):
        with pytest.raises(ValueError, match=message):
            refused()


def test_strategies_that_do_not_go_together_and_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="'joint' and 'replay' cannot be combined: they both define the training data"):
        catalog.build_strategy("joint+replay", {})
    with pytest.raises(ValueError, match=r"strategy 'mas\+l2' has no part 'l3' \(known: mas, l2\)|did you mean 'l2'"):
        catalog.build_strategy("mas+l2", {"l3": {}})
    with pytest.raises(ValueError, match=r"unknown strategy 'masss' \(did you mean 'mas'\?\)"):
        catalog.build_strategy("masss", {})


@pytest.mark.parametrize("part", catalog.PARTS)
def test_an_unknown_name_comes_with_a_suggestion(part):
    name = catalog.names(part)[-1]
    with pytest.raises(ValueError, match=f"unknown {part} '{name}x' \\(did you mean '{name}'\\?\\)"):
        catalog.options(part, f"{name}x")


def test_what_is_near_nothing_is_told_what_there_is():
    assert catalog.suggestion("zzz", ["alpha", "beta"]) == " (known: alpha, beta)"
    many = catalog.suggestion("zzz", [f"name{number}" for number in range(40)])
    assert many.endswith("name29, ...)")
