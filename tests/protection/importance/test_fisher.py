"""Fisher information and mean squared gradients against loops over the definitions."""

from __future__ import annotations

from collections.abc import Callable

import oracles
import pytest
import torch
from architectures import made
from importance_cases import assert_same
from torch import Tensor, nn

from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.protection.importance.fisher import fisher_importance, squared_gradient_importance

MODES = ("sampled", "true", "all")


def in_batches(samples: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(samples.split(size), labels.split(size), strict=True))


# "conv" has batch norm and dropout; in the last two some weights have no rule: samples by torch.func, or in turn
@pytest.mark.parametrize("name", ["mlp", "conv", "convolution used elsewhere", "lstm"])
@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_loop_over_samples(name: str, mode):
    model, samples = made(name)
    labels = torch.arange(len(samples)) % 3
    found = fisher_importance(model.train(), in_batches(samples, labels, 4), labels=mode, seed=3)
    assert_same(found, oracles.fisher_importance(model, samples, labels.tolist(), mode, seed=3))


def test_draws_follow_the_probabilities():
    """The mean over many draws comes near to the expectation: both are means of the same terms."""
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    x = torch.randn(1, 2).expand(20_000, 2)
    sampled, exact = (fisher_importance(model, [x], labels=mode)["bias"] for mode in ("sampled", "all"))
    # (d log p_y / d b_i)^2 lies in [0, 1], so the standard deviation of its mean is at most 0.5 / sqrt(20,000) = 0.0036
    assert (sampled - exact).abs().max() < 4 * 0.0036
    assert not torch.equal(sampled, fisher_importance(model, [x], seed=1)["bias"])
    assert torch.equal(sampled, fisher_importance(model, [x], seed=0)["bias"])


def test_a_class_without_probability_is_not_drawn():
    """d log p_y / d b_i = (i == y) - p_i: for p = (0, 1/2, 1/2), 0 and twice +-1/2; 1 if class 0 were ever drawn."""
    model = nn.Linear(1, 3)
    nn.init.zeros_(model.weight)
    model.bias.data = torch.tensor([-200.0, 0.0, 0.0])
    assert fisher_importance(model, [torch.zeros(1000, 1)])["bias"].tolist() == [0.0, 0.25, 0.25]


def test_batches_may_be_dicts_and_go_through_forward():
    model, samples = made("mlp")
    labels = torch.arange(len(samples)) % 3
    expected = fisher_importance(model, [(samples, labels)], labels="true")
    dicts = [{"input": samples, "labels": labels}]
    assert_same(fisher_importance(model, dicts, labels="true"), expected)
    through = fisher_importance(model, dicts, labels="true", forward=lambda model, batch: model(batch["input"]))
    assert_same(through, expected)


LABELS = torch.arange(9) % 3


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"labels": "true"}, lambda x: (x, LABELS + 1), r"labels must lie in \[0, 3\), one for each logit, got 1 to 3"),
        (
            {"labels": "true"},
            lambda x: (x, LABELS - 1),
            r"labels must lie in \[0, 3\), one for each logit, got -1 to 1",
        ),
        ({"labels": "true"}, lambda x: x, r"needs batches \(inputs, labels\)"),
        ({"labels": "true"}, lambda x: (x, LABELS.float()), "of integer labels"),
        ({"labels": "own"}, lambda x: x, "'sampled', 'true' or 'all', got 'own'"),
        ({}, lambda x: x[:, None], r"logits must have shape \(samples, classes\)"),
    ],
)
def test_what_cannot_be_measured_is_said(options: dict, batch: Callable, message: str):
    model, samples = made("mlp")
    with pytest.raises(ValueError, match=message):
        fisher_importance(model, [batch(samples)], **options)


def test_a_saturated_classifier_is_an_error():
    model = nn.Linear(1, 2)
    nn.init.zeros_(model.weight)
    model.bias.data = torch.tensor([200.0, -200.0])  # p = (1, e^-400 = 0): no gradient at all
    with pytest.raises(ValueError, match=r"zero everywhere.*saturated"):
        fisher_importance(model, [torch.ones(4, 1)])


# --- squared gradients of a loss


def test_squared_gradients_are_those_of_each_batch():
    model, samples = made("conv", count=12)
    labels = torch.arange(12) % 3
    batches = in_batches(samples, labels, 6)
    loss = make_loss("contrastive", dim=3, num_classes=3)
    found = squared_gradient_importance(model, batches, loss)
    model.eval()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for inputs, own in batches:
        gradients = torch.autograd.grad(loss(model(inputs), own), list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            expected[name] += gradient**2 / 2
    assert_same(found, expected)
    assert not torch.allclose(
        found["0.weight"], squared_gradient_importance(model, [(samples, labels)], loss)["0.weight"]
    )


def test_a_satisfied_hinge_is_an_error():
    """Two classes far apart: each triplet's distances differ by far more than the margin, and the gradient is 0."""
    model = nn.Linear(2, 2)
    nn.init.eye_(model.weight)
    inputs = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0], [-1.0, 0.01]])
    with pytest.raises(ValueError, match=r"zero everywhere.*triplet"):
        squared_gradient_importance(
            model, [(inputs, torch.tensor([0, 0, 1, 1]))], make_loss("triplet", dim=2, num_classes=2)
        )
