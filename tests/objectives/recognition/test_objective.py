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


def shared() -> Recognition:
    """Class b is in the first and in the second task, and the third has the classes of the first."""
    torch.manual_seed(0)
    return Recognition(3, [(0, 1), (1, 2), (0, 1)], NAMES).requires_grad_(False)


def cross_entropy(recognition: Recognition, pairs: list[tuple[int, torch.Tensor, int]]) -> float:
    """The mean over (head, embedding, label)."""
    total = 0.0
    for head, embedding, label in pairs:
        logits = (recognition.heads[head].weight @ embedding + recognition.heads[head].bias).tolist()
        shares = [torch.tensor(logit).exp().item() for logit in logits]
        total -= torch.tensor(shares[recognition.tasks[head].index(label)] / sum(shares)).log().item()
    return total / len(pairs)


def test_a_class_of_several_tasks_goes_to_the_latest_head_so_far():
    recognition, x, labels = shared(), torch.randn(3, 3), torch.tensor([0, 1, 2])
    for number, heads in ((0, (0, 0)), (1, (0, 1)), (2, (2, 2))):
        recognition.begin_task(number)
        wanted = cross_entropy(recognition, [(heads[i], x[i], i) for i in range(2)])
        assert recognition(x[:2], labels[:2]).item() == pytest.approx(wanted, rel=1e-5)
    recognition.begin_task(0)
    with pytest.raises(ValueError, match="class 'c' has no head"):
        recognition(x, labels)


def test_among_old_samples_it_goes_to_the_old_heads_too_of_which_all_classes_are_there():
    recognition, x, labels = shared(), torch.randn(3, 3), torch.tensor([0, 1, 2])
    recognition.begin_task(1, [0, 1, 2])  # all classes of the first task are among the data: a joins b there
    wanted = cross_entropy(recognition, [(0, x[0], 0), (0, x[1], 1), (1, x[1], 1), (1, x[2], 2)])
    assert recognition(x, labels).item() == pytest.approx(wanted, rel=1e-5)
    recognition.begin_task(1, [1, 2])  # class a is not: nothing would tell b from it
    wanted = cross_entropy(recognition, [(1, x[1], 1), (1, x[2], 2)])
    assert recognition(x[1:], labels[1:]).item() == pytest.approx(wanted, rel=1e-5)


def test_of_tasks_with_the_same_classes_the_latest_so_far_has_the_head():
    recognition = shared()
    for number, head in ((0, 0), (1, 0), (2, 2)):
        recognition.begin_task(number)
        assert recognition.head_for([0, 1]) == head
    assert recognition.positions(torch.tensor([1, 2]), 1).tolist() == [0, 1]
    assert recognition.positions(torch.tensor([1, 0]), 0).tolist() == [1, 0]


def test_only_weights_of_heads_are_its_state():
    assert set(make().state_dict()) == {f"heads.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
