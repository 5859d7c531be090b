"""IMM: merged models against the closed forms of the paper."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_distill import change, make_metric, make_model
from torch import Tensor, nn

from tripletmas.basics.weights import state_of
from tripletmas.strategies import imm
from tripletmas.strategies.imm import IMM


def run(strategy: IMM, model: nn.Module, stream, monkeypatch) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """(weights and buffers, Fisher information) after each task; the informations are drawn."""
    ends = []

    def fisher_of_task(measured: nn.Module, task, loss) -> dict[str, Tensor]:
        assert measured is model
        assert loss is not None
        drawn = {name: torch.rand_like(parameter).square() for name, parameter in model.named_parameters()}
        drawn["1.bias"][0] = 0.0  # about which no task says anything
        if len(ends) == 1:
            drawn["1.bias"][1] = 0.0
        return drawn

    calls = []
    monkeypatch.setattr(imm, "fisher_of_task", lambda *a: calls.append(fisher_of_task(*a)) or calls[-1])
    strategy.prepare(model, make_metric(), stream)
    for task in stream:
        change(model)
        model.train()
        model(task.train[[0, 1, 2]][0] + torch.rand(1))  # moves the statistics of batch norm
        ends.append(({name: value.clone() for name, value in state_of(model).items()}, {}))
        strategy.after_task(model, task)
        if calls:
            ends[-1] = (ends[-1][0], calls.pop())
    return ends


def test_the_mean_of_all_tasks(tiny_stream, monkeypatch):
    model, strategy = make_model(), IMM()
    ends = run(strategy, model, tiny_stream, monkeypatch)
    for name, value in state_of(strategy.deployed(model)).items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(value, ends[-1][0][name])
        else:
            torch.testing.assert_close(value, sum(end[name] for end, _ in ends) / 3)


def test_the_mode_of_all_tasks(tiny_stream, monkeypatch):
    """sum_t F_t theta_t / sum_t F_t, by loops; buffers, and weights with no information at all, are means."""
    model, strategy = make_model(), IMM(merging="mode")
    ends = run(strategy, model, tiny_stream, monkeypatch)
    fell_back = 0
    for name, value in state_of(strategy.deployed(model)).items():
        if name.endswith("num_batches_tracked"):
            continue
        thetas = [end[name].flatten().tolist() for end, _ in ends]
        informations = [fisher[name].flatten().tolist() if name in fisher else None for _, fisher in ends]
        for position, found in enumerate(value.flatten().tolist()):
            weights = [1.0 if each is None else each[position] for each in informations]
            if not sum(weights):
                weights, fell_back = [1.0] * 3, fell_back + 1
            pairs = zip(weights, thetas, strict=True)
            expected = sum(weight * theta[position] for weight, theta in pairs) / sum(weights)
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    assert fell_back == 1


def test_the_farthest_from_the_start(tiny_stream, monkeypatch):
    """By loops: the task whose weight moved most from where the run began; buffers are means."""
    model, strategy = make_model(), IMM(merging="magmax")
    start = {name: value.clone() for name, value in state_of(model).items()}
    ends = run(strategy, model, tiny_stream, monkeypatch)
    chosen = set()
    for name, value in state_of(strategy.deployed(model)).items():
        thetas = [end[name].flatten().tolist() for end, _ in ends]
        if name.endswith("num_batches_tracked"):
            continue
        for position, found in enumerate(value.flatten().tolist()):
            values = [theta[position] for theta in thetas]
            if "running" in name:
                assert found == pytest.approx(sum(values) / 3, rel=1e-4, abs=1e-6), name
                continue
            began = start[name].flatten()[position].item()
            task = max(range(3), key=lambda t: abs(values[t] - began))
            assert found == values[task]
            chosen.add(task)
    assert chosen == {0, 1, 2}


def test_tiny_informations_are_no_less_exact(tiny_stream, monkeypatch):
    model, strategy = make_model(), IMM(merging="mode")
    strategy.prepare(model, make_metric(), tiny_stream)
    for number, task in enumerate(tiny_stream[:2]):
        monkeypatch.setattr(
            imm, "fisher_of_task", lambda *_, n=number: {"1.bias": torch.full((5,), (1 + 2 * n) * 1e-38)}
        )
        with torch.no_grad():
            model[1].bias.fill_(float(number))
        strategy.after_task(model, task)
    found = strategy.deployed(model)[1].bias  # (1 * 0 + 3 * 1) / 4
    torch.testing.assert_close(found, torch.full((5,), 0.75))


@pytest.mark.parametrize("merging", ["mean", "mode", "magmax"])
def test_the_model_itself_is_deployed_after_one_task_and_then_a_lasting_copy(merging, tiny_stream):
    model, strategy = make_model(), IMM(merging=merging)
    assert strategy.deployed(model) is model  # of a run that is only read
    strategy.prepare(model, make_metric(), tiny_stream)
    assert strategy.deployed(model) is model
    strategy.after_task(model, tiny_stream[0])
    assert strategy.deployed(model) is model
    before = model[1].weight.detach().clone()
    change(model)
    own = model[1].weight.detach().clone()
    strategy.after_task(model, tiny_stream[1])
    deployed = strategy.deployed(model)
    merged = deployed[1].weight.detach().clone()
    if merging == "mean":
        torch.testing.assert_close(merged, (before + own) / 2)
    assert torch.equal(model[1].weight, own)  # training goes on from the last task's own weights
    change(model)
    model(tiny_stream[2].train[[0, 1]][0])  # in train mode: the statistics of batch norm move on, and are counted
    assert strategy.state_dict()["merged/2.num_batches_tracked"] == deployed[2].num_batches_tracked == 0
    assert strategy.deployed(model) is deployed
    assert torch.equal(deployed[1].weight, merged)
    strategy.after_task(model, tiny_stream[2])
    assert strategy.deployed(model) is not deployed


@pytest.mark.parametrize("merging", ["mean", "mode", "magmax"])
def test_the_state_is_exact_and_does_not_grow(merging, tiny_stream, tmp_path):
    model, strategy = make_model(), IMM(merging=merging)
    strategy.prepare(model, make_metric(), tiny_stream)
    sizes = []
    for number, task in enumerate(tiny_stream):
        if number == 2:
            save_file(strategy.state_dict(), tmp_path / "state.safetensors")
        change(model)
        strategy.after_task(model, task)
        sizes.append(sum(value.numel() for value in strategy.state_dict().values()))
    assert len(set(sizes)) == 1
    expected = strategy.deployed(model)
    wholly = strategy.state_dict()
    strategy.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert not torch.equal(strategy.deployed(model)[1].weight, expected[1].weight)
    strategy.after_task(model, tiny_stream[2])
    assert all(torch.equal(value, wholly[name]) for name, value in strategy.state_dict().items())
    strategy.load_state_dict(wholly)
    assert all(
        torch.equal(value, state_of(expected)[name]) for name, value in state_of(strategy.deployed(model)).items()
    )


def test_wrong_options_and_no_strength():
    with pytest.raises(ValueError, match="merging must be 'mean', 'mode' or 'magmax', got 'median'"):
        IMM(merging="median")  # pyright: ignore
    with pytest.raises(ValueError, match="IMM has no strength"):
        IMM().set_strength(1.0)
