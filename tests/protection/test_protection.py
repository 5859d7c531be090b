"""Protection: the gradient hook equals the penalty in the loss in any training loop; state by name, on disk too."""

from __future__ import annotations

import copy
import errno
import math
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.trainers import MetricLossOnly
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.utils.data import TensorDataset

from tripletmas.basics.weights import Params
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.penalty import quadratic_penalty
from tripletmas.protection.protection import MAS, LocalMAS, Protection

# Weights are moved by hand before they are measured again.
pytestmark = pytest.mark.filterwarnings("ignore:weights that this .* holds have changed since:UserWarning")

STRENGTH = 1.0
Penalty = Callable[[], Tensor]


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).tanh())


def data(seed: int = 1, count: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 4, generator=generator), torch.randn(count, 2, generator=generator)
    return x.to(dtype), y.to(dtype)


def protected(
    *, strength: float = STRENGTH, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[nn.Module, Protection]:
    """A model that has learned one task and has moved away from it a little, so that the penalty counts."""
    torch.manual_seed(0)
    model = Embedding().to(dtype)
    mas = MAS(model, strength, relative=False, **options)
    mas.consolidate([data(0, dtype=dtype)[0]])
    move(model)
    return model, mas


def move(model: nn.Module, by: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))


def assert_same_weights(found: nn.Module, expected: nn.Module, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


# --- any training loop gives what the penalty in the loss gives

Loop = Callable[[nn.Module, Optimizer, Penalty], None]


def criterion(model: nn.Module, step: int) -> Tensor:
    x, y = data(10 + step, dtype=next(model.parameters()).dtype)
    return (model(x) - y).square().mean()


def plain(model: nn.Module, optimizer: Optimizer, penalty: Penalty) -> None:
    for step in range(6):
        optimizer.zero_grad()
        (criterion(model, step) + penalty()).backward()
        optimizer.step()


def accumulating(model: nn.Module, optimizer: Optimizer, penalty: Penalty) -> None:
    for step in range(9):
        ((criterion(model, step) + penalty()) / 3).backward()
        if step % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()


def clipping(model: nn.Module, optimizer: Optimizer, penalty: Penalty) -> None:
    """Clips the gradient of the loss alone, as a hook that runs after clipping does."""
    for step in range(6):
        optimizer.zero_grad()
        criterion(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if (value := penalty()).requires_grad:
            value.backward()
        optimizer.step()


def with_closure(
    model: nn.Module, optimizer: Optimizer, penalty: Penalty, *, keyword: bool = False, steps: int = 6
) -> None:
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            value = criterion(model, step) + penalty()
            value.backward()
            return value

        if keyword:
            optimizer.step(closure=closure)  # pyright: ignore  # as Lightning does
        else:
            optimizer.step(closure)  # pyright: ignore


def scaled(model: nn.Module, optimizer: Optimizer, penalty: Penalty, *, unscale: bool, accumulation: int = 1) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(9):
        scaler.scale((criterion(model, step) + penalty()) / accumulation).backward()
        if step % accumulation == accumulation - 1:
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def metric_learning_trainer(model: nn.Module, optimizer: Optimizer, penalty: Penalty) -> None:
    """That of pytorch-metric-learning, which steps the optimizer itself; with a penalty the same by hand."""
    x, labels, loss = data(3, 24)[0], torch.arange(24) % 3, TripletMarginLoss()
    if penalty is not nothing:
        for start in [0, 8, 16] * 2:
            optimizer.zero_grad()
            (loss(model(x[start : start + 8]), labels[start : start + 8]) + penalty()).backward()
            optimizer.step()
        return
    MetricLossOnly(
        {"trunk": model},
        {"trunk_optimizer": optimizer},
        8,
        {"metric_loss": loss},
        TensorDataset(x, labels),
        data_device="cpu",
        dtype=torch.float64,
        sampler=range(24),
        dataloader_num_workers=0,
        set_min_label_to_zero=False,
    ).train(num_epochs=2)


LOOPS: dict[str, Loop] = {
    "plain": plain,
    "accumulating": accumulating,
    "clipping": clipping,
    "pytorch-metric-learning": metric_learning_trainer,
    "closure": with_closure,
    "closure=": partial(with_closure, keyword=True),
    "scaled": partial(scaled, unscale=False),
    "scaled, unscaled": partial(scaled, unscale=True),
    "scaled, accumulating": partial(scaled, unscale=False, accumulation=3),
}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "sgd momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "sgd in groups": lambda p: SGD([{"params": [each], "lr": 0.02 * i} for i, each in enumerate(p, 1)], lr=0.05),
    "sgd fused": lambda p: SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: Adam(p, lr=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "adamw foreach": lambda p: AdamW(p, lr=0.01, foreach=True),
}


def nothing() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def in_loss(model: nn.Module, mas: Protection) -> Penalty:
    reference, importance = mas.reference, mas.importance
    return lambda: mas.strength * quadratic_penalty(model, reference, importance)


def take_steps(model: nn.Module, penalty: Penalty = nothing, *, attach: Protection | None = None) -> None:
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    if attach is not None:
        attach.attach(optimizer)
    plain(model, optimizer, penalty)


def compare(
    loop: Loop,
    make: Callable[[Any], Optimizer],
    *,
    enter: str = "attach",
    dtype: torch.dtype = torch.float64,
    rtol: float = 1e-9,
    atol: float = 1e-12,
) -> None:
    model, mas = protected(dtype=dtype)
    expected, without = copy.deepcopy(model), copy.deepcopy(model)
    loop(expected, make(expected.parameters()), in_loss(expected, mas))
    loop(without, make(without.parameters()), nothing)
    if enter == "attach":
        optimizer = make(model.parameters())
        mas.attach(optimizer)
        loop(model, optimizer, nothing)
    else:
        with mas.protect():
            loop(model, make(model.parameters()), nothing)
    assert_same_weights(model, expected, rtol, atol)
    pairs = zip(model.parameters(), without.parameters(), strict=True)
    far = max(float((a - b).detach().abs().max()) for a, b in pairs)
    assert far > 1e-4  # the penalty made a difference


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")  # pytorch-metric-learning's
@pytest.mark.parametrize(
    ("enter", "optimizer"),
    [*(("attach", name) for name in OPTIMIZERS), ("protect", "sgd momentum"), ("protect", "adamw fused")],
)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_protected_loop_equals_the_penalty_in_the_loss(loop: str, enter: str, optimizer: str):
    compare(LOOPS[loop], OPTIMIZERS[optimizer], enter=enter)


@pytest.mark.parametrize("enter", ["attach", "protect"])
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("keyword", [False, True])
def test_lbfgs_equals_the_penalty_in_the_loss(search: str | None, keyword: bool, enter: str):
    compare(
        partial(with_closure, keyword=keyword, steps=3),
        lambda p: LBFGS(p, lr=0.5, max_iter=5, line_search_fn=search),
        enter=enter,
        rtol=1e-6,  # curvature estimates amplify rounding
    )


def test_float32_equals_the_penalty_in_the_loss():
    compare(plain, OPTIMIZERS["sgd momentum"], dtype=torch.float32, rtol=1e-6, atol=1e-7)


def test_several_optimizers_each_with_groups_of_its_own():
    proxies = nn.Parameter(torch.ones(3))

    def make(model: Any) -> list[Optimizer]:
        trunk, head = ({"params": list(part.parameters())} for part in (model.trunk, model.head))
        return [SGD([trunk, {"params": [proxies]}], lr=0.05), SGD([head | {"lr": 0.02}], lr=0.05)]

    def loop(model: nn.Module, optimizers: list[Optimizer], penalty: Penalty) -> None:
        for step in range(4):
            for optimizer in optimizers:
                optimizer.zero_grad()
            (criterion(model, step) + penalty()).backward()
            for optimizer in optimizers:
                optimizer.step()

    model, mas = protected()
    expected = copy.deepcopy(model)
    optimizers = make(model)
    for optimizer in optimizers:
        mas.attach(optimizer)
    loop(model, optimizers, nothing)
    loop(expected, make(expected), in_loss(expected, mas))
    assert_same_weights(model, expected)
    assert torch.equal(proxies, torch.ones(3))


# --- the gradient itself


def one_step(model: nn.Module, mas: Protection) -> dict[str, Tensor]:
    """The gradients that a step leaves where the loss has none."""
    optimizer = SGD(model.parameters(), lr=1e-3)
    mas.attach(optimizer)
    optimizer.zero_grad()
    optimizer.step()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_and_value_by_hand():
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    mas = MAS(model, 0.5, relative=False)
    # sample (1, 2): F = 3, |d F^2 / d w| = |2 F x| = (6, 12)
    mas.consolidate([torch.tensor([[1.0, 2.0]])])
    assert mas.value().item() == 0
    with torch.no_grad():
        model.weight += torch.tensor([[0.5, -0.25]])
    # 0.5 * (6 * 0.25 + 12 * 0.0625) = 0.5 * 2.25
    assert mas.value().item() == 1.125
    # 2 * 0.5 * (6 * 0.5, 12 * -0.25)
    assert one_step(model, mas)["weight"].tolist() == [[3.0, -3.0]]


def test_gradient_is_that_of_the_value():
    model, mas = protected()
    expected = torch.autograd.grad(mas.value(), list(model.parameters()))
    formula = {
        name: 2 * STRENGTH * mas.importance[name] * (p.detach() - mas.reference[name])
        for name, p in model.named_parameters()
    }
    penalty = STRENGTH * quadratic_penalty(model, mas.reference, mas.importance)
    torch.testing.assert_close(mas.value(), penalty, rtol=1e-15, atol=0)
    found = one_step(model, mas)
    for (name, gradient), value in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(gradient, formula[name], rtol=1e-15, atol=0)
        torch.testing.assert_close(gradient, value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("strength", [0.0, None])
def test_nothing_before_the_first_consolidate_and_with_a_strength_of_zero(strength: float | None):
    model, mas = protected(strength=0.0)
    if strength is None:
        mas = MAS(model)
    untouched = copy.deepcopy(model)
    with mas.protect():
        take_steps(model, attach=mas)
    take_steps(untouched)
    assert_same_weights(model, untouched, rtol=0, atol=0)
    assert mas.value().item() == 0
    assert bool(mas.state_dict()) == (strength == 0)


# --- attaching


@pytest.mark.parametrize(
    "steps",
    [
        ("attach", "attach"),
        ("attach", "protect"),
        ("protect", "protect"),
        ("protect", "attach"),
        ("attach", "remove", "attach"),
        ("attach", "remove", "protect"),
    ],
)
def test_the_penalty_is_added_once(steps: tuple[str, ...]):
    model, mas = protected()
    expected = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    handles = []
    with ExitStack() as stack:
        for step in steps:
            if step == "attach":
                handles.append(mas.attach(optimizer))
            elif step == "remove":
                handles.pop().remove()
            else:
                stack.enter_context(mas.protect())
        plain(model, optimizer, nothing)
    assert len({id(handle) for handle in handles}) <= 1  # to attach again changes nothing
    take_steps(expected, in_loss(expected, mas))
    assert_same_weights(model, expected)


def test_hooks_are_removed():
    model, mas = protected()
    untouched = copy.deepcopy(model)
    before = dict(_global_optimizer_pre_hooks)
    mas.attach(SGD(model.parameters(), lr=0.05)).remove()

    def interrupted() -> None:
        with mas.protect():
            assert len(_global_optimizer_pre_hooks) == len(before) + 1
            raise KeyError("interrupted")

    for _ in range(2):
        with pytest.raises(KeyError, match="interrupted"):
            interrupted()
    assert dict(_global_optimizer_pre_hooks) == before
    with pytest.warns(UserWarning, match="and is not attached"):
        take_steps(model)
    take_steps(untouched)
    assert_same_weights(model, untouched, rtol=0, atol=0)


def test_protect_warns_when_nothing_stepped_on_the_model():
    model, mas = protected()
    other = nn.Linear(4, 2).double()
    with pytest.raises(ValueError, match="optimizer holds no parameter of the protected model"):
        mas.attach(SGD(other.parameters(), lr=0.1))
    untouched = copy.deepcopy(other)
    take_steps(untouched)

    def step_on_another_model() -> None:
        with mas.protect():
            take_steps(other)

    with pytest.warns(UserWarning, match="no optimizer stepped on the protected model"):
        step_on_another_model()
    assert_same_weights(other, untouched, rtol=0, atol=0)
    with mas.protect():
        take_steps(model)
    fresh = MAS(model, relative=False)
    with fresh.protect():  # there was nothing to protect while it trained
        take_steps(model)
        fresh.consolidate([data()[0]])


@pytest.mark.parametrize("loop", [plain, with_closure])
def test_two_protections_on_one_optimizer_add_up(loop: Loop):
    model, mas = protected()
    other = Protection(model, strength=1.0, estimate=mas_importance)
    other.consolidate([data(5)[0]])
    expected = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    mas.attach(optimizer)
    with other.protect():
        loop(model, optimizer, nothing)
    first, second = in_loss(expected, mas), in_loss(expected, other)
    take_steps(expected, lambda: first() + second())
    assert_same_weights(model, expected)


def test_sgd_with_too_large_a_step_warns_once():
    model, mas = protected()
    largest = max(float(value.max()) for value in mas.importance.values())
    mas.strength = 0.6 / (0.1 * largest)
    optimizer = SGD(model.parameters(), lr=0.1)
    mas.attach(optimizer)
    with pytest.warns(UserWarning, match=r"reaches 0.6 > 0.5: plain gradient steps on this penalty oscillate"):
        optimizer.step()
    optimizer.step()  # not again: warnings are errors here
    mas.strength = 0.4 / (0.1 * largest)
    quiet = SGD(model.parameters(), lr=0.1)
    mas.attach(quiet)
    quiet.step()


# --- across tasks


@pytest.mark.parametrize("decay", [1.0, 0.25])
def test_importance_is_summed_over_tasks_and_the_reference_moves_along(decay: float):
    torch.manual_seed(0)
    model = Embedding().double()
    mas = MAS(model, STRENGTH, decay=decay, relative=False)
    total: Params = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for task in range(3):
        x = data(task)[0]
        expected = mas_importance(model, [x])
        own = mas.consolidate([x])
        for name, p in model.named_parameters():
            assert torch.equal(own[name], expected[name])
            total[name] = decay * total[name] + own[name]
            torch.testing.assert_close(mas.importance[name], total[name], rtol=1e-14, atol=0)
            assert torch.equal(mas.reference[name], p)
            assert mas.reference[name].data_ptr() != p.data_ptr()
        assert mas.value().item() == 0
        move(model)
        assert mas.value().item() > 0  # in task 2 and 3, too


def test_consolidate_that_fails_changes_nothing():
    _, mas = protected(decay=0.5)
    before = {name: value.clone() for name, value in mas.state_dict().items()}
    for broken in ([], [torch.full((2, 4), torch.nan).double()]):
        with pytest.raises(ValueError):
            mas.consolidate(broken)
    mas.estimate = lambda model, batches: {"proxies": torch.ones(2)}
    with pytest.raises(ValueError, match="unexpected: proxies"):
        mas.consolidate([])
    assert before.keys() == mas.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in mas.state_dict().items())


def test_add_weighs_and_keeps_the_reference():
    model, mas = protected()
    before, reference = dict(mas.importance), dict(mas.reference)
    more = mas_importance(model, [data(4)[0]])
    mas.add(more, weight=3.0)
    for name, value in mas.importance.items():
        torch.testing.assert_close(value, before[name] + 3 * more[name], rtol=1e-14, atol=0)
        assert torch.equal(mas.reference[name], reference[name])


def test_memory_is_two_copies_of_the_trainable_parameters():
    model, mas = protected()
    model.get_submodule("trunk").bias.requires_grad_(False)
    mas = MAS(model)
    for task in range(3):
        mas.consolidate([data(task)[0]])
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert sum(value.numel() * value.element_size() for value in mas.state_dict().values()) == 2 * size
    tensors = [*mas.importance.values(), *mas.reference.values()]
    tensors += [tensor for held in mas._held.values() for tensor in (held.importance, held.reference)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(storages.values()) == 2 * size


# --- what is left unprotected


def test_coverage_says_what_is_held():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    model[0].bias.requires_grad_(False)
    mas = MAS(model)
    assert (mas.coverage().num_held, mas.coverage().new) == (0, ())  # nothing is protected yet
    mas.consolidate([torch.randn(6, 4)])
    coverage = mas.coverage()
    assert coverage.buffers == ("1.num_batches_tracked", "1.running_mean", "1.running_var")
    assert coverage.frozen == ("0.bias",)
    assert coverage.new == ()
    assert (coverage.num_held, coverage.num_weights) == (42, 42)  # 5 x 4; 5 + 5; 2 x 5 + 2
    model[0].bias.requires_grad_(True)
    assert mas.coverage().new == ("0.bias",)
    assert (mas.coverage().num_held, mas.coverage().num_weights) == (42, 47)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_new_head_is_unprotected_until_the_next_task(dim: int, tmp_path: Path):
    model, mas = protected()
    old = {name: value.clone() for name, value in mas.importance.items()}
    model.head = nn.Linear(5, dim).double()
    assert mas.coverage().new == ("head.bias", "head.weight")

    of_trunk = {name: value for name, value in old.items() if name.startswith("trunk")}
    expected = STRENGTH * quadratic_penalty(model, mas.reference, of_trunk)
    torch.testing.assert_close(mas.value(), expected, rtol=1e-14, atol=0)
    with pytest.warns(UserWarning, match=r"that this MAS does not hold, .*: head.bias, head.weight"):
        found = one_step(model, mas)
    assert set(found) == set(of_trunk)  # the new head gets no gradient
    mas.save(tmp_path / "mas.safetensors")  # what cannot be held is not saved
    assert set(Protection.load(tmp_path / "mas.safetensors", model).importance) == set(of_trunk)

    new = mas.consolidate([data(6)[0]])
    assert mas.coverage().new == ()
    for name, value in mas.importance.items():
        torch.testing.assert_close(value, new[name] + of_trunk.get(name, 0.0), rtol=1e-14, atol=0)


# --- on disk


def uniform(model: nn.Module, batches: Iterable[Any]) -> Params:
    return {name: torch.ones_like(value) for name, value in model.named_parameters()}


def test_saved_and_loaded_it_goes_on_as_before(tmp_path: Path):
    model, mas = protected(decay=0.5, layer="head")
    path = tmp_path / "mas.safetensors"
    mas.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["mas.safetensors"]
    other = copy.deepcopy(model)
    loaded = Protection.load(path, other)
    assert (loaded.strength, loaded.decay, loaded.value()) == (STRENGTH, 0.5, mas.value())
    assert isinstance(loaded.estimate, partial)
    options = {"relative": False, "layer": "head", "forward": None, "output": "squared_length", "approximate": None}
    assert (loaded.estimate.func, loaded.estimate.keywords) == (mas_importance, options)
    go_on_alike((model, mas), (other, loaded))


@pytest.mark.parametrize("make", [MAS, LocalMAS])
def test_a_copy_goes_on_by_itself(make: type[MAS]):
    torch.manual_seed(0)
    model = Embedding()
    protection = make(model, STRENGTH)
    assert isinstance(protection, Protection)
    protection.consolidate([data(0, dtype=torch.float32)[0]])
    other, copied = copy.deepcopy((model, protection))
    move(model)
    assert copied.value() == 0 < protection.value()
    other.load_state_dict(model.state_dict())
    go_on_alike((model, protection), (other, copied))


def go_on_alike(*pairs: tuple[nn.Module, Protection]) -> None:
    """They train, and consolidate another task, with the same results to the last bit."""
    for model, protection in pairs:
        optimizer = AdamW(model.parameters(), lr=0.01)
        protection.attach(optimizer)
        plain(model, optimizer, nothing)
        protection.consolidate([data(7, dtype=next(model.parameters()).dtype)[0]])
    (model, mas), (other, copied) = pairs
    assert_same_weights(other, model, rtol=0, atol=0)
    assert mas.state_dict().keys() == copied.state_dict().keys()
    assert all(torch.equal(value, mas.state_dict()[name]) for name, value in copied.state_dict().items())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, mas = protected()
    path = tmp_path / "mas.safetensors"
    mas.save(path)

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"no space left to write .*what was saved before is whole"):
            MAS(model).save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["mas.safetensors"]
    assert Protection.load(path, model).value() == mas.value()


def test_a_protection_of_a_wrapped_model_fits_the_bare_one(tmp_path: Path):
    model, _ = protected()
    wrapped = torch.compile(model, backend="eager")
    mas = MAS(wrapped)  # pyright: ignore[reportArgumentType]
    mas.consolidate([data()[0]])
    mas.save(tmp_path / "mas.safetensors")
    loaded = Protection.load(tmp_path / "mas.safetensors", nn.DataParallel(model))
    assert list(loaded.importance) == ["trunk.weight", "trunk.bias", "head.weight", "head.bias"]
    move(model)
    assert loaded.value() == mas.value() > 0


def test_empty_protections_are_saved_too(tmp_path: Path):
    model = Embedding()
    MAS(model).save(tmp_path / "mas.safetensors")
    loaded = Protection.load(tmp_path / "mas.safetensors", model)
    assert loaded.state_dict() == {}
    loaded.consolidate([data()[0].float()])


def test_an_estimate_that_cannot_be_saved_is_asked_for(tmp_path: Path):
    model, _ = protected()
    path = tmp_path / "mas.safetensors"
    Protection(model, strength=1.0, estimate=uniform).save(path)
    with pytest.raises(ValueError, match=r"measured with .*uniform.* give the same function as estimate="):
        Protection.load(path, model)
    assert Protection.load(path, model, estimate=uniform).estimate is uniform
    with pytest.raises(ValueError, match=r"measured with .*uniform.*but estimate= is .*mas_importance"):
        Protection.load(path, model, estimate=mas_importance)
    mas = MAS(model, forward=lambda model, batch: model(batch))
    mas.save(path)
    with pytest.raises(ValueError, match=r"'forward'.*give the same function as forward="):
        Protection.load(path, model)
    again = Protection.load(path, model, forward=lambda model, batch: model(batch))
    again.consolidate([data()[0]])
    for name, value in mas.consolidate([data()[0]]).items():
        assert again.importance[name].equal(value)
    assert Protection.load(path, model, estimate=mas.estimate).estimate is mas.estimate
    MAS(model, relative=True).save(path)  # another unit
    with pytest.raises(ValueError, match=r"measured with .*without a forward= of one's own: leave forward= out"):
        Protection.load(path, model, forward=lambda model, batch: model(batch))
    with pytest.raises(ValueError, match=r"'relative': True.*but estimate= is .*'relative': False"):
        Protection.load(path, model, estimate=partial(mas_importance, relative=False, layer=None, forward=None))


def test_files_that_do_not_fit(tmp_path: Path):
    model, mas = protected()
    path = tmp_path / "mas.safetensors"
    mas.save(path)
    other = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"another model: missing: 0.bias, .*; unexpected: head.bias, .*trunk.weight"):
        Protection.load(path, other)
    model.head = nn.Linear(5, 3)
    with pytest.raises(ValueError, match=r"another model: of another shape: head.bias \(2,\) for \(3,\)"):
        Protection.load(path, model)
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"mas.safetensors cannot be read .*cut short or another kind of file"):
            Protection.load(path, model)
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.ones(2)}, path, metadata)
        with pytest.raises(ValueError, match="is no saved protection"):
            Protection.load(path, model)
    with pytest.raises(ValueError, match=r"absent.safetensors cannot be read .*no such file"):
        Protection.load(tmp_path / "absent.safetensors", model)


# --- what a user can get wrong, and moves


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAS(Embedding(), -0.1), r"strength must be >= 0 and finite, got -0.1"),
        (lambda: MAS(Embedding(), math.inf), r"strength must be >= 0 and finite, got inf"),
        (lambda: MAS(Embedding(), 10**400), r"strength must be >= 0 and finite, got 10"),
        (lambda: MAS(Embedding(), decay=-0.1), r"decay must lie in \[0, 1\], got -0.1"),
        (lambda: LocalMAS(Embedding(), decay=1.1), r"decay must lie in \[0, 1\], got 1.1"),
        (lambda: MAS(Embedding().half()), r"half precision cannot be protected \(trunk.weight\).*autocast"),
        (lambda: MAS(Embedding().bfloat16()), r"half precision cannot be protected \(trunk.weight\).*autocast"),
    ],
)
def test_arguments_out_of_range(make: Callable[[], Protection], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ({"head.weight": torch.ones(5, 2)}, r"do not match: of another shape: head.weight \(5, 2\) for \(2, 5\)"),
        ({"proxies": torch.ones(2)}, r"do not match: unexpected: proxies"),
    ],
)
def test_importance_of_another_model_is_refused(importance: Params, message: str):
    with pytest.raises(ValueError, match=message):
        quadratic_penalty(Embedding(), importance, importance)
    with pytest.raises(ValueError, match=message):
        MAS(Embedding()).add(importance)


@pytest.mark.parametrize(
    "device",
    [
        "meta",  # which every machine has
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
        ),
    ],
)
@pytest.mark.parametrize("by", ["value", "step", "consolidate"])
def test_importance_and_reference_follow_the_model(device: str, by: str):
    model, mas = protected()
    parameters = list(model.parameters())
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # "meta" keeps its parameters only so
    try:
        model.to(device)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapping)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    if by == "value":
        assert mas.value().device.type == device
    elif by == "step":
        optimizer = AdamW(model.parameters(), lr=0.05)
        mas.attach(optimizer)
        optimizer.step()
        assert all(p.grad is not None and p.grad.device.type == device for p in parameters)
    else:
        mas.add({name: torch.ones_like(p) for name, p in model.named_parameters()})
    assert {value.device.type for value in mas.state_dict().values()} == {device}


def test_an_estimator_is_the_same_whether_or_not_it_spells_out_defaults(tmp_path):
    model, mas = protected(forward=lambda model, batch: model(batch))
    mas.save(tmp_path / "mas.safetensors")
    estimate = partial(mas_importance, forward=lambda model, batch: model(batch))
    Protection.load(tmp_path / "mas.safetensors", model, estimate=estimate)
