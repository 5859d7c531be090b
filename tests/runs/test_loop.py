"""The loop: what one step does, what each option changes, what stops it. Resuming at any point: test_resume.py."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tripletmas.basics.weights import snapshot, state_of, weight_hash
from tripletmas.data.folders import folder
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, Task, make_stream
from tripletmas.models.embedding import Embedder, embed
from tripletmas.models.networks import conv4, mlp
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval, score_alone
from tripletmas.protection.coverage import Coverage
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.combine import Combine
from tripletmas.strategies.distill import Distill
from tripletmas.strategies.ebll import EBLL
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen
from tripletmas.strategies.gram import Gram
from tripletmas.strategies.joint import Joint
from tripletmas.strategies.mas import MAS
from tripletmas.strategies.replay import Replay

SMALL = TrainConfig(epochs=2, batch_size=8, samples_per_class=2)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return mlp((1, 4, 4), dim=4, hidden=())


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return mlp((1, 4, 4), dim=4, hidden=(8,))


def triplet() -> nn.Module:
    return make_loss("triplet", dim=4, num_classes=6)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state_of(one).values(), state_of(other).values(), strict=True))


class OwnWeight(nn.Module):
    """A loss whose own weight has gradient 1, and that gives the model no gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return 0 * embeddings.sum() + self.weight


def one_step(tiny_stream: Stream) -> Stream:
    """One task of 8 images: one batch of 8 is an epoch."""
    task = tiny_stream[0]
    keep = torch.cat([(task.train.labels == label).nonzero().flatten()[:4] for label in task.classes])
    return (replace(task, train=task.train.subset(keep)),)


# --- one step, by hand


def test_sgd_with_momentum_and_a_rate_for_the_loss(tiny_stream):
    """Gradient 1 and momentum m: steps of 1, 1 + m; the weight decay is for the model alone."""
    loss = OwnWeight()
    config = TrainConfig(
        epochs=2,
        batch_size=8,
        optimizer="sgd",
        lr=0.1,
        loss_lr=0.5,
        momentum=0.5,
        weight_decay=0.3,
        schedule="constant",
    )
    train_stream(linear(), one_step(tiny_stream), Finetune(), loss, config)
    assert loss.weight.item() == pytest.approx(-0.5 * (1 + 1.5))
    loss = OwnWeight()
    train_stream(linear(), one_step(tiny_stream), Finetune(), loss, replace(config, loss_lr=None, epochs=1))
    assert loss.weight.item() == pytest.approx(-0.1)
    loss = OwnWeight()
    train_stream(linear(), one_step(tiny_stream), Finetune(), loss, replace(config, loss_lr=0.0, epochs=1))
    assert loss.weight.item() == 0


def test_every_task_has_a_fresh_optimizer(tiny_stream):
    """Were the momentum of task 1 still there, its second step would be 1 + m."""
    loss = OwnWeight()
    stream = (*one_step(tiny_stream), *one_step(tiny_stream[1:]))
    config = TrainConfig(epochs=1, batch_size=8, optimizer="sgd", lr=1.0, momentum=0.5)
    train_stream(linear(), stream, Finetune(), loss, config)
    assert loss.weight.item() == pytest.approx(-2)


def test_weight_decay_shrinks_the_model(tiny_stream):
    model = linear()
    before = snapshot(dict(model.named_parameters()))
    config = TrainConfig(epochs=1, batch_size=8, optimizer="sgd", lr=0.1, momentum=0, weight_decay=0.5)
    train_stream(model, one_step(tiny_stream), Finetune(), OwnWeight(), config)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(("clip", "precision"), [(0.002, "fp32"), (0.002, "fp16"), (None, "fp32")])
def test_clip_bounds_the_gradient(clip, precision, tiny_stream):
    """In fp16 the loss is scaled up for the backward pass; what is clipped is the gradient without that."""
    model = linear()
    before = snapshot(dict(model.named_parameters()))
    config = TrainConfig(epochs=1, batch_size=8, optimizer="sgd", lr=1.0, momentum=0, clip=clip, precision=precision)
    train_stream(model, one_step(tiny_stream), Finetune(), lambda embeddings, labels: 0.01 * embeddings.sum(), config)
    moved = torch.cat([(parameter - before[name]).flatten() for name, parameter in model.named_parameters()]).norm()
    # without clipping, the bias alone (4 numbers, each with gradient 0.01 * 8 samples) moves by 0.16
    assert moved.item() == pytest.approx(0.002, rel=1e-2) if clip else moved > 0.16


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedules(schedule, tiny_stream, tmp_path):
    """With a gradient of 1 the loss's own weight sums the rates of the 2 epochs x 2 steps."""
    loss = OwnWeight()
    run = RunDirectory.create(tmp_path / "run", {})
    config = TrainConfig(epochs=2, batch_size=8, optimizer="sgd", lr=0.1, momentum=0, schedule=schedule)
    train_stream(linear(), tiny_stream[:1], Finetune(), loss, config, run)
    rates = {
        "constant": [0.1] * 4,
        "cosine": [0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)],  # from 0.1, on the way to 0
    }[schedule]
    assert loss.weight.item() == pytest.approx(-sum(rates))
    epochs = [record for record in run.records() if record["kind"] == "epoch"]
    assert [record["steps"] for record in epochs] == [2, 2]  # 14 images, 8 a batch
    assert [record["rate"] for record in epochs] == pytest.approx([rates[1], rates[3]])


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_every_optimizer_lowers_the_loss(optimizer, tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    config = TrainConfig(epochs=15, batch_size=8, optimizer=optimizer, lr=0.03)
    train_stream(perceptron(), tiny_stream[:1], Finetune(), triplet(), config, run)
    losses = [record["loss"] for record in run.records() if record["kind"] == "epoch"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("precision", "inside"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_is_of_the_forward_pass_alone(precision, inside, tiny_stream):
    model, seen = perceptron(), []
    model.get_submodule("embedding").register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype) if module.training else None
    )

    def loss(embeddings, labels):
        assert embeddings.dtype == torch.float32
        return triplet()(embeddings, labels)

    before = state_of(perceptron())
    train_stream(model, tiny_stream[:1], Finetune(), loss, replace(SMALL, precision=precision))
    assert set(seen) == {inside}
    assert all(value.dtype == torch.float32 for value in state_of(model).values())
    assert not torch.equal(before["embedding.weight"], state_of(model)["embedding.weight"])


@pytest.mark.filterwarnings("ignore:the running statistics of batch norm")  # of gram, where they are asked to move
@pytest.mark.parametrize(
    ("strategy", "asked", "frozen"),
    [
        (Finetune(), True, True),
        (Finetune(), False, False),
        (Finetune(), None, False),
        (Gram(), None, True),
        (Gram(), False, False),
        (Combine({"distill": Distill(), "gram": Gram()}), None, True),
    ],
)
def test_freeze_batchnorm_holds_the_statistics_after_the_first_task(strategy, asked, frozen, class_images, tmp_path):
    stream = make_stream(Source(class_images(4, side=16, per_class=6)), tasks=2)[0]
    run = RunDirectory.create(tmp_path / "run", {})
    model = conv4((1, 16, 16), dim=4, width=4)
    train_stream(model, stream, strategy, triplet(), replace(SMALL, freeze_batchnorm=asked, epochs=1), run)
    start, first, second = (run.read_tensors(f"weights/{name}.safetensors") for name in ("start", "task00", "task01"))
    name = "block1.norm.running_mean"
    assert not torch.equal(start[name], first[name])
    assert torch.equal(first[name], second[name]) == frozen
    assert not torch.equal(first["block1.norm.weight"], second["block1.norm.weight"])  # its parameters still learn


def test_always_holds_them_in_the_first_task_too(class_images):
    stream, model = make_stream(Source(class_images(4, side=16, per_class=6)), tasks=2)[0], conv4((1, 16, 16), width=4)
    model.get_submodule("block1.norm").running_mean.fill_(0.3)  # pyright: ignore[reportCallIssue]
    before = copy.deepcopy(model.state_dict())
    train_stream(model, stream, Finetune(), triplet(), replace(SMALL, freeze_batchnorm="always", epochs=1))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name or "tracked" in name)
    assert not torch.equal(before["block1.norm.weight"], after["block1.norm.weight"])


# --- strategies


class Recorder(Strategy):
    """Writes down which moments the loop calls, and adds 1 to the loss."""

    def __init__(self):
        self.moments: list[str] = []

    def prepare(self, model, loss, stream):
        self.moments.append("prepare")

    def training_data(self, task, earlier):
        self.moments.append(f"data {task.name} after {len(earlier)}")
        return task.train

    def before_task(self, model, task, optimizer):
        assert isinstance(optimizer, torch.optim.AdamW)
        self.moments.append(f"before {task.name}")

    def loss(self, model, inputs, embeddings):
        assert len(inputs) == len(embeddings)
        self.moments.append("loss")
        return embeddings.new_tensor(1.0)

    def after_step(self, model):
        self.moments.append("step")

    def after_task(self, model, task):
        self.moments.append(f"after {task.name}")

    def deployed(self, model):
        self.moments.append("deployed")
        return model


def test_the_moments_of_a_strategy(tiny_stream, tmp_path):
    recorder = Recorder()
    train_stream(linear(), tiny_stream[:2], recorder, OwnWeight(), replace(SMALL, epochs=1))
    of_task = ["loss", "step"] * 2
    assert recorder.moments == [
        "prepare",
        *["before c0,c1", "data c0,c1 after 0", *of_task, "after c0,c1", "deployed"],
        "deployed",  # what comes next is scored
        "deployed",  # and its embeddings of it are one half of the drift
        *["before c2,c3", "data c2,c3 after 1", *of_task, "after c2,c3", "deployed"],
    ]


def test_what_the_strategy_adds_is_in_the_loss(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    config = replace(SMALL, epochs=1, lr=1e-9)
    train_stream(linear(), tiny_stream[:1], Recorder(), OwnWeight(), config, run)
    assert run.records()[0]["loss"] == pytest.approx(1.0)


def test_frozen_trains_nothing_after_the_first_task(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    config = replace(SMALL, weight_decay=0.1)
    train_stream(perceptron(), tiny_stream, Frozen(), triplet(), config, run)
    start, *after = (
        run.read_tensors(f"weights/{name}.safetensors") for name in ("start", "task00", "task01", "task02")
    )
    assert not torch.equal(start["hidden1.weight"], after[0]["hidden1.weight"])
    for name, value in after[0].items():
        assert torch.equal(value, after[1][name])
        assert torch.equal(value, after[2][name])
    assert {record["task"] for record in run.records() if record["kind"] == "epoch"} == {0}
    assert [record["task"] for record in run.records() if record["kind"] == "task"] == [0, 1, 2]


def test_joint_takes_all_data_so_far(tiny_stream, tmp_path):
    """14 images a task, batches of 8: ceil(14 / 8), ceil(28 / 8), ceil(42 / 8)."""
    run = RunDirectory.create(tmp_path / "run", {})
    train_stream(perceptron(), tiny_stream, Joint(), triplet(), replace(SMALL, epochs=1), run)
    assert [record["steps"] for record in run.records() if record["kind"] == "epoch"] == [2, 4, 6]


def test_mas_penalty_and_importance_are_recorded(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    strategy = MAS(strength=2.0)
    train_stream(perceptron(), tiny_stream, strategy, triplet(), SMALL, run)
    penalties = {(r["task"], r["epoch"]): r["penalty"] for r in run.records() if r["kind"] == "epoch"}
    assert penalties[0, 0] == penalties[0, 1] == 0  # nothing is protected yet
    assert min(penalties[key] for key in penalties if key[0]) > 0
    last = run.read_tensors("importance/task02.safetensors")
    assert all(torch.equal(value, strategy.protections[0].importance[name]) for name, value in last.items())
    first = run.read_tensors("importance/task00.safetensors")
    assert all(bool((last[name] >= first[name]).all()) for name in first)


class Drawing(Strategy):
    """Draws before and after each task."""

    def __init__(self):
        self.draws: dict[str, float] = {}

    def before_task(self, model, task, optimizer):
        self.draws[f"before {task.name}"] = torch.rand(()).item()

    def after_task(self, model, task):
        self.draws[f"after {task.name}"] = torch.rand(()).item()


@pytest.mark.slow
def test_what_a_strategy_draws_is_the_same_after_an_interruption(tiny_stream, tmp_path):
    """Interrupted in task 1, epoch 1, and between the last epoch of task 1 and its scoring."""
    whole, again = Drawing(), Drawing()
    train_stream(linear(), tiny_stream, whole, triplet(), SMALL)
    assert len(set(whole.draws.values())) == 6
    run = RunDirectory.create(tmp_path / "run", {})
    with pytest.raises(FloatingPointError):
        train_stream(linear(), tiny_stream, again, failing_at(6), SMALL, run)
    torch.manual_seed(123)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Retrieval, "score", fail)
        with pytest.raises(RuntimeError, match="interrupted"):
            train_stream(linear(), tiny_stream, again, triplet(), SMALL, run)
    train_stream(linear(), tiny_stream, again, triplet(), SMALL, run)
    assert again.draws == whole.draws


def fail(*arguments, **options):
    raise RuntimeError("interrupted")


# --- what stops it


def failing_at(step: int, value: float = math.nan):
    """The triplet loss, which at one step (counted over the whole run) is `value`."""
    metric, steps = triplet(), []

    def loss(embeddings, labels):
        steps.append(1)
        return metric(embeddings, labels) * (value if len(steps) - 1 == step else 1.0)

    return loss


def test_what_is_frozen_never_moves_and_is_told(class_images, tmp_path):
    """From the first task on: weights, and the statistics of batch norm in them."""
    stream = make_stream(Source(class_images(4, side=16, per_class=6)), tasks=2)[0]
    torch.manual_seed(0)
    model = conv4((1, 16, 16), dim=4, width=4)
    before = snapshot(state_of(model))
    run = RunDirectory.create(tmp_path, {})
    train_stream(model, stream, MAS(), triplet(), replace(SMALL, freeze="block1,block3.conv.weight"), run)
    moved = {name for name, value in state_of(model).items() if not torch.equal(value, before[name])}
    held = {name for name in before if name.startswith("block1.") or name == "block3.conv.weight"}
    assert moved == before.keys() - held
    record = run.records("task")[-1]["unprotected"]
    assert set(record["frozen parameters"]) == held - {name for name in held if "running" in name or "num_b" in name}
    assert run.importance(0).read(1).keys().isdisjoint(held)


def test_each_task_warms_up(tiny_stream, monkeypatch):
    rates = []
    real = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    config = replace(SMALL, optimizer="sgd", lr=0.5, warmup=2)
    train_stream(linear(), tiny_stream[:2], Finetune(), triplet(), config)
    in_a_task = len(rates) // 2
    assert rates == ([0.25] + [0.5] * (in_a_task - 1)) * 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_nothing_is_overwritten(value, tiny_stream, tmp_path):
    """2 steps an epoch, 2 epochs a task: step 7 is task 1, epoch 1, step 1."""
    whole = perceptron()
    train_stream(whole, tiny_stream, MAS(), triplet(), SMALL)
    run = RunDirectory.create(tmp_path / "run", {})
    place = r"the loss is (nan|inf) in task 1 \(c2,c3\), epoch 1, step 1: lower lr"
    with pytest.raises(FloatingPointError, match=place):
        train_stream(perceptron(), tiny_stream, MAS(), failing_at(7, value), SMALL, run)
    saved = run.load_checkpoint()
    assert saved is not None
    assert (saved.task, saved.epoch) == (1, 1)
    assert all(tensor.isfinite().all() for tensor in saved.model.values())
    again = perceptron()
    train_stream(again, tiny_stream, MAS(), triplet(), SMALL, run)
    assert same(again, whole)


def test_a_learning_rate_that_is_far_too_high(tiny_stream):
    with pytest.raises(FloatingPointError, match=r"the loss is nan in task 0 \(c0,c1\), epoch 0, step 1"):
        train_stream(perceptron(), tiny_stream, Finetune(), triplet(), replace(SMALL, lr=1e30))


def test_a_finite_loss_with_a_gradient_that_is_not(tiny_stream, tmp_path):
    """The root of 0 has an infinite gradient. The weights it spoils must not reach the checkpoint."""
    run = RunDirectory.create(tmp_path / "run", {})
    steps = []

    def loss(embeddings, labels):
        steps.append(1)
        return (
            (embeddings - embeddings.detach()).square().sum().sqrt() if len(steps) == 4 else embeddings.square().sum()
        )

    with pytest.raises(FloatingPointError, match=r"weights are no longer finite \(embedding\.weight\) after task 0"):
        train_stream(linear(), tiny_stream, Finetune(), loss, SMALL, run)
    saved = run.load_checkpoint()
    assert saved is not None
    assert (saved.task, saved.epoch) == (0, 1)
    assert all(tensor.isfinite().all() for tensor in saved.model.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"samples_per_class": 1}, "samples_per_class must be >= 2, got 1"),
        ({"eval_batch_size": 0}, "eval_batch_size must be >= 1, got 0"),
        ({"num_workers": -1}, "num_workers must be >= 0, got -1"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"lr": 0.0}, "lr and clip must be > 0, got lr=0.0"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"optimizer": "adamax"}, "optimizer must be one of adamw, adam, sgd, got 'adamax'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, .*auto, got 'fp8'"),
        ({"schedule": "cosin"}, "schedule must be one of constant, cosine, step, got 'cosin'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_a_class_with_one_training_image(tiny_stream):
    task = tiny_stream[0]
    alone = torch.cat([(task.train.labels == 0).nonzero()[:1], (task.train.labels == 1).nonzero()]).flatten()
    stream = (replace(task, train=task.train.subset(alone)),)
    with pytest.raises(ValueError, match="a class needs at least two samples to form a triplet; those with one: 0"):
        train_stream(linear(), stream, Finetune(), triplet(), SMALL)


@pytest.mark.parametrize("name", ["triplet", "contrastive", "multi_similarity", "ntxent", "proxy_anchor"])
@pytest.mark.filterwarnings("ignore:.*has one class")
def test_a_task_of_one_class(name, class_images):
    """A triplet finds no negative in it, which is no error."""
    stream = make_stream(Source(class_images(3)), tasks=[2, 1])[0]
    scores = train_stream(
        perceptron(), stream, MAS(), make_loss(name, dim=4, num_classes=3), replace(SMALL, batch_size=16)
    )
    assert scores.matrix()[1].isfinite().all()


# --- new tasks


@pytest.mark.slow
def test_tasks_that_are_added_at_the_end_are_learned_and_earlier_ones_stay(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    train_stream(perceptron(), tiny_stream[:2], MAS(), triplet(), SMALL, run)
    records = run.records()
    weights = (run.path / "weights" / "task00.safetensors").stat().st_mtime_ns
    again, whole = perceptron(), perceptron()
    scores = train_stream(again, tiny_stream, MAS(), triplet(), SMALL, run)
    assert run.records()[: len(records)] == records
    assert {record["task"] for record in run.records()[len(records) :]} == {2}
    assert (run.path / "weights" / "task00.safetensors").stat().st_mtime_ns == weights
    expected = train_stream(whole, tiny_stream, MAS(), triplet(), SMALL)
    assert same(again, whole)
    assert scores.to_json() == expected.to_json() == run.read_json("scores.json")


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    model = perceptron()
    scores = train_stream(model, tiny_stream, MAS(), triplet(), SMALL, run)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    again = perceptron()

    def never(embeddings, labels):
        raise AssertionError("a finished run was trained")

    assert train_stream(again, tiny_stream, MAS(), never, SMALL, run).to_json() == scores.to_json()
    assert same(again, model)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_earlier_tasks_that_changed_are_an_error(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    train_stream(perceptron(), tiny_stream[:2], Finetune(), triplet(), SMALL, run)
    first, second, third = tiny_stream
    with pytest.raises(ValueError, match=r"task 0 of the run .* was 'c0,c1', but the data now give 'c4,c5': tasks may"):
        train_stream(perceptron(), (third, first, second), Finetune(), triplet(), SMALL, run)
    with pytest.raises(ValueError, match=r"task 1 .* was 'c2,c3', but the data now give no such task"):
        train_stream(perceptron(), (first,), Finetune(), triplet(), SMALL, run)


def test_a_task_that_changed_while_it_was_learned_is_an_error(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    with pytest.raises(FloatingPointError):
        train_stream(perceptron(), tiny_stream, Finetune(), failing_at(2), SMALL, run)
    with pytest.raises(ValueError, match=r"task 0 of the run .* was 'c0,c1', but the data now give 'c2,c3'"):
        train_stream(perceptron(), tiny_stream[1:], Finetune(), triplet(), SMALL, run)


@pytest.mark.slow
def test_a_loss_with_proxies_says_that_it_cannot_take_new_classes(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    small, large = (make_loss("proxy_anchor", dim=4, num_classes=count) for count in (4, 6))
    train_stream(perceptron(), tiny_stream[:2], Finetune(), small, SMALL, run)
    with pytest.raises(
        ValueError, match=r"\(6, 4\).*a loss with a vector for each class cannot go on with new classes"
    ):
        train_stream(perceptron(), tiny_stream, Finetune(), large, SMALL, run)


def test_a_checkpoint_of_another_model(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    train_stream(perceptron(), tiny_stream[:1], Finetune(), triplet(), SMALL, run)
    other = mlp((1, 4, 4), dim=4, hidden=(8, 8))
    before = snapshot(state_of(other))
    with pytest.raises(ValueError, match=r"belongs to another model: missing: hidden2\.bias, hidden2\.weight"):
        train_stream(other, tiny_stream, Finetune(), triplet(), SMALL, run)
    assert all(torch.equal(before[name], value) for name, value in state_of(other).items())
    with pytest.raises(ValueError, match=r"unexpected: hidden1\.bias, hidden1\.weight; of another shape: embedding"):
        train_stream(linear(), tiny_stream, Finetune(), triplet(), SMALL, run)


# --- records


@pytest.mark.slow
def test_what_is_recorded(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    model = perceptron()
    scores = train_stream(model, tiny_stream, MAS(), triplet(), SMALL, run)
    epochs, tasks = ([r for r in run.records() if r["kind"] == kind] for kind in ("epoch", "task"))
    assert [(r["task"], r["epoch"]) for r in epochs] == [(task, epoch) for task in range(3) for epoch in range(2)]
    assert {"loss", "penalty", "rate", "steps", "seconds"} <= epochs[0].keys()
    assert [r["name"] for r in tasks] == ["c0,c1", "c2,c3", "c4,c5"]
    assert [r["queries"] for r in tasks] == [[6], [6, 6], [6, 6, 6]]
    for task, record in enumerate(tasks):
        for gallery in ("seen", "task"):
            row = scores.matrix("recall@1", gallery)[task]
            assert record["scores"][gallery]["recall@1"] == row[: task + 1].tolist()
            ahead = int(gallery == "task" and task < 2)  # the next task, on its own gallery, before it is learned
            assert not row[: task + 1 + ahead].isnan().any()
            assert row[task + 1 + ahead :].isnan().all()
    assert set(scores.matrices["seen"]) == {
        *("recall@1", "recall@2", "recall@4", "recall@8"),
        *("r_precision", "map@r", "mrr", "mrr@10", "ndcg@10"),
    }
    kinds = ("buffers", "frozen parameters", "replaced or new", "loss parameters")
    unprotected = tasks[-1]["unprotected"]
    assert {kind: unprotected[kind] for kind in kinds} == {kind: [] for kind in kinds}
    assert Coverage.from_json(unprotected).num_weights == sum(p.numel() for p in model.parameters())
    index = run.read_tensors("index/final.safetensors")
    assert torch.equal(index["labels"], torch.cat([task.query.labels for task in tiny_stream]))
    with torch.no_grad():
        torch.testing.assert_close(index["vectors"][:6], model.eval()(tiny_stream[0].query[list(range(6))][0]))
    assert run.read_json("index/final.json") == {
        "class_names": [f"c{i}" for i in range(6)],
        "tasks": [[0, 1], [2, 3], [4, 5]],
    }
    final = run.read_tensors("weights/task02.safetensors")
    assert all(torch.equal(final[name], value) for name, value in state_of(model).items())


@pytest.mark.slow
def test_how_far_held_responses_moved_is_recorded(tiny_stream, tmp_path):
    """By hand, of one linear layer: the mean squared change of its answers, in the unit of their mean square then."""
    run = RunDirectory.create(tmp_path / "run", {})
    train_stream(linear(), tiny_stream[:2], Gram(strength=1.0), triplet(), SMALL, run)
    records = run.records("task")
    assert "changed_responses" not in records[0]
    answers = []
    for number in range(2):
        model = linear()
        run.load_weights(model, number)
        answers.append(embed(model, tiny_stream[0].train).vectors)
    change = (answers[1] - answers[0]).square().sum(dim=1).mean() / answers[0].square().sum(dim=1).mean()
    (share,) = records[1]["changed_responses"].values()
    assert share == pytest.approx(float(change), rel=1e-4)


def test_what_is_left_unprotected_is_recorded(class_images, tmp_path):
    stream = make_stream(Source(class_images(2, side=16)), tasks=1)[0]
    run = RunDirectory.create(tmp_path / "run", {})
    proxies = make_loss("proxy_anchor", dim=4, num_classes=2)
    train_stream(conv4((1, 16, 16), dim=4, width=4), stream, MAS(), proxies, replace(SMALL, epochs=1), run)
    unprotected = run.records()[-1]["unprotected"]
    assert "block1.norm.running_mean" in unprotected["buffers"]
    assert unprotected["loss parameters"] == ["loss.proxies"]
    assert unprotected["layers"].keys() == {
        *(f"block{number}.{part}" for number in (1, 2, 3, 4) for part in ("conv", "norm")),
        "embedding",
    }


def test_a_task_where_nothing_can_be_found_is_null_in_strict_json(class_images, tmp_path):
    """Two queries of different classes: neither has another item of its class to find."""
    data = class_images(2)
    query = data.subset([0, 10])
    stream = (Task("lonely", (0, 1), data.subset([*range(1, 10), *range(11, 20)]), query),)
    run = RunDirectory.create(tmp_path / "run", {})
    scores = train_stream(linear(), stream, Finetune(), triplet(), SMALL, run)
    assert scores.matrix().isnan().all()

    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    record = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=refuse)
    assert record["scores"]["seen"]["recall@1"] == [None]
    assert record["without_relevant"] == [2]
    content = json.loads((run.path / "scores.json").read_text(), parse_constant=refuse)
    assert content["matrices"]["seen"]["mrr"] == [[None]]
    # and a finished run reads them back
    assert train_stream(linear(), stream, Finetune(), triplet(), SMALL, run).matrix().isnan().all()


def test_without_a_run_directory_nothing_is_written(tiny_stream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = train_stream(linear(), tiny_stream, MAS(), triplet(), SMALL)
    assert scores.matrix().tril().isfinite().all()
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_are_for_terminals_only(tiny_stream, monkeypatch, capsys):
    train_stream(linear(), tiny_stream[:1], MAS(), triplet(), SMALL)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train_stream(linear(), tiny_stream[:1], MAS(), triplet(), SMALL)
    shown = terminal.getvalue()
    assert "task c0,c1 epoch 1/2" in shown
    for word in ("loss=", "penalty=", "rate="):
        assert word in shown


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("augment", ["none", "photo"])
@pytest.mark.slow
def test_workers_change_nothing(augment, write_images, tmp_path):
    """Images are decoded, and augmented, in worker processes, forked while faiss is in use."""
    workers = [0, 1, 2]
    if hasattr(os, "sched_getaffinity"):
        workers = [min(number, len(os.sched_getaffinity(0))) for number in workers]  # torch warns of more
    for number, name in enumerate(("a/x", "a/y", "b/x", "b/y")):
        write_images(tmp_path / "data" / name, seed=number)
    results = []
    for num_workers in workers:
        source = folder(root=str(tmp_path / "data"), size=4, channels=1, in_memory=False)
        assert not isinstance(source.train.samples, Tensor)
        stream, _ = make_stream(source, augment=augment, test_share=0.5)
        model = perceptron()
        train_stream(model, stream, MAS(), triplet(), replace(SMALL, epochs=1, num_workers=num_workers))
        results.append(model)
    assert all(same(results[0], other) for other in results[1:])


def test_every_epoch_draws_anew_and_the_seed_decides(tiny_stream):
    def drawn(seed: int) -> tuple[list[float], list[float]]:
        batches = []

        def loss(embeddings, labels):
            batches.append(embeddings.detach().sum().item())
            return 0 * embeddings.sum()

        train_stream(linear(), tiny_stream[:1], Finetune(), loss, replace(SMALL, seed=seed))
        return batches[:2], batches[2:]

    first, second = drawn(0)
    assert first != second
    assert drawn(0) == (first, second)
    assert drawn(1)[0] != first


# --- recognition, and scores on tasks to come


@pytest.mark.slow
def test_recognition_runs_through_the_same_loop(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    torch.manual_seed(0)
    loss = Recognition(4, [task.classes for task in tiny_stream], tiny_stream[0].train.class_names)
    config = replace(SMALL, epochs=60, lr=0.01, sampler="shuffled")
    scores = train_stream(perceptron(), tiny_stream, MAS(output="logits"), loss, config, run)
    accuracy = scores.matrix("accuracy", "task")
    assert accuracy.diagonal().mean() > 0.8  # two classes each: guessing gives 0.5
    for kind in ("fresh", "stale", "compensated", "ridge"):
        assert not scores.matrix(f"accuracy_{kind}").tril().isnan().any()
    assert scores.matrix("accuracy_fresh")[0, 0] == scores.matrix("accuracy_stale")[0, 0]  # nothing has moved yet
    learned = run.objectives.read(0)
    heads = [name for name in learned if name.startswith("heads.")]
    assert heads == [f"heads.{i}.{part}" for i in range(3) for part in ("weight", "bias")]
    means = {f"means/{kind}" for kind in ("fresh", "stale", "compensated")}
    assert learned.keys() - set(heads) == means | {f"ridge/{part}" for part in ("gram", "products", "strength")}
    last = [record for record in run.records() if record["kind"] == "task"][-1]
    assert last["unprotected"]["loss parameters"] == heads  # heads are never penalised, and that is said
    assert not any(name.startswith("heads") for name in run.read_tensors("importance/task02.safetensors"))


def test_importance_of_the_logits_is_that_of_the_head_that_was_learned(tiny_stream):
    torch.manual_seed(0)
    loss = Recognition(4, [task.classes for task in tiny_stream], tiny_stream[0].train.class_names)
    model, strategy = perceptron(), MAS(output="logits", relative=False)
    train_stream(model, tiny_stream[:1], strategy, loss, SMALL)
    whole = nn.Sequential(model, loss.heads[0])
    samples, _ = tiny_stream[0].train.plain()[list(range(len(tiny_stream[0].train)))]
    expected = mas_importance(whole, [samples])
    for name, value in strategy.protections[0].importance.items():
        torch.testing.assert_close(value, expected[f"0.{name}"])


def test_logits_need_heads(tiny_stream):
    with pytest.raises(ValueError, match="output 'logits' is nothing that this objective measures: it has embedding;"):
        train_stream(perceptron(), tiny_stream, MAS(output="logits"), triplet(), SMALL)


@pytest.mark.slow
def test_scores_before_a_task_is_learned(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    config = replace(SMALL, forward_transfer=True)
    scores = train_stream(perceptron(), tiny_stream, Finetune(), triplet(), config, run)
    untrained = [score_alone(perceptron(), task, Embedder())["recall@1"] for task in tiny_stream]
    assert scores.baseline["task"]["recall@1"].tolist() == untrained
    first = perceptron()
    train_stream(first, tiny_stream[:1], Finetune(), triplet(), SMALL)
    ahead = scores.matrix("recall@1", "task")[0, 1]
    assert ahead == score_alone(first, tiny_stream[1], Embedder())["recall@1"]
    without = train_stream(perceptron(), tiny_stream, Finetune(), triplet(), SMALL)
    assert without.matrices.keys() == scores.matrices.keys()
    assert not without.baseline  # of the untrained model alone it has to be asked for
    for gallery in ("seen", "task"):
        one, other = (each.matrix(gallery=gallery).nan_to_num(-1) for each in (without, scores))
        assert torch.equal(one, other)  # to score the untrained model changes nothing


@pytest.mark.slow
def test_scores_of_the_untrained_model_on_tasks_that_are_added(tiny_stream, tmp_path):
    config = replace(SMALL, forward_transfer=True)

    def learn(name: str, stream: Stream):
        run = RunDirectory.create(tmp_path / name, {})
        return train_stream(perceptron(), stream, Finetune(), triplet(), config, run)

    learn("grown", tiny_stream[:2])
    grown, whole = learn("grown", tiny_stream), learn("whole", tiny_stream)
    assert grown.to_json() == whole.to_json()
    again = learn("grown", tiny_stream)
    assert again.to_json() == whole.to_json()


def test_a_frozen_model_learns_heads(tiny_stream):
    torch.manual_seed(0)
    loss = Recognition(4, [task.classes for task in tiny_stream], tiny_stream[0].train.class_names)
    model, first = perceptron(), {}
    before = [snapshot(state_of(head)) for head in loss.heads]

    class Watched(Frozen):
        def after_task(self, model, task):
            first.setdefault("state", snapshot(state_of(model)))
            super().after_task(model, task)

    scores = train_stream(model, tiny_stream, Watched(), loss, replace(SMALL, epochs=60, lr=0.01))
    assert all(torch.equal(value, state_of(model)[name]) for name, value in first["state"].items())
    for was, head in zip(before, loss.heads, strict=True):
        assert not torch.equal(was["weight"], state_of(head)["weight"])
    matrix = scores.matrix("accuracy", "task")
    assert torch.equal(matrix[2], matrix.diagonal())  # nothing is forgotten
    for head, task in enumerate(tiny_stream):
        assert loss.accuracy(head, embed(model, task.train.plain())) > 0.85  # of what it was trained on


@pytest.mark.parametrize(("strategy", "recognition"), [(EBLL(), True), (MAS(), True), (Replay(), False)])
def test_no_sample_is_embedded_twice_by_the_same_weights(strategy, recognition, tiny_stream):
    """By strategy, class means, galleries, scores and what comes before the next task together."""
    model, seen, twice = perceptron(), set(), []

    def note(module: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        if not torch.is_inference_mode_enabled():
            return
        weights = weight_hash(state_of(module))
        for sample in inputs[0]:
            key = (weights, sample.numpy().tobytes())
            twice.extend([key] if key in seen else [])
            seen.add(key)

    model.register_forward_hook(note)
    classes = [task.classes for task in tiny_stream]
    loss = Recognition(4, classes, tiny_stream[0].train.class_names) if recognition else triplet()
    train_stream(model, tiny_stream, strategy, loss, SMALL)
    assert seen
    assert not twice
