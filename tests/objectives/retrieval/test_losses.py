"""Losses by name: values by hand, miners against an exhaustive loop, and one contract over the whole table."""

from __future__ import annotations

import math
from importlib import metadata
from itertools import product

import pytest
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from tripletmas.objectives.retrieval import library
from tripletmas.objectives.retrieval.losses import (
    LOSSES,
    MININGS,
    MinedLoss,
    default_mining,
    loss_options,
    make_loss,
    read_defaults,
)

CLASSES, DIM = 5, 8
WITH_CLASS_VECTORS = [name for name in LOSSES if list(make_loss(name, dim=DIM, num_classes=CLASSES).parameters())]
COMBINATIONS = [(name, mining) for name, mining in product(LOSSES, MININGS) if LOSSES[name].minable or mining == "none"]


def batch_of(labels: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(labels), DIM, generator=generator).requires_grad_(), torch.tensor(labels)


def seeded(name: str, **options: object) -> MinedLoss:
    torch.manual_seed(0)
    return make_loss(name, dim=DIM, num_classes=CLASSES, **options)  # pyright: ignore[reportArgumentType]


# Points on the circle: their distance is 2 sin(angle / 2), whatever their length.
ANGLES = torch.tensor([0.0, 40.0, 60.0, 150.0]) * math.pi / 180
LENGTHS = torch.tensor([[1.0], [3.0], [0.5], [2.0]])
POINTS = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1) * LENGTHS
LABELS = torch.tensor([0, 0, 1, 1])


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


def test_triplet_batch_hard_by_hand():
    # anchor: its positive, its nearest negative, in degrees between them
    triplets = {0: (40, 60), 1: (40, 20), 2: (90, 20), 3: (90, 110)}
    violations = [chord(positive) - chord(negative) + 0.2 for positive, negative in triplets.values()]
    # 0.684 - 1 and 1.414 - 1.638 are below -0.2: no violations; 0.684 - 0.347 and 1.414 - 0.347 are.
    # Their mean with the margin: (0.537 + 1.267) / 2 = 0.902
    expected = sum(value for value in violations if value > 0) / 2
    loss = make_loss("triplet", dim=2, num_classes=2)(POINTS, LABELS)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(0.9019, abs=1e-3)


def all_triplets(embeddings: Tensor, labels: Tensor) -> list[tuple[int, int, int, float]]:
    """(anchor, positive, negative, d(a, p) - d(a, n)) for every triplet, of normalised embeddings, by a plain loop."""
    vectors = embeddings.detach().double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    count = range(len(labels))
    return [
        (a, p, n, float((vectors[a] - vectors[p]).norm() - (vectors[a] - vectors[n]).norm()))
        for a, p, n in product(count, repeat=3)
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]


def chosen(mining: str, triplets: list[tuple[int, int, int, float]], margin: float) -> list[float]:
    if mining == "batch_hard":  # farthest positive and nearest negative maximise the difference
        anchors = {a for a, *_ in triplets}
        return [max(difference for a, _, _, difference in triplets if a == anchor) for anchor in anchors]
    least = {"none": -math.inf, "all": -margin, "semihard": -margin, "hard": 0.0}[mining]
    most = 0.0 if mining == "semihard" else math.inf
    return [difference for *_, difference in triplets if least <= difference < most]


@pytest.mark.parametrize("mining", ["none", "all", "semihard", "hard", "batch_hard"])
@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_minings_of_triplets_equal_an_exhaustive_loop(mining: str, margin: float):
    embeddings, labels = batch_of([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    loss = make_loss(
        "triplet", dim=DIM, num_classes=CLASSES, mining=mining, options={"margin": margin, "smooth_loss": True}
    )
    # smooth_loss = log(1 + exp(violation)) is positive on every triplet, so the mean shows exactly which were chosen.
    differences = chosen(mining, all_triplets(embeddings, labels), margin)
    assert differences
    expected = sum(math.log1p(math.exp(difference + margin)) for difference in differences) / len(differences)
    assert loss(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "mining"), COMBINATIONS)
@pytest.mark.parametrize(
    ("labels", "value"),
    [
        ([0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 4], None),
        ([2] * 6, None),
        ([0, 1, 2, 3, 4], None),
        ([3], None),
        ([0, 0, 1, 1, 2, 2], 0.0),
        ([0, 0, 1, 1, 2, 2], 1.0),
    ],
    ids=["uneven", "one class", "no positive", "one sample", "collapsed to 0", "collapsed"],
)
def test_every_loss_is_a_finite_differentiable_scalar(name: str, mining: str, labels: list[int], value: float | None):
    embeddings, targets = batch_of(labels)
    if value is not None:
        embeddings = torch.full((len(labels), DIM), value, requires_grad=True)
    loss = seeded(name, mining=mining)(embeddings, targets)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    if len(set(labels)) == 5 and len(labels) > 5 and mining in ("none", default_mining(name)):
        assert embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 1, 2, 3]], ids=["one class", "no positive"])
@pytest.mark.parametrize("mining", ["none", "all", "semihard", "hard", "batch_hard"])
def test_without_a_triplet_the_loss_is_zero(mining: str, labels: list[int]):
    embeddings, targets = batch_of(labels)
    value = seeded("triplet", mining=mining)(embeddings, targets)
    value.backward()
    assert value.item() == 0
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() == 0


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "angular"])
def test_the_length_of_an_embedding_is_not_seen(name: str):
    embeddings, labels = batch_of([0, 0, 0, 1, 1, 1, 2, 2, 2])
    lengths = torch.linspace(0.5, 7, 9).unsqueeze(1)
    first = seeded(name, mining="none")(embeddings, labels)
    second = seeded(name, mining="none")(embeddings * lengths, labels)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_angular_sees_the_length():
    embeddings, labels = batch_of([0, 0, 1, 1, 2, 2])
    loss = seeded("angular")
    assert loss(embeddings, labels) != loss(2 * embeddings, labels)


@pytest.mark.parametrize("name", LOSSES)
def test_seeds_decide_the_class_vectors_and_what_is_drawn(name: str):
    embeddings, labels = batch_of([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert torch.equal(seeded(name)(embeddings, labels), seeded(name)(embeddings, labels))


@pytest.mark.parametrize("name", WITH_CLASS_VECTORS)
def test_class_vectors_learn(name: str):
    embeddings, labels = batch_of([0, 0, 1, 1, 2, 2, 3, 3])
    loss = seeded(name)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    start = loss(embeddings.detach(), labels).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(embeddings.detach(), labels).backward()
        optimizer.step()
    assert loss(embeddings.detach(), labels).item() < 0.9 * start


def test_which_losses_have_parameters():
    softmax = ["normalized_softmax", "arcface", "subcenter_arcface", "cosface"]
    assert [*("proxy_anchor", "proxy_nca"), *softmax, "soft_triple"] == WITH_CLASS_VECTORS
    learned = make_loss("margin", dim=DIM, num_classes=CLASSES, options={"learn_beta": True})
    assert [tuple(parameter.shape) for parameter in learned.parameters()] == [(CLASSES,)]
    embeddings, labels = batch_of([0, 0, 4, 4, 2, 2])
    learned(embeddings, labels).backward()


def test_options_reach_the_loss_and_ours_are_the_defaults():
    assert loss_options("triplet")["margin"].default == 0.2
    loss = make_loss("triplet", dim=DIM, num_classes=CLASSES, mining="semihard", options={"margin": 0.7})
    assert loss.loss.margin == 0.7
    assert loss.miner is not None
    assert loss.miner.margin == 0.7
    assert default_mining("triplet") == "batch_hard"
    for mining in ("semihard", "batch_hard"):
        cosine = make_loss("ntxent", dim=DIM, num_classes=CLASSES, mining=mining)
        assert cosine.miner is not None
        assert cosine.miner.distance is cosine.loss.distance  # one meaning of near
    assert default_mining("multi_similarity") == "multi_similarity"
    assert "softmax_scale" in loss_options("proxy_nca")  # from a base class


@pytest.mark.parametrize("name", LOSSES)
def test_every_listed_option_is_accepted(name: str):
    options = {option: parameter.default for option, parameter in loss_options(name).items()}
    mining = "none" if "triplets_per_anchor" in options else None
    make_loss(name, dim=DIM, num_classes=CLASSES, mining=mining, options=options)
    parser = ArgumentParser()
    for option, parameter in loss_options(name).items():
        parser.add_argument(f"--loss.{option}", type=parameter.annotation, default=parameter.default)
    assert vars(parser.parse_args([]).get("loss", Namespace())) == options


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tripelt", {}, r"unknown loss 'tripelt' \(did you mean 'triplet'\?\)"),
        (
            "triplet",
            {"options": {"marign": 1}},
            r"loss 'triplet' has no option 'marign' \(did you mean 'margin'\?\)",
        ),
        ("triplet", {"options": {"distance": None}}, "loss 'triplet' has no option 'distance'"),
        ("n_pairs", {"options": {"scale": 1}}, r"loss 'n_pairs' has no option 'scale' \(known: none\)"),
        ("triplet", {"mining": "batchhard"}, r"unknown mining 'batchhard' \(did you mean 'batch_hard'\?\)"),
        ("arcface", {"mining": "semihard"}, "loss 'arcface' .* takes no mining, got mining 'semihard'"),
        ("triplet", {"options": {"margin": "wide"}}, "option 'margin' of loss 'triplet' must be a number, got 'wide'"),
        ("triplet", {"options": {"margin": True}}, "must be a number, got True"),
        ("triplet", {"options": {"swap": 1}}, "option 'swap' of loss 'triplet' must be true or false, got 1"),
        ("fast_ap", {"options": {"num_bins": 2.5}}, "must be a whole number >= 1, got 2.5"),
        ("pnp", {"options": {"variant": "X"}}, "must be one of Ds, Dq, Iu, Ib, O, got 'X'"),
        (
            "triplet",
            {"options": {"triplets_per_anchor": 0}, "mining": "none"},
            "must be 'all' or a whole number >= 1, got 0",
        ),
        ("triplet", {"options": {"triplets_per_anchor": 4}}, "no effect with mining 'batch_hard'; set mining to none"),
    ],
)
def test_what_a_user_can_get_wrong(name: str, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_loss(name, dim=DIM, num_classes=CLASSES, **arguments)


def test_all_triplets_of_a_large_batch_are_refused_and_batch_hard_takes_it():
    embeddings, labels = torch.randn(1025, 2), torch.arange(1025) % 300
    for mining in ("none", "all", "semihard", "hard"):
        with pytest.raises(ValueError, match="at most 1024 samples, got 1025: use mining batch_hard"):
            make_loss("triplet", dim=2, num_classes=300, mining=mining)(embeddings, labels)
    assert make_loss("triplet", dim=2, num_classes=300)(embeddings, labels).isfinite()
    drawn = make_loss("triplet", dim=2, num_classes=300, mining="none", options={"triplets_per_anchor": 2})
    assert drawn(embeddings, labels).isfinite()


def test_labels_are_integers():
    embeddings, labels = batch_of([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"labels must be integers, got torch\.float32"):
        seeded("triplet")(embeddings, labels.float())


@pytest.mark.parametrize("name", ["triplet", "proxy_anchor"])
def test_half_precision_embeddings_are_compared_in_full(name: str):
    embeddings, labels = batch_of([0, 0, 1, 1, 2, 2])
    loss = seeded(name)
    halved = embeddings.detach().bfloat16()
    expected = loss(halved.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(halved, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert all(parameter.dtype == torch.float32 for parameter in loss.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "mining"), COMBINATIONS)
def test_losses_on_a_gpu(name: str, mining: str):
    embeddings, labels = batch_of([0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 4])
    loss = seeded(name, mining=mining).cuda()
    value = loss(embeddings.cuda(), labels.cuda())
    value.backward()
    assert value.isfinite()
    if mining != "distance_weighted":  # drawn from another generator
        torch.testing.assert_close(value.cpu(), seeded(name, mining=mining)(embeddings, labels), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_the_options_that_are_written_down_are_those_of_the_library(name, monkeypatch):
    entry = LOSSES[name]
    if metadata.version("pytorch-metric-learning") == library.VERSION:
        assert library.DEFAULTS[entry.name] == read_defaults(entry)
    written = loss_options(name)
    monkeypatch.setattr(library, "VERSION", "of another library")  # what the installed one says itself then counts
    assert loss_options(name) == written
