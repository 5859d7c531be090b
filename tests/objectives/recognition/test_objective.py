"""Recognition: a head for each task, cross-entropy among the classes of the task alone."""

from __future__ import annotations

import pytest
import torch

from tripletmas.objectives.recognition.objective import Recognition

NAMES = ("a", "b", "c", "d", "e")


def make() -> Recognition:
    torch.manual_seed(0)
    return Recognition(3, [(0, 1), (4, 2)], NAMES)


def test_the_loss_is_the_mean_over_samples_each_by_its_own_head():
    recognition, embeddings = make(), torch.randn(6, 3)
    recognition.requires_grad_(False)
    labels = torch.tensor([0, 4, 1, 2, 4, 0])
    expected = 0.0
    for embedding, label in zip(embeddings, labels.tolist(), strict=True):
        classes = (0, 1) if label in (0, 1) else (4, 2)
        head = recognition.heads[0 if label in (0, 1) else 1]
        outputs = {c: float(head.weight[i] @ embedding + head.bias[i]) for i, c in enumerate(classes)}
        total = sum(torch.tensor(outputs[c]).exp() for c in classes)
        expected -= float((torch.tensor(outputs[label]).exp() / total).log())
    assert recognition(embeddings, labels).item() == pytest.approx(expected / 6, rel=1e-5)


def test_a_task_alone_leaves_the_other_heads_without_gradient():
    recognition = make()
    recognition(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward()
    assert recognition.heads[0].weight.grad.abs().sum() > 0
    assert recognition.heads[1].weight.grad is None


def test_a_head_asked_for_a_class_of_another_task():
    with pytest.raises(ValueError, match="head 0 tells apart 'a', 'b'; it was asked for 'c', of another task"):
        make().positions(torch.tensor([0, 2]), 0)
    assert make().positions(torch.tensor([2, 4]), 1).tolist() == [1, 0]


def test_a_class_without_a_head():
    with pytest.raises(ValueError, match="class 'd' has no head: it is in no task"):
        make()(torch.randn(2, 3), torch.tensor([0, 3]))


def test_classes_that_no_head_tells_apart():
    assert make().head_for([4, 2]) == 1
    with pytest.raises(ValueError, match="no head tells apart 'a', 'c': there is one for each of 2 tasks"):
        make().head_for([0, 2])


def test_a_class_is_in_one_task():
    with pytest.raises(ValueError, match="class 'b' is in two tasks, 0 and 1"):
        Recognition(3, [(0, 1), (1, 2)], NAMES)


def test_only_weights_of_heads_are_its_state():
    assert set(make().state_dict()) == {f"heads.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
