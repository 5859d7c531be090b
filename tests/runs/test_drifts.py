"""What a run directory says of drift between its models."""

from __future__ import annotations

import torch

from tripletmas.index.base import unit
from tripletmas.index.choice import choose_drift
from tripletmas.index.drift import fit_drift
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.drifts import drifts_between


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def three_models(path) -> tuple[RunDirectory, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A run with the pairs of two updates, and these pairs of unit length."""
    run = RunDirectory.create(path / "run", {})
    for task in (1, 2):
        before = drawn(30, 4, seed=task)
        run.galleries.write(task, {"before": before, "after": before @ drawn(4, 4, seed=10 + task)})
    kept = [run.galleries.read(task) for task in (1, 2)]
    return run, [(unit(each["before"]), unit(each["after"])) for each in kept]


def test_vectors_go_forward_through_the_maps_and_queries_back(tmp_path):
    run, pairs = three_models(tmp_path)
    vectors = unit(drawn(5, 4, seed=3))
    forward = [fit_drift("linear", before, after) for before, after in pairs]
    backward = [fit_drift("linear", after, before) for before, after in pairs]
    moves, choices = drifts_between(run, [0, 1, 2], 2, kind="linear", normalize=True, dim=4)
    torch.testing.assert_close(moves[0](vectors), unit(forward[1](unit(forward[0](vectors)))))
    torch.testing.assert_close(moves[1](vectors), unit(forward[1](vectors)))
    assert torch.equal(moves[2](vectors), vectors)
    moves, _ = drifts_between(run, [0, 1, 2], 2, kind="linear", normalize=True, dim=4, back=True)
    torch.testing.assert_close(moves[0](vectors), unit(backward[0](unit(backward[1](vectors)))))
    torch.testing.assert_close(moves[1](vectors), unit(backward[1](vectors)))
    assert torch.equal(moves[2](vectors), vectors)
    assert choices == {}


def test_each_task_has_a_choice_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tripletmas.index.drift._STEPS", 5)
    run, pairs = three_models(tmp_path)
    for back in (False, True):
        _, choices = drifts_between(run, [0], 2, kind="auto", normalize=True, dim=4, back=back)
        assert choices == {task: choose_drift(*pair[:: -1 if back else 1]) for task, pair in enumerate(pairs, start=1)}
