"""From a configuration to a run."""

from __future__ import annotations

import pytest
import torch

from tripletmas.basics.weights import state_of
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import build, choose_device, load_trained, run_experiment

SMALL = {
    "data": {"name": "digits", "tasks": [2, 3, 5]},
    "model": {"name": "mlp", "hidden": [16], "dim": 8},
    "strategy": {"name": "mas", "strength": 2.0},
    "training": {"epochs": 1},
    "device": "cpu",
}


def test_the_parts_are_those_of_the_configuration():
    made = build({**SMALL, "seed": 7, "loss": {"name": "proxy_anchor", "alpha": 16}})
    assert [len(task.classes) for task in made.stream] == [2, 3, 5]
    assert [tuple(p.shape) for p in made.model.parameters()] == [(16, 64), (16,), (8, 16), (8,)]
    assert [tuple(p.shape) for p in made.objective.parameters()] == [
        (10, 8)
    ]  # a proxy for each class of the whole stream
    made.strategy.prepare(made.model, made.objective, made.stream)
    assert made.strategy.protections[0].strength == 2.0
    assert (made.training.epochs, made.training.seed) == (1, 7)
    assert made.config["training"]["lr"] == 1e-3  # every default is filled in


@pytest.mark.parametrize(("mining", "miner"), [("none", "NoneType"), ("batch_hard", "BatchHardMiner")])
def test_the_mining_is_that_of_the_configuration(mining, miner):
    made = build({**SMALL, "loss": {"name": "contrastive", "mining": mining}})  # whose own default is none
    assert type(made.objective.loss.miner).__name__ == miner


def test_the_seed_draws_the_first_weights_and_the_proxies():
    def weights(seed: int) -> torch.Tensor:
        made = build({**SMALL, "seed": seed, "loss": "proxy_anchor"})
        return torch.cat([p.detach().flatten() for part in (made.model, made.objective) for p in part.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.slow
def test_a_run_says_what_it_was(tmp_path):
    scores = run_experiment(SMALL, tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    config = run.config()
    assert config["version"]["torch"]
    chosen = {"strength": 2.0, "decay": 1.0, "relative": True, "output": "embedding", "batch_gradients": None}
    assert config["strategy"] == {"name": "mas", **chosen}
    assert scores.matrix().shape == (3, 3)
    again = run_experiment(config, tmp_path / "run")  # its own configuration goes on with it; versions are ignored
    assert again.to_json() == scores.to_json()
    with pytest.raises(ValueError, match=r"another configuration \(training\.epochs: 1 -> 2\)"):
        run_experiment({**SMALL, "training": {"epochs": 2}}, tmp_path / "run")


@pytest.mark.slow
def test_a_trained_model_is_loaded_after_any_task(tmp_path):
    run_experiment(SMALL, tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    for after in (0, 1, 2, None):
        experiment, number = load_trained(run, after)
        assert number == (2 if after is None else after)
        saved = run.read_tensors(f"weights/task{number:02d}.safetensors")
        assert all(torch.equal(value, saved[name]) for name, value in state_of(experiment.model).items())
    for after in (3, -1):
        with pytest.raises(ValueError, match=f"tasks 0 to 2 are done, so there is no model after task {after}"):
            load_trained(run, after)


@pytest.mark.slow
def test_weights_that_changed_by_low_rank_are_plain_weights(tmp_path):
    """After each task; they fit the model without changes of low rank, which gives the same embeddings."""
    adapted = {**SMALL, "model": {**SMALL["model"], "lora": 2}}
    run_experiment(adapted, tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    plain, start = build(SMALL).model, run.start_weights()
    assert start.keys() == state_of(plain).keys()
    before = start
    for task in range(3):
        run.load_weights(plain, task)
        now = {name: value.clone() for name, value in state_of(plain).items()}
        experiment, _ = load_trained(run, task)
        images = experiment.stream[0].query[[0, 1]][0]
        assert torch.equal(plain(images), experiment.model(images))
        assert torch.equal(now["hidden1.bias"], before["hidden1.bias"])
        change = torch.linalg.svdvals((now["hidden1.weight"] - before["hidden1.weight"]).double())
        assert change[1] > 1e-4  # of rank 2, but for rounding
        assert change[2] < 1e-5
        before = now
    assert set(run.importance(0).read(2)) == {"hidden1.weight", "embedding.weight", "embedding.bias"}


def test_a_run_without_a_finished_task(tmp_path):
    run = RunDirectory.create(tmp_path / "run", SMALL)
    with pytest.raises(ValueError, match=r"no task is done yet; go on with: tripletmas resume .*run"):
        load_trained(run)


@pytest.mark.slow
def test_weights_of_another_model_are_refused(tmp_path):
    run_experiment(SMALL, tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    run.write_tensors("weights/task02.safetensors", {"other": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"task02\.safetensors belongs to another model: missing: .*unexpected: other"):
        load_trained(run)
    (run.path / "weights" / "task02.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"task02\.safetensors cannot be read"):
        load_trained(run)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    for name in ("cuda", "cuda:1"):
        with pytest.raises(
            ValueError, match=f"device '{name}' was asked for, but torch sees no CUDA device: use --dev"
        ):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    with pytest.raises(ValueError, match="device 'cuda:1' was asked for, but torch sees 1 CUDA device"):
        choose_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cpu:x"])
def test_a_device_that_makes_no_sense(name):
    with pytest.raises(ValueError, match=f"unknown device '{name}': use auto, cpu, cuda or cuda:NUMBER"):
        choose_device(name)


def test_nothing_is_written_when_a_part_cannot_be_built(tmp_path):
    for wrong in ({"device": "gpu"}, {"data": {"name": "folder", "root": str(tmp_path / "none")}}, {"strategy": "ma"}):
        with pytest.raises(ValueError):
            run_experiment({**SMALL, **wrong}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_training_options_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="epochs must be >= 1, got 0"):
        run_experiment({**SMALL, "training": {"epochs": 0}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
