"""A guard is never silently absent: what an optimizer steps, or the model now has, and is not held is told."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarded import GUARDS, Net, SharpnessAware, every_guard, guarded, learn, pulls, samples
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured
from torch.optim import SGD, Adam, AdamW, Optimizer

from tripletmas.protection.guard import Guard
from tripletmas.protection.protection import MAS, LocalMAS
from tripletmas.protection.structured.gram import Gram

UNATTACHED = r"steps 82 of 82 weights \(100 %\) that this \w+ holds .*, and is not attached, so that nothing holds them"


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.01)


# --- optimizers that nobody attached


def reloaded(optimizer: Optimizer) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


@every_guard
def test_an_optimizer_that_was_not_attached_is_told_at_its_first_step(make: Callable[..., Guard]):
    model, guard = guarded(make)
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match=UNATTACHED) as told:
        learn(model, optimizer)
    assert len(told) == 1
    learn(model, optimizer)  # not again
    guard.attach(optimizer)
    learn(model, optimizer)
    assert guard.num_protected_steps == 3


@every_guard
@pytest.mark.parametrize("copied", [copy.deepcopy, reloaded])
def test_a_copied_optimizer_is_told(make: Callable[..., Guard], copied: Callable[[Any], Any]):
    """Copies of optimizers have no hooks."""
    model, guard = guarded(make)
    guard.attach(optimizer := AdamW(model.parameters(), lr=0.01))
    other, its, stepping = copied((model, guard, optimizer))
    with pytest.warns(UserWarning, match="AdamW " + UNATTACHED):
        learn(other, stepping)
    its.attach(stepping)
    learn(other, stepping)
    assert (guard.num_protected_steps, its.num_protected_steps) == (0, 3)
    with pytest.raises(ValueError, match="the optimizer holds no parameter of the protected model"):
        guard.attach(copied(optimizer))


@every_guard
def test_the_next_tasks_optimizer_is_told(make: Callable[..., Guard]):
    model = Net()
    guard = make(model)
    guard.attach(first := sgd(model))
    learn(model, first)
    other = sgd(model)
    learn(model, other)  # nothing is held yet
    guard.consolidate([samples()])
    learn(model, first)
    with pytest.warns(UserWarning, match=UNATTACHED):
        learn(model, other)


@every_guard
@pytest.mark.parametrize("closure", [False, True])
def test_nothing_is_told_where_the_penalty_is_in_the_loss(make: Callable[..., Guard], closure: bool):
    model, guard = guarded(make)
    optimizer = sgd(model)

    def loss() -> Tensor:
        optimizer.zero_grad()
        loss = model(samples(1)).square().mean() + guard.value()
        loss.backward()
        return loss

    for _ in range(2):
        if closure:
            optimizer.step(loss)  # pyright: ignore[reportArgumentType, reportCallIssue]
        else:
            loss()
            optimizer.step()
    guard.consolidate([samples()])
    with torch.no_grad():
        guard.value()  # to look at it makes it no part of a loss
    with pytest.warns(UserWarning, match=UNATTACHED):
        optimizer.step()


@every_guard
def test_nothing_is_told_of_other_models_and_of_what_was_detached(make: Callable[..., Guard]):
    model, guard = guarded(make)
    learn(other := copy.deepcopy(model), sgd(other))
    optimizer = sgd(model)
    guard.attach(optimizer).remove()
    learn(model, optimizer)
    guard.strength = 0.0
    learn(model, sgd(model))


@every_guard
def test_weights_that_changed_without_a_protected_step_are_told_when_the_task_is_measured(make: Callable[..., Guard]):
    """By a loop of one's own, or an optimizer at which no hook runs."""
    model, guard = guarded(make)
    guard.consolidate([samples()])  # they did not change
    copied = copy.deepcopy(guard)
    copied.attach(sgd(copied.model))
    for each in (guard, copied):
        with torch.no_grad():
            for parameter in each.model.parameters():
                parameter.sub_(0.01)
        with pytest.warns(UserWarning, match=r"have changed since .*, and no step of an optimizer was protected"):
            each.consolidate([samples()])
        each.consolidate([samples()])
    guard.attach(optimizer := sgd(model))
    learn(model, optimizer)
    guard.consolidate([samples()])


@every_guard
def test_an_optimizer_of_two_steps_that_has_no_other_inside_is_told_early(make: Callable[..., Guard]):
    model, guard = guarded(make)
    optimizer = SharpnessAware(model.parameters(), inner=False)
    with pytest.warns(UserWarning, match=r"no hook runs at first_step\(\) and second_step\(\) of a SharpnessAware"):
        guard.attach(optimizer)
    guard.attach(optimizer, clip="before")
    model(samples()).sum().backward()
    optimizer.first_step()
    guard.add_gradients(optimizer)
    optimizer.second_step()
    guard.consolidate([samples()])
    assert guard.num_protected_steps == 1


# --- layers that are others than were measured


def test_a_loop_without_a_guard_is_not_ended_by_it():
    """It is told, by what it would say if it were attached."""
    model, guard = guarded(GUARDS["mas"])
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.warns(UserWarning, match="SGD steps without this MAS: trunk.weight is another parameter") as told:
        learn(model, sgd(model))
    assert len(told) == 1
    assert guard.num_protected_steps == 0


def grown_head(model: Net, *, rows: int = 6, kept: int | None = None) -> nn.Linear:
    """A new head, whose first rows are those of the old one."""
    head = nn.Linear(6, rows)
    with torch.no_grad():
        for new, old in zip(head.parameters(), model.head.parameters(), strict=True):
            new[:kept] = old[:kept] if kept is not None else torch.cat([old, new[len(old) :]])
    return head


@every_guard
@pytest.mark.parametrize("same_module", [False, True])
def test_the_old_rows_of_a_head_that_grew_stay_held(make: Callable[..., Guard], same_module: bool):
    model, guard = guarded(make)
    twin, its = copy.deepcopy((model, guard))
    head = grown_head(model)
    if same_module:
        model.head.weight, model.head.bias = head.weight, head.bias
    else:
        model.head = head
    for each, of in ((model, guard), (twin, its)):
        of.attach(optimizer := Adam(each.parameters(), lr=0.0))
        each.zero_grad()
        optimizer.step()
    for new, old in zip(model.parameters(), twin.parameters(), strict=True):
        assert new.grad is not None
        assert old.grad is not None
        torch.testing.assert_close(new.grad[: len(old)], old.grad, rtol=1e-5, atol=1e-7)
        assert not new.grad[len(old) :].any()
    torch.testing.assert_close(guard.value(), its.value())
    guard.attach(optimizer := sgd(model))
    learn(model, optimizer)  # the rows are not told by their values any more
    assert guard.importance["head.weight"].shape == (6, 6)
    assert guard.importance["head.weight"][:4].any()
    assert not guard.importance["head.weight"][4:].any()
    state = {name: value.clone() for name, value in guard.state_dict().items()}
    other = make(model)
    other.load_state_dict(state)
    torch.testing.assert_close(other.value(), guard.value())
    guard.consolidate([samples()])
    assert guard.importance["head.weight"][4:].any()
    assert guard.coverage().new == ()
    model.head = grown_head(model, rows=9)  # and once more
    assert min(pulls(model, guard)[name] for name in ("trunk.weight", "trunk.bias")) >= 0
    assert guard.importance["head.weight"].shape == (9, 6)


def test_a_widened_layer_stays_held_weight_by_weight():
    """Importance is one of single weights: more columns are no matter."""
    model, guard = guarded(GUARDS["mas"])
    value = guard.value()
    trunk, head = nn.Linear(8, 9), nn.Linear(9, 4)
    with torch.no_grad():
        for new, old in ((trunk, model.trunk), (head, model.head)):
            new.weight[: len(old.weight), : old.weight.shape[1]] = old.weight
            new.bias[: len(old.bias)] = old.bias
    model.trunk, model.head = trunk, head
    assert guard.value() == value
    assert min(pulls(model, guard).values()) > 0


@every_guard
def test_a_replaced_layer_is_told_with_its_share(make: Callable[..., Guard]):
    """A head of 3 classes: 6 * 3 + 3 = 21 of 8 * 6 + 6 + 21 = 75 weights."""
    model, guard = guarded(make)
    model.head = nn.Linear(6, 3)
    message = (
        r"SGD steps 21 of 75 weights \(28 %\) that this \w+ does not hold, .*: head.bias, head.weight; consolidate"
    )
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match=message):
        guard.attach(optimizer)
    learn(model, optimizer)  # and not again
    guard.consolidate([samples()])
    guard.attach(optimizer)
    model.head = nn.Linear(6, 3)
    with pytest.warns(UserWarning, match="does not hold"):
        guard.attach(sgd(model))  # again, since it is another one


@every_guard
@pytest.mark.parametrize("after", ["attach", "a step"])
def test_a_layer_that_an_optimizer_gets_later_is_told_at_its_next_step(make: Callable[..., Guard], after: str):
    model, guard = guarded(make)
    optimizer = sgd(model)
    guard.attach(optimizer)
    if after == "a step":
        learn(model, optimizer)
    model.extra = nn.Linear(4, 2)
    optimizer.add_param_group({"params": model.extra.parameters()})
    with pytest.warns(UserWarning, match=r"SGD steps 10 of 92 weights \(10.9 %\) .*extra.bias, extra.weight") as told:
        learn(model, optimizer)
    assert len(told) == 1


@every_guard
def test_parameters_that_an_optimizer_has_no_more_are_told(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.extra = nn.Linear(4, 2)
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match="extra.bias, extra.weight"):
        guard.attach(optimizer)
    optimizer.param_groups[0]["params"] = list(model.extra.parameters())
    model.trunk.requires_grad_(False)
    model.head.requires_grad_(False)
    model.extra(samples()[:, :4]).sum().backward()
    with pytest.raises(ValueError, match="nothing that SGD steps is held by this"):
        optimizer.step()


@every_guard
def test_a_layer_that_was_frozen_when_it_was_measured_is_told(make: Callable[..., Guard]):
    model = Net()
    guard = make(model)
    model.trunk.requires_grad_(False)
    guard.consolidate([samples()])
    optimizer = sgd(model)
    guard.attach(optimizer)
    learn(model, optimizer)
    model.trunk.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"SGD steps 54 of 82 weights \(65.9 %\) .*unfrozen.*trunk.bias, trunk.weight"):
        learn(model, optimizer)


@every_guard
def test_where_nothing_is_held_it_is_an_error(make: Callable[..., Guard]):
    """Every layer was replaced; or what steps is an adapter, beside frozen weights."""
    model, guard = guarded(make)
    model.trunk, model.head = nn.Linear(8, 5), nn.Linear(5, 3)
    with pytest.raises(ValueError, match=r"nothing that this \w+ holds is where it was in the model"):
        guard.attach(sgd(model))
    with pytest.raises(ValueError, match="nothing that this"), guard.protect():
        learn(model, sgd(model))
    model, guard = guarded(make)
    model.requires_grad_(False)
    model.adapter = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"nothing that SGD steps is held .*: adapter.bias, adapter.weight were added"):
        guard.attach(sgd(model.adapter))
    model.trunk.requires_grad_(True)  # in another optimizer
    with pytest.warns(UserWarning, match="SGD steps 20 of 20 weights .* and none that it holds"):
        guard.attach(sgd(model.adapter))
    guard.attach(sgd(model.trunk))


def test_what_is_left_out_on_purpose_is_not_told():
    model = Net()
    guard = LocalMAS(model, 3.0, left_out=["head"])
    guard.consolidate([samples()])
    guard.attach(optimizer := sgd(model))
    learn(model, optimizer)
    guard.consolidate([samples()])


@every_guard
def test_a_layer_that_is_gone_is_told(make: Callable[..., Guard]):
    model, guard = guarded(make)
    other = copy.deepcopy(guard)
    model.head = nn.Identity()  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=r"held of head.bias, head.weight is held no more"):
        guard.attach(sgd(model))
    other.model.head = nn.Identity()
    with pytest.warns(UserWarning, match=r"held of head.bias, head.weight is held no more"):
        other.consolidate([samples()])


REPARAMETRISED: dict[str, Callable[[nn.Module], Any]] = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "pruned": lambda layer: l1_unstructured(layer, "weight", 0.5),
}


@every_guard
@pytest.mark.parametrize("kind", REPARAMETRISED)
def test_a_layer_whose_weight_is_made_of_others_is_held_by_these(make: Callable[..., Guard], kind: str):
    """Where it was so when it was measured; where it is so since then, it is told."""
    model = Net()
    REPARAMETRISED[kind](model.trunk)
    guard = make(model)
    guard.consolidate([samples()])
    assert guard.coverage().new == ()
    guard.attach(optimizer := sgd(model))
    learn(model, optimizer)
    assert guard.num_protected_steps == 3

    model, guard = guarded(make)
    REPARAMETRISED[kind](model.trunk)
    if kind == "weight norm":  # by two parameters, neither of which is what was measured
        with pytest.warns(UserWarning, match=r"held of trunk.weight is held no more|does not hold, since"):
            guard.attach(sgd(model))
    else:
        with pytest.raises(ValueError, match=r"trunk.weight has become trunk\.\S+ since it was measured"):
            guard.attach(sgd(model))


@every_guard
@pytest.mark.parametrize("way", ["swap", "overwrite"])
def test_conversions_that_put_others_in_place_of_parameters(make: Callable[..., Guard], way: str):
    """torch swaps what a parameter is, which stays the same one, or has another one in its place, which is told."""
    switch = getattr(torch.__future__, f"set_{way}_module_params_on_conversion")
    model, guard = guarded(make)
    switch(True)
    try:
        model.double()
    finally:
        switch(False)
    if way == "overwrite":
        with pytest.raises(ValueError, match=r"trunk.weight is another parameter than the one that was measured"):
            guard.attach(sgd(model))
        return
    guard.attach(optimizer := sgd(model))
    model(samples().double()).sum().backward()
    optimizer.step()
    assert guard.num_protected_steps == 1


# --- the model elsewhere


@every_guard
def test_a_model_in_another_type_stays_held(make: Callable[..., Guard]):
    model, guard = guarded(make)
    expected = pulls(*copy.deepcopy((model, guard)))
    optimizer = sgd(model)
    guard.attach(optimizer)
    model.double()
    found = pulls(model, guard)
    assert found == pytest.approx(expected, rel=1e-5)
    optimizer.zero_grad()
    model(samples().double()).square().mean().backward()
    optimizer.step()
    guard.consolidate([samples().double()])
    assert all(value.dtype == torch.float64 for value in guard.importance.values())


@every_guard
def test_a_model_that_was_wrapped_after_it_was_measured_stays_held(make: Callable[..., Guard]):
    model, guard = guarded(make)
    expected = pulls(*copy.deepcopy((model, guard)))
    compiled: Any = torch.compile(model, backend="eager")
    guard.attach(optimizer := Adam(compiled.parameters(), lr=0.0))
    optimizer.zero_grad()
    optimizer.step()
    assert {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None} == expected
    averaged = torch.optim.swa_utils.AveragedModel(model)
    with pytest.raises(ValueError, match="the optimizer holds no parameter of the protected model"):
        guard.attach(sgd(averaged))  # which is a copy


@pytest.mark.parametrize("make", [MAS, Gram])
def test_what_is_said_of_a_loaded_guard(make: Any):
    """A file does not say what was left out on purpose: what is not in it is told."""
    model = Net()
    guard = make(model)
    guard.consolidate([samples()])
    file = io.BytesIO()
    torch.save(guard.state_dict(), file)
    file.seek(0)
    model.extra = nn.Linear(4, 2)
    other = make(model)
    other.load_state_dict(torch.load(file))
    with pytest.warns(UserWarning, match=r"SGD steps 10 of 92 weights .*: extra.bias, extra.weight"):
        other.attach(sgd(model))
