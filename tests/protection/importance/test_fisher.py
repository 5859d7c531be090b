"""Fisher information and mean squared gradients against loops over the definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from architectures import made
from importance_cases import assert_same
from oracles import per_sample_sums
from torch import Tensor, nn

from tripletmas.basics.weights import Params
from tripletmas.data.tasks import Stream
from tripletmas.models.networks import mlp
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.protection.importance.fisher import fisher_importance, squared_gradient_importance
from tripletmas.strategies.fisher_of_task import fisher_of_task

MODES = ("sampled", "true", "all")


class Double(nn.Module):
    """A model in float64 that takes the float32 of a data set."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.double())


def literal_fisher(model: nn.Module, samples: Tensor, labels: list[int], mode: str, seed: int = 0) -> Params:
    """(1/n) sum_k of p_y (d log p_y(x_k) / d theta)^2: a backward pass for each sample, and for each class in "all"."""
    model.eval()
    draws = torch.rand(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, label, draw in zip(samples, labels, draws, strict=True):
        numbers = model(x[None])[0].tolist()
        chances = [math.exp(value) / sum(map(math.exp, numbers)) for value in numbers]
        if mode == "sampled":
            label = next(y for y in range(len(chances)) if draw < sum(chances[: y + 1]))
        for y in range(len(chances)) if mode == "all" else [label]:
            weight = chances[y] if mode == "all" else 1.0

            def log_probability(logits: Tensor, y: int = y) -> Tensor:
                return logits[0, y] - logits[0].exp().sum().log()

            for name, squares in per_sample_sums(model, [x[None]], log_probability, power=2).items():
                total[name] += weight * squares
    return {name: value / len(samples) for name, value in total.items()}


def in_batches(samples: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(samples.split(size), labels.split(size), strict=True))


# "conv" has batch norm and dropout; in the last two some weights have no rule: samples by torch.func, or in turn
@pytest.mark.parametrize("name", ["mlp", "conv", "convolution used elsewhere", "lstm"])
@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_loop_over_samples(name: str, mode):
    model, samples = made(name)
    labels = torch.arange(len(samples)) % 3
    found = fisher_importance(model.train(), in_batches(samples, labels, 4), labels=mode, seed=3)
    assert_same(found, literal_fisher(model, samples, labels.tolist(), mode, seed=3))


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


# --- of a task


@pytest.mark.parametrize("mode", MODES)
def test_in_recognition_it_is_that_of_the_tasks_own_head(tiny_stream: Stream, mode):
    torch.manual_seed(0)
    model = mlp((1, 4, 4), dim=4, hidden=(8,)).double()
    task = tiny_stream[1]
    loss = Recognition(4, [each.classes for each in tiny_stream], task.train.class_names).double()
    as_double = task.train.with_transform(torch.Tensor.double)
    samples, labels = as_double[list(range(len(as_double)))]
    whole = nn.Sequential(model, loss.heads[1])
    torch.manual_seed(11)
    found = {  # inputs are read as float32
        size: fisher_of_task(Double(model), task, loss, labels=mode, batch_size=size) for size in (3, 256)
    }
    expected = literal_fisher(whole, samples, (labels - task.classes[0]).tolist(), mode, seed=11)
    expected = {f"model.{name[2:]}": value for name, value in expected.items() if name.startswith("0.")}
    assert_same(found[3], expected)
    assert_same(found[256], expected)


def test_for_a_metric_loss_it_is_a_function_of_the_seed(tiny_stream: Stream):
    torch.manual_seed(0)
    model = mlp((1, 4, 4), dim=4, hidden=(8,))
    loss = Retrieval(make_loss("contrastive", dim=4, num_classes=6))

    def measured(seed: int, size: int) -> Tensor:
        torch.manual_seed(seed)
        values = fisher_of_task(model, tiny_stream[0], loss, loss_batch_size=size, samples_per_class=2)
        return torch.cat([value.flatten() for value in values.values()])

    assert torch.equal(measured(0, 4), measured(0, 4))
    assert not torch.allclose(measured(0, 4), measured(1, 4))
    assert not torch.allclose(measured(0, 4), measured(0, 8))
