"""What is read off a score matrix: values by hand, the literal twins, unfinished runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tripletmas.objectives import scores as f

NAN = math.nan


def matrix_of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


THREE = matrix_of([0.9, NAN, NAN], [0.95, 0.8, NAN], [0.6, 0.85, 0.7])


def test_values_by_hand():
    assert f.average(THREE) == pytest.approx((0.6 + 0.85 + 0.7) / 3)
    # Task 0 was best after task 1: 0.95 - 0.6. Task 1 got better: 0.8 - 0.85 is negative.
    assert f.forgetting_per_task(THREE).tolist() == pytest.approx([0.35, -0.05])
    assert f.forgetting(THREE) == pytest.approx(0.15)
    assert f.backward_transfer(THREE) == pytest.approx(((0.6 - 0.9) + (0.85 - 0.8)) / 2)
    assert f.plasticity(THREE) == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert f.last_row(THREE).tolist() == [0.6, 0.85, 0.7]
    assert f.summarize(THREE) == {
        "average": f.average(THREE),
        "forgetting": f.forgetting(THREE),
        "backward_transfer": f.backward_transfer(THREE),
        "plasticity": f.plasticity(THREE),
    }


@given(st.integers(2, 6), st.integers(0, 2**31))
def test_equal_to_the_literal_twins(tasks: int, seed: int):
    full = torch.rand(tasks, tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    baseline = torch.rand(tasks, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    lower = full.masked_fill(torch.ones(tasks, tasks).triu(1).bool(), NAN)
    before = lower.clone()
    for matrix in (lower, full):  # scores of tasks not yet learned change nothing but forward transfer
        assert f.average(matrix) == pytest.approx(oracles.average(matrix))
        assert f.forgetting_per_task(matrix).tolist() == pytest.approx(oracles.forgetting_per_task(matrix))
        assert f.forgetting(matrix) == pytest.approx(sum(oracles.forgetting_per_task(matrix)) / (tasks - 1))
        assert f.backward_transfer(matrix) == pytest.approx(oracles.backward_transfer(matrix))
        assert f.plasticity(matrix) == pytest.approx(oracles.plasticity(matrix))
        assert f.intransigence(matrix, full.flip(0)) == pytest.approx(oracles.intransigence(matrix, full.flip(0)))
    assert f.forward_transfer(full, baseline) == pytest.approx(oracles.forward_transfer(full, baseline))
    assert torch.equal(lower.nan_to_num(-1), before.nan_to_num(-1))


def test_unfinished_run_equals_the_run_of_the_tasks_so_far():
    unfinished = torch.full((5, 5), NAN, dtype=torch.float64)
    unfinished[:3, :3] = THREE
    assert f.summarize(unfinished) == f.summarize(THREE)
    assert f.forgetting_per_task(unfinished)[:2].tolist() == f.forgetting_per_task(THREE).tolist()
    assert f.forgetting_per_task(unfinished)[2:].isnan().tolist() == [True, True]
    unfinished[3, 4] = 0.1  # a score on a task to come does not make row 3 a measured one
    assert f.summarize(unfinished) == f.summarize(THREE)


def test_forward_transfer_of_an_unfinished_run_ends_at_the_next_task():
    unfinished = torch.full((4, 4), NAN, dtype=torch.float64)
    unfinished[0] = torch.tensor([0.9, 0.3, 0.4, 0.5])
    unfinished[1] = torch.tensor([0.8, 0.9, 0.6, 0.5])
    assert f.forward_transfer(unfinished, torch.full((4,), 0.1)) == pytest.approx(((0.3 - 0.1) + (0.6 - 0.1)) / 2)


def test_single_task_has_no_forgetting_rather_than_zero():
    one = matrix_of([0.9])
    assert f.average(one) == f.plasticity(one) == 0.9
    assert f.forgetting_per_task(one).shape == (0,)
    assert math.isnan(f.forgetting(one))
    assert math.isnan(f.backward_transfer(one))
    assert math.isnan(f.forward_transfer(one, torch.zeros(1)))


def test_nothing_measured_is_nan():
    empty = torch.full((3, 3), NAN, dtype=torch.float64)
    assert f.last_row(empty).shape == (0,)
    assert all(math.isnan(value) for value in f.summarize(empty).values())


def test_a_hole_in_the_last_row_is_not_skipped_in_silence():
    holed = THREE.clone()
    holed[2, 0] = NAN
    assert math.isnan(f.average(holed))
    assert math.isnan(f.forgetting(holed))
    assert math.isnan(f.backward_transfer(holed))


def test_a_hole_in_an_earlier_row_leaves_the_other_rows():
    holed = THREE.clone()
    holed[1, 0] = NAN
    assert f.forgetting_per_task(holed)[0].item() == pytest.approx(0.9 - 0.6)


def test_scores_before_learning_disturb_no_other_number():
    """The loop measures score[t, t + 1] too: only forward transfer may see it, whether the run is finished or not."""
    ahead = THREE.clone()
    ahead[0, 1], ahead[1, 2] = 0.99, 0.01
    assert f.last_row(ahead).tolist() == f.last_row(THREE).tolist()
    assert f.forgetting_per_task(ahead).tolist() == f.forgetting_per_task(THREE).tolist()
    assert f.summarize(ahead) == f.summarize(THREE)
    assert f.intransigence(ahead, THREE) == f.intransigence(THREE, ahead) == 0
    unfinished = torch.full((4, 4), NAN, dtype=torch.float64)
    unfinished[:3, :3] = ahead
    unfinished[2, 3] = 0.5  # measured before task 3 is learned, which then never happened
    assert f.last_row(unfinished).tolist() == f.last_row(THREE).tolist()
    assert f.summarize(unfinished) == f.summarize(THREE)


def test_a_record_of_a_task_that_is_not_known_says_nothing():
    """As that of the next task of a run that was killed, of which the records alone are left."""
    scores = f.Scores(("one", "two"))
    told = {"kind": "ahead", "scores": {"task": {"recall@1": [0.25]}}}
    scores.take({**told, "task": 2})
    assert not scores.matrices
    scores.take({**told, "task": 1})
    assert float(scores.matrix("recall@1", "task")[0, 1]) == 0.25


def test_the_summary_has_forward_transfer_where_it_was_measured():
    ahead = THREE.clone()
    ahead[0, 1], ahead[1, 2] = 0.5, 0.25
    found = f.summarize(ahead, torch.tensor([0.9, 0.1, 0.2]))
    assert found == {**f.summarize(THREE), "forward_transfer": pytest.approx(((0.5 - 0.1) + (0.25 - 0.2)) / 2)}


def test_intransigence_by_hand_and_of_an_unfinished_run():
    joint = matrix_of([0.9, NAN, NAN], [0.9, 0.95, NAN], [0.9, 0.9, 1.0])
    expected = ((0.9 - 0.9) + (0.95 - 0.8) + (1.0 - 0.7)) / 3
    assert f.intransigence(THREE, joint) == pytest.approx(expected)
    unfinished = THREE.clone()
    unfinished[2] = NAN
    assert f.intransigence(unfinished, joint) == pytest.approx((0.0 + 0.15) / 2)
    assert math.isnan(f.intransigence(torch.full((3, 3), NAN), joint))


@given(st.lists(st.tuples(st.floats(0, 1, width=16), st.floats(0, 1, width=16)), min_size=2, max_size=6))
def test_paired_difference_is_equal_to_its_twin(pairs: list[tuple[float, float]]):
    ours, theirs = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    mean, deviation, greater, equal, smaller = oracles.paired_difference(pairs)
    found = f.paired_difference(ours, {**theirs, 17: 0.5})
    assert found[:2] == pytest.approx((mean, deviation), abs=1e-12)
    assert found[2:] == (greater, equal, smaller, 1)
    assert f.paired_difference(ours, theirs, lower_is_better=True)[2:] == (smaller, equal, greater, 0)


def test_paired_difference_of_few_seeds():
    assert math.isnan(f.paired_difference({0: 0.5}, {1: 0.5}).mean)
    one = f.paired_difference({0: 0.5, 1: NAN}, {0: 0.25, 1: 0.3, 2: 0.1})
    assert (one.mean, one.left_out) == (0.25, 2)  # seed 1 was not measured, seed 2 is not ours
    assert math.isnan(one.deviation)
    # 0.3 - 0.1 and 0.2 differ in the last bit only
    assert f.paired_difference({0: 0.3 - 0.1}, {0: 0.2})[2:5] == (0, 1, 0)


def test_scores_record_and_survive_json():
    scores = f.Scores(("a", "b"))
    scores.record("seen", "recall@1", 0, 0, 0.1 + 0.2)
    scores.record("seen", "recall@1", 1, 1, 0.5)
    scores.record("task", "mrr", 0, 0, 1.0)
    scores.record_baseline("task", "recall@1", 1, 0.25)
    text = json.dumps(scores.to_json(), allow_nan=False)
    read = f.Scores.from_json(json.loads(text))
    assert read.baseline["task"]["recall@1"][1] == 0.25
    assert read.baseline["task"]["recall@1"].isnan().tolist() == [True, False]
    assert read.task_names == ("a", "b")
    assert read.to_json() == scores.to_json()
    assert read.matrix()[0, 0] == 0.1 + 0.2
    assert read.matrix().isnan().tolist() == [[False, True], [True, False]]
    assert read.matrix("mrr", "task").dtype == torch.float64


def measured() -> f.Scores:
    scores = f.Scores(("a", "b"))
    scores.record("seen", "recall@1", 0, 0, 1.0)
    return scores


UNFINISHED = THREE.clone()
UNFINISHED[2] = NAN


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: f.average(torch.zeros(2, 3)), r"shape \(T, T\), got \(2, 3\)"),
        (lambda: f.forward_transfer(THREE, torch.zeros(3)), "needs the score on task 1 after task 0"),
        (lambda: f.forward_transfer(THREE, torch.zeros(2)), "baseline must hold one score for each of 3 tasks"),
        (lambda: f.intransigence(THREE, UNFINISHED), "joint run's score on task 2 after task 2"),
        (lambda: f.intransigence(THREE, THREE[:2, :2]), r"matrix of shape \(3, 3\), got \(2, 2\)"),
        (lambda: measured().record("seen", "recall@1", 2, 0, 1.0), "numbered 0 to 1"),
        (lambda: measured().record("seen", "recall@1", 0, -1, 1.0), "numbered 0 to 1"),
        (lambda: measured().record_baseline("task", "recall@1", 2, 1.0), "numbered 0 to 1, got task=2"),
        (lambda: measured().matrix("recall@3"), r"'recall@3'; there are \['recall@1'\]"),
        (lambda: measured().matrix(gallery="stale"), r"gallery 'stale'; there are \['seen'\]"),
        (
            lambda: f.Scores.from_json({**measured().to_json(), "baseline": {"task": {"mrr": [1.0]}}}),
            "task mrr: expected 2 scores of the untrained model",
        ),
        (
            lambda: f.Scores.from_json({**measured().to_json(), "matrices": {"seen": {"mrr": [[1.0]]}}}),
            "seen mrr: expected 2 rows of 2",
        ),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()
