"""The plugin in Avalanche itself, on two tasks; benchmarks as streams, and streams as benchmarks."""

from __future__ import annotations

import copy
import importlib
import os
import re
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import tripletmas as tm
from tripletmas.data.source import Source
from tripletmas.data.tasks import make_stream
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.strategies.finetune import Finetune

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:No loggers specified"),
    pytest.mark.filterwarnings("ignore:.* does not hold, since they were added"),  # the head of a new task
]
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tasks() -> ModuleType:
    """`avalanche_tasks`, with Avalanche, which takes seconds to import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("avalanche_tasks")


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("clip", "norm", "name"), [("before", 0.2, "perceptron"), ("after", None, "heads")])
def test_equal_to_the_penalty_in_the_loss(tasks, clip, norm, name):
    """Also where a plugin clips the norm of all gradients to 0.2, listed after the protection, or the loss has it."""

    class Clip(tasks.SupervisedPlugin):
        def before_update(self, strategy, **_):
            if norm is not None:
                nn.utils.clip_grad_norm_(strategy.model.parameters(), norm)

    class InLoss(tasks.SupervisedPlugin):
        def __init__(self, model):
            super().__init__()
            self.importance, self.reference = {}, {}

        def before_backward(self, strategy, **_):
            for parameter_name, parameter in strategy.model.named_parameters():
                if parameter_name in self.importance:
                    moved = parameter - self.reference[parameter_name]
                    strategy.loss = strategy.loss + 0.3 * (self.importance[parameter_name] * moved * moved).sum()

        def after_training_exp(self, strategy, **_):
            x, _, task_labels = zip(*strategy.experience.dataset, strict=True)
            batch = {"x": torch.stack(x), "task_labels": torch.tensor(task_labels)}
            with tasks.guest._unseen_classes_left_out(strategy.model):
                new = mas_importance(strategy.model, [batch if name == "heads" else batch["x"]], relative=True)
            self.importance = {key: value + self.importance.get(key, 0) for key, value in new.items()}
            self.reference = {key: value.detach().clone() for key, value in strategy.model.named_parameters()}

    models = []
    for make in (lambda model: tasks.guest.ProtectionPlugin(tm.MAS(model), clip=clip), InLoss):
        torch.manual_seed(0)
        models.append(tasks.MODELS[name]())
        strategy = tasks.make_strategy(models[-1], [make(models[-1]), Clip()])
        if name == "heads":  # in the loss, the penalty on an old head is a gradient of zero, and lets momentum go on
            strategy.optimizer = torch.optim.SGD(models[-1].parameters(), lr=0.05)
        strategy.train(tasks.guest.benchmark_from(tasks.make_stream(), task_labels=True).train_stream)
    assert largest_difference(*models) < 1e-6


def test_what_was_learned_is_kept(tasks):
    """Accuracy on the first task, by a head a task, after ten epochs of the second one."""
    kept = {}
    for name in ("free", "held"):
        torch.manual_seed(0)
        model = tasks.MODELS["heads"]()
        plugins = [tasks.guest.ProtectionPlugin(tm.MAS(model, 30.0, layer="features"))] if name == "held" else []
        strategy = tasks.make_strategy(model, plugins, train_epochs=10)
        strategy.optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        benchmark = tasks.guest.benchmark_from(tasks.make_stream(), task_labels=True)
        for experience in benchmark.train_stream:
            strategy.train(experience)
            weights = [each.detach().clone() for each in model.features.parameters()]
            if not experience.current_experience:
                before = weights
        moved = sum(float((a - b).square().sum()) for a, b in zip(before, weights, strict=True))
        with torch.no_grad():
            images, labels, numbers = (
                torch.stack([torch.as_tensor(each) for each in part])
                for part in zip(*benchmark.streams["test"][0].dataset, strict=True)
            )
            kept[name] = moved, float((model(images, numbers).argmax(dim=1) == labels).float().mean())
    assert kept["held"][0] < 0.5 * kept["free"][0]
    assert kept["held"][1] >= kept["free"][1]


def test_importance_is_that_of_its_own_plugin(tasks):
    """With the gradient of a batch's mean, as MASPlugin takes it."""
    from avalanche.training.plugins import MASPlugin

    torch.manual_seed(0)
    model, theirs = tasks.MODELS["perceptron"](), MASPlugin()
    estimate = partial(mas_importance, relative=False, approximate="batch")
    ours = tasks.guest.ProtectionPlugin(tm.Protection(model, strength=0.0, estimate=estimate))
    strategy = tasks.make_strategy(model, [theirs, ours])
    strategy.train(tasks.guest.benchmark_from(tasks.make_stream(), task_labels=True).train_stream[0])
    assert ours.protection.importance.keys() == theirs.importance.keys()
    for name, importance in ours.protection.importance.items():
        torch.testing.assert_close(importance, theirs.importance[name].data, rtol=1e-5, atol=1e-8)


def test_rows_that_a_head_had_stay_held_when_it_grows(tasks):
    torch.manual_seed(0)
    model = tasks.Growing()
    plugin = tasks.guest.ProtectionPlugin(tm.MAS(model, 30.0))
    strategy = tasks.make_strategy(model, [plugin], train_epochs=1)
    strategy.optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    first, second = tasks.guest.benchmark_from(tasks.make_stream()).train_stream
    strategy.train(first)
    importance = plugin.protection.importance["head.classifier.weight"].clone()
    before = model.head.classifier.weight.detach().clone()
    assert importance.shape == (2, 8)
    free = copy.deepcopy(model)
    strategy.train(second)
    unprotected = tasks.make_strategy(free, [], train_epochs=1)
    unprotected.optimizer = torch.optim.Adam(free.parameters(), lr=0.05)
    unprotected.train(second)
    held, moved = (
        (importance * (each.head.classifier.weight[:2].detach() - before).square()).sum() for each in (model, free)
    )
    assert model.head.classifier.weight.shape == (4, 8)
    assert held < 0.2 * moved


def test_classes_that_are_masked_do_not_count(tasks):
    """Avalanche masks them with -1000: of the relative unit they would leave nothing."""
    torch.manual_seed(0)
    model = tasks.Growing()
    plugin = tasks.guest.ProtectionPlugin(tm.MAS(model))
    # four outputs, of which two are masked: the second task alone
    tasks.make_strategy(model, [plugin]).train(tasks.guest.benchmark_from(tasks.make_stream()).train_stream[1])
    images = torch.stack(
        [image for image, *_ in tasks.guest.benchmark_from(tasks.make_stream()).train_stream[1].dataset]
    )
    active = nn.Sequential(model.features, nn.Linear(8, 2))
    active[1].weight.data, active[1].bias.data = model.head.classifier.weight[2:], model.head.classifier.bias[2:]
    expected = mas_importance(active, [images], relative=True)
    torch.testing.assert_close(plugin.protection.importance["features.1.weight"], expected["0.1.weight"])
    assert model.head.mask_value == -1000


def test_killed_in_the_middle_of_a_task_and_resumed_in_another_process(tasks, tmp_path):
    for how, status in (("whole", 0), ("killed", -signal.SIGKILL), ("resumed", 0)):
        program = [sys.executable, str(TESTS / "avalanche_tasks.py"), how, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
        result = subprocess.run(program, capture_output=True, text=True, env=environment)
        assert result.returncode == status, result.stderr
    whole, resumed = (torch.load(tmp_path / f"{how}.pt") for how in ("whole", "resumed"))
    for part in ("model", "protection"):
        assert whole[part].keys() == resumed[part].keys()
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())
    assert whole["protection"]["1/importance/head.classifier.weight"].shape == (4, 8)


def test_a_checkpoint_without_a_protection(tasks, tmp_path):
    path = tmp_path / "without"
    first = tasks.guest.benchmark_from(tasks.make_stream()).train_stream[0]
    plain = tasks.make_strategy(tasks.perceptron(), [])
    plain.train(first)
    tasks.guest.save_checkpoint(plain, path)
    model = tasks.perceptron()
    protected = tasks.make_strategy(model, [tasks.guest.ProtectionPlugin(tm.MAS(model))])
    with pytest.raises(ValueError, match="without has no protection, so that what was learned would be forgotten"):
        tasks.guest.maybe_load_checkpoint(protected, path)
    assert protected.model is model  # as it was
    assert tasks.guest.maybe_load_checkpoint(protected, tmp_path / "none") == (protected, 0)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="without cannot be read"):
        tasks.guest.maybe_load_checkpoint(protected, path)


def test_what_is_no_protection_or_one_of_another_model(tasks):
    with pytest.raises(ValueError, match=r"takes a protection.*got a NoneType"):
        tasks.guest.ProtectionPlugin(None)
    plugin = tasks.guest.ProtectionPlugin(tm.MAS(tasks.perceptron()))
    first = tasks.guest.benchmark_from(tasks.make_stream()).train_stream[0]
    with pytest.raises(ValueError, match="another model"):
        tasks.make_strategy(tasks.perceptron(), [plugin]).train(first)
    twice = [tasks.guest.ProtectionPlugin(plugin.protection, clip="after") for _ in range(2)]
    with pytest.raises(ValueError, match="two ProtectionPlugins have one protection"):
        tasks.make_strategy(plugin.protection.model, twice).train(first)


def test_a_package_that_is_missing(tasks, monkeypatch):
    monkeypatch.delitem(sys.modules, "tripletmas.integrations.avalanche")
    monkeypatch.setitem(sys.modules, "avalanche", None)
    with pytest.raises(ImportError, match=r'pip install "tripletmas\[avalanche\]"'):
        importlib.import_module("tripletmas.integrations.avalanche")


def test_of_an_online_stream_the_tasks_count(tasks):
    from avalanche.benchmarks.scenarios.online import split_online_stream

    stream = tasks.guest.benchmark_from(tasks.make_stream()).train_stream
    model = tasks.perceptron()
    plugin = tasks.guest.ProtectionPlugin(tm.MAS(model))
    strategy = tasks.make_strategy(model, [plugin], train_epochs=1)
    strategy.train(split_online_stream(stream, experience_size=7, access_task_boundaries=True))
    assert plugin.num_consolidated == 2  # and not 8
    strategy.train(split_online_stream(stream, experience_size=6, access_task_boundaries=True))
    assert plugin.num_consolidated == 4
    blind = split_online_stream(stream, experience_size=7, access_task_boundaries=False)
    with pytest.raises(ValueError, match="does not tell where a task ends"):
        strategy.train(next(iter(blind)))


def test_penalty_and_share_go_to_the_evaluator_and_its_loggers(tasks, tmp_path):
    from avalanche.logging import TensorboardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = tasks.perceptron()
    plugin = tasks.guest.ProtectionPlugin(tm.MAS(model))
    evaluator = tasks.EvaluationPlugin(loggers=[TensorboardLogger(tmp_path)])
    strategy = tasks.make_strategy(model, [plugin], evaluator=evaluator)
    strategy.train(tasks.guest.benchmark_from(tasks.make_stream()).train_stream)
    evaluator.loggers[0].writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    penalties = events.Scalars("Penalty_Epoch/train_phase")
    assert len(penalties) == 6  # three epochs of two experiences; nothing is held in the first
    assert [each.value == 0 for each in penalties] == [True] * 3 + [False] * 3
    shares = events.Scalars("ShareHeld_Exp/train_phase")
    assert shares[-1].value == pytest.approx(plugin.protection.coverage().share_held)


def test_the_page_runs(tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (TESTS.parent / "docs" / "avalanche.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    space: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "avalanche.md", "exec"), space)
    assert len(blocks) == 3
    assert space["plugin"].num_consolidated == 2
    assert space["start"] == 2


# --- several processes


def test_two_processes_have_the_same_weights(tasks, tmp_path):
    torch.multiprocessing.spawn(tasks.learn_in_one_of_several, (2, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for part in ("model", "importance"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    model = tasks.MODELS["perceptron"]()
    model.load_state_dict(one["model"])
    second = tasks.guest.benchmark_from(tasks.make_stream()).train_stream[1]
    alone = mas_importance(model, [torch.stack([image for image, *_ in second.dataset])], relative=True)
    for name, importance in alone.items():  # that of the first task is in the sum, too
        assert (one["importance"][name] >= importance * (1 - 1e-5)).all()


# --- data


def test_a_benchmark_as_a_stream_and_back(tasks, class_images):
    data = class_images(6)
    stream = make_stream(Source(data, data, data), tasks=3, per_class=4)[0]
    benchmark = tasks.guest.benchmark_from(stream)
    assert [list(each.classes_in_this_experience) for each in benchmark.train_stream] == [[0, 1], [2, 3], [4, 5]]
    again = tasks.guest.stream_from(benchmark, gallery="gallery", class_names=data.class_names)
    for before, after in zip(stream, again, strict=True):
        assert (before.classes, before.train.class_names) == (after.classes, after.train.class_names)
        for part in ("train", "query", "gallery"):
            one, other = getattr(before, part), getattr(after, part)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one[range(len(one))][0], other[range(len(other))][0])
    scores = tm.train_stream(
        tm.make_model("mlp", (1, 4, 4)), again, Finetune(), tm.make_loss("triplet", dim=32, num_classes=6),
        tm.TrainConfig(epochs=1),
    )  # fmt: skip
    assert float(scores.matrix("recall@1")[2, 2]) >= 0


def test_an_augmentation_is_for_training_alone(tasks, class_images):
    stream = make_stream(Source(class_images(4)), tasks=2, augment="flip")[0]
    dataset = tasks.guest.benchmark_from(stream).train_stream[0].dataset
    plain = stream[0].train.plain()[0][0]
    assert torch.equal(dataset.eval()[0][0], plain)
    torch.manual_seed(0)
    drawn = [dataset.train()[0][0] for _ in range(20)]
    assert any(torch.equal(each, plain.flip(-1)) for each in drawn)


def test_what_makes_no_stream(tasks):
    benchmark = tasks.guest.benchmark_from(tasks.make_stream())
    with pytest.raises(ValueError, match="no stream 'valid': it has train, test"):
        tasks.guest.stream_from(benchmark, query="valid")
    from avalanche.benchmarks import CLScenario
    from avalanche.benchmarks.scenarios.generic_scenario import EagerCLStream

    one = EagerCLStream("test", [copy.copy(benchmark.streams["test"][0])])
    with pytest.raises(ValueError, match="test stream has 1 experiences, the train stream 2"):
        tasks.guest.stream_from(CLScenario([benchmark.streams["train"], one]))
