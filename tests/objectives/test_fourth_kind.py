"""Adding a kind of task touches its own folder and one line of `kinds.py`: a kind from the tests goes all the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from binary_codes import BinaryCodes, CodesKind, code_recall

from tripletmas.models.embedding import Embeddings
from tripletmas.objectives import kinds
from tripletmas.runs.directory import RunDirectory

OPTIONS = ["--objective=codes", "--data=digits", "--data.tasks=2", "--model.hidden=[16]", "--training.epochs=2"]


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    monkeypatch.setitem(kinds.KINDS, "codes", CodesKind())


def test_recall_of_codes_by_hand():
    gallery = Embeddings(torch.tensor([[1.0, 2.0], [-1.0, 1.0], [-3.0, -1.0]]), torch.tensor([0, 1, 2]))
    # codes ++, -+, --; the first query is the first item itself, so the nearest other is -+ (class 1)
    queries = Embeddings(torch.tensor([[0.5, 0.1], [-0.1, 4.0]]), torch.tensor([0, 1]))
    assert code_recall(queries, gallery, torch.tensor([-1, -1])) == 1.0
    assert code_recall(queries, gallery, torch.tensor([0, -1])) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["distill", "ewc", "mas+replay"])
def test_every_strategy_learns_it(strategy, call, tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert call("train", *OPTIONS, "--report=false", f"--strategy={strategy}", f"--out={run.path}")[0] == 0
    assert min(run.scores()["matrices"]["seen"]["code@1"][1]) > 0.2  # guessing has 0.1


@pytest.mark.slow
def test_it_is_trained_evaluated_compared_and_reported(call, tmp_path):
    run = str(tmp_path / "run")
    given = ["--loss.scale=0.3", "--training.forward_transfer=true", "--data.unseen=2"]
    assert call("train", *OPTIONS, *given, "--strategy=mas", f"--out={run}")[0] == 0
    scores = json.loads((Path(run) / "scores.json").read_text())["matrices"]
    assert set(scores["seen_compensated"]) == {"code@1"}
    last = scores["seen"]["code@1"][1]
    assert min(last) > 0.25  # guessing has 0.125
    printed = call("evaluate", run, "--gallery=stale", f"--json={tmp_path / 'found.json'}")[1]
    assert "code@1" in printed
    assert json.loads((tmp_path / "found.json").read_text())["seen"]["code@1"] == pytest.approx(last)
    page = (Path(run) / "report" / "report.html").read_text()
    assert "final average nearest code" in page
    assert "Codes are compared by Hamming distance." in page
    call("train", *OPTIONS, *given, "--report=false", "--strategy=finetune", f"--out={tmp_path / 'other'}")
    assert "nearest code" in call("compare", run, str(tmp_path / "other"), "--markdown")[1]


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(call, tmp_path):
    whole, stopped = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "stopped")
    call("train", *OPTIONS, "--report=false", f"--out={whole.path}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BinaryCodes, "score", _interrupt_at(2))
        assert call("train", *OPTIONS, "--report=false", f"--out={stopped.path}")[0] == 130
    assert stopped.num_done == 1
    assert call("resume", str(stopped.path))[0] == 0
    for number in range(2):
        one, other = whole.weights.read(number), stopped.weights.read(number)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.scores() == stopped.scores()


@pytest.mark.slow
def test_its_strength_is_searched(call, tmp_path):
    search = ["--strategy=mas", "--strategy.strength=auto", "--search.most=2", "--search.drop=0.9", "--report=false"]
    assert call("train", *OPTIONS, *search, "--training.epochs=6", f"--out={tmp_path / 'run'}")[0] == 0
    (found,) = RunDirectory(tmp_path / "run").records("search")
    assert found["metric"] == "nearest code on validation data of the new task"


def _interrupt_at(count: int):
    score, calls = BinaryCodes.score, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return score(*arguments)

    return interrupting


def test_data_and_losses_of_other_kinds_are_refused(call):
    refused = call("train", "--objective=codes", "--data=shapes-facts", "--out=never")[2]
    assert "data 'shapes-facts' do not fit objective 'codes'" in refused
    refused = call("train", "--objective=codes", "--loss=triplet", "--out=never")[2]
    assert "loss 'triplet' does not fit objective 'codes', which takes pairwise" in refused
