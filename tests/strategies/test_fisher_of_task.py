"""Fisher information of a task's own head against the loop over the definition; squared gradients are seeded."""

from __future__ import annotations

import oracles
import pytest
import torch
from importance_cases import assert_same
from torch import Tensor, nn

from tripletmas.data.tasks import Stream
from tripletmas.models.networks import mlp
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.strategies.fisher_of_task import fisher_of_task


class Double(nn.Module):
    """A model in float64 that takes the float32 of a data set."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.double())


@pytest.mark.parametrize("mode", ["sampled", "true", "all"])
def test_in_recognition_it_is_that_of_the_tasks_own_head(tiny_stream: Stream, mode):
    torch.manual_seed(0)
    model = mlp((1, 4, 4), dim=4, hidden=(8,)).double()
    task = tiny_stream[1]
    loss = Recognition(4, [each.classes for each in tiny_stream], task.train.class_names).double()
    samples, labels = task.train[list(range(len(task.train)))]
    whole = nn.Sequential(model, loss.heads[1])
    torch.manual_seed(11)
    found = {  # inputs are read as float32
        size: fisher_of_task(Double(model), task, loss, labels=mode, batch_size=size) for size in (3, 256)
    }
    expected = oracles.fisher_importance(whole, samples.double(), (labels - task.classes[0]).tolist(), mode, seed=11)
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
