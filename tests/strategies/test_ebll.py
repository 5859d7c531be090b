"""EBLL: the autoencoder of each task, and what its code adds to the loss of later tasks."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_distill import DIM, change, literal_soft_targets, make_metric, make_model, make_recognition
from torch import Tensor, nn

from tripletmas.models.embedding import embed
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.strategies.ebll import EBLL, Encoder, encode, train_encoder


def literal_code(embedding: list[float], encoder: Encoder) -> list[float]:
    mean, deviation, weight, bias = (part.tolist() for part in encoder)
    standard = [(x - m) / d for x, m, d in zip(embedding, mean, deviation, strict=True)]
    return [
        1 / (1 + math.exp(-sum(w * x for w, x in zip(row, standard, strict=True)) - b))
        for row, b in zip(weight, bias, strict=True)
    ]


def train(embeddings: Tensor, labels: Tensor, loss, *, seed: int = 0, **options) -> Encoder:
    settings = {"size": 2, "epochs": 60, "reconstruction": 1.0, **options}
    return train_encoder(embeddings, labels, loss, **settings, generator=torch.Generator().manual_seed(seed))


# --- the autoencoder


def test_a_code_is_a_sigmoid_of_standardised_embeddings():
    torch.manual_seed(0)
    encoder = Encoder(torch.randn(4), torch.rand(4) + 0.5, torch.randn(2, 4), torch.randn(2))
    embeddings = torch.randn(5, 4)
    for row, found in zip(embeddings.tolist(), encode(encoder, embeddings).tolist(), strict=True):
        assert found == pytest.approx(literal_code(row, encoder), rel=1e-4)


def test_mean_and_deviation_are_those_of_the_task_and_a_constant_stays_itself():
    torch.manual_seed(0)
    embeddings = torch.cat([3 + 2 * torch.randn(20, 2), torch.full((20, 1), 5.0)], dim=1)
    encoder = train(embeddings, torch.arange(20) % 2, lambda e, labels: e.sum() * 0, epochs=1)
    torch.testing.assert_close(encoder.mean, embeddings.mean(dim=0))
    expected = ((embeddings - embeddings.mean(dim=0)) ** 2).mean(dim=0).sqrt()
    torch.testing.assert_close(encoder.deviation[:2], expected[:2])
    assert encoder.deviation[2] == 1


def test_the_code_keeps_what_tells_the_embeddings_apart():
    """Embeddings that lie on a line of three dimensions are described by one number; noise alone is not."""
    torch.manual_seed(0)
    places = torch.randn(60, 1)
    embeddings = places * torch.tensor([[1.0, -2.0, 0.5]])
    encoder = train(embeddings, torch.arange(60) % 2, lambda e, labels: e.sum() * 0, size=1, epochs=300)
    code = encode(encoder, embeddings).flatten()
    ranks = torch.stack([code, places.flatten()]).argsort(dim=1).argsort(dim=1).float()
    assert abs(torch.corrcoef(ranks)[0, 1]) > 0.999


def test_the_loss_is_of_the_decoded_embeddings_in_their_own_unit():
    """At first a decoded embedding is within deviation * sum_c |w| + |b| of the mean, w and b at most 1 / sqrt(2)."""
    torch.manual_seed(0)
    embeddings, decoded = 100 + 2 * torch.randn(20, 3), []

    def loss(vectors: Tensor, labels: Tensor) -> Tensor:
        decoded.append(vectors.detach())
        return vectors.sum() * 0

    train(embeddings, torch.arange(20) % 2, loss, epochs=1)
    most = embeddings.std(dim=0) * 3 / math.sqrt(2)
    assert ((decoded[0] - embeddings.mean(dim=0)).abs() < most).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_of_the_task_says_what_the_code_keeps(seed):
    """Classes differ in the second number only, most of the variance is in the first: without a weight on the
    reconstruction the code is of the second."""
    torch.manual_seed(0)
    labels = torch.arange(80) % 2
    embeddings = torch.stack([torch.randn(80), 2.0 * labels - 1], dim=1)

    def loss(decoded: Tensor, labels: Tensor) -> Tensor:
        return (decoded[:, 1] - (2.0 * labels - 1)).square().mean()

    encoder = train(embeddings, labels, loss, seed=seed, size=1, reconstruction=0.0, epochs=100)
    assert encoder.weight[0, 1].abs() > 5 * encoder.weight[0, 0].abs()


def test_it_is_seeded_and_leaves_the_loss_alone(tiny_stream):
    torch.manual_seed(0)
    embeddings, labels = torch.randn(14, DIM), torch.arange(2).repeat_interleave(7)
    loss = make_recognition(tiny_stream)
    before = [parameter.detach().clone() for parameter in loss.parameters()]
    first, again, other = (train(embeddings, labels, loss, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.weight, other.weight)
    assert not first.weight.requires_grad
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(loss.parameters(), before, strict=True))


# --- the strategy


@pytest.mark.parametrize("objective", ["metric", "recognition"])
def test_what_is_added_is_half_the_change_of_all_codes(objective, tiny_stream):
    model, strategy = make_model(), EBLL(strength=0.7, code=2, distillation=0.3, temperature=3.0, code_epochs=5)
    loss = make_recognition(tiny_stream) if objective == "recognition" else make_metric()
    strategy.prepare(model, loss, tiny_stream)
    inputs, _ = tiny_stream[2].train[list(range(6))]
    for number, task in enumerate(tiny_stream[:2]):
        strategy.after_task(model, task)
        model.eval()
        wanted = model(inputs).detach()
        heads = loss.heads[: number + 1] if isinstance(loss, Recognition) else []
        wanted_logits = [head(wanted).tolist() for head in heads]
        change(model)
        change(loss)
        model.train()
        found = model(inputs)
        expected = 0.0
        for encoder in strategy._encoders:
            for now, then in zip(found.tolist(), wanted.tolist(), strict=True):
                codes = zip(literal_code(now, encoder), literal_code(then, encoder), strict=True)
                expected += sum((a - b) ** 2 for a, b in codes) / 6 / 2
        if heads:
            expected += 0.3 * literal_soft_targets([head(found).tolist() for head in heads], wanted_logits, 3.0)
        addition = strategy.loss(model, inputs, found)
        assert addition is not None
        assert len(strategy._encoders) == number + 1
        assert addition.item() == pytest.approx(0.7 * expected, rel=1e-4)


def test_an_encoder_is_of_the_plain_training_data_of_its_task(tiny_stream):
    model, strategy = make_model(), EBLL(code_epochs=1)
    strategy.prepare(model, make_metric(), tiny_stream)
    strategy.after_task(model, tiny_stream[1])
    vectors = embed(model, tiny_stream[1].train).vectors
    torch.testing.assert_close(strategy._encoders[0].mean, vectors.mean(dim=0))


@pytest.mark.parametrize(("code", "dim", "expected"), [(0, 3, 1), (0, 16, 4), (2, 3, 2)])
def test_the_size_of_the_code(code, dim, expected, tiny_stream):
    torch.manual_seed(0)
    model, strategy = nn.Sequential(nn.Flatten(), nn.Linear(16, dim)), EBLL(code=code, code_epochs=1)
    strategy.prepare(model, make_metric(), tiny_stream)
    strategy.after_task(model, tiny_stream[0])
    assert strategy._encoders[0].weight.shape == (expected, dim)


def test_the_code_must_leave_something_out(tiny_stream):
    model, strategy = make_model(), EBLL(code=DIM)
    strategy.prepare(model, make_metric(), tiny_stream)
    with pytest.raises(ValueError, match=f"code must be < {DIM}"):
        strategy.before_task(model, tiny_stream[0], torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("objective", ["metric", "recognition"])
def test_the_state_is_exact(objective, tiny_stream, tmp_path):
    def prepared() -> tuple[nn.Module, EBLL]:
        model, strategy = make_model(), EBLL(code_epochs=2)
        loss = make_recognition(tiny_stream) if objective == "recognition" else make_metric()
        strategy.prepare(model, loss, tiny_stream)
        return model, strategy

    model, strategy = prepared()
    for task in tiny_stream[:2]:
        change(model)
        strategy.after_task(model, task)
    save_file(strategy.state_dict(), tmp_path / "state.safetensors")
    _, other = prepared()
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    inputs, _ = tiny_stream[2].train[list(range(6))]
    change(model)
    first, second = (each.loss(model, inputs, model(inputs)) for each in (strategy, other))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_wrong_options():
    with pytest.raises(ValueError, match="must be >= 0"):
        EBLL(distillation=-1.0)
    with pytest.raises(ValueError, match="code_epochs >= 1"):
        EBLL(code_epochs=0)
