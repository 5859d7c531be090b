"""Every guard: its copies act, and where it can no longer act it says so; what it does not hold, it does not move."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from guarded import GUARDS, Net, assert_same, every_guard, guarded, learn, learn_elsewhere, pulls, samples
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from tripletmas.basics.weights import state_of
from tripletmas.protection.file import read_protection, write_protection
from tripletmas.protection.guard import Guard
from tripletmas.protection.protection import MAS, Protection
from tripletmas.protection.structured.gram import Gram

# --- copies


@every_guard
def test_a_copy_pulls_as_the_original_and_goes_on_by_itself(make: Callable[..., Guard]):
    model, guard = guarded(make)
    copied = copy.deepcopy(guard)
    assert copied.model is not model
    assert pulls(copied.model, copied) == pulls(model, guard)
    assert min(pulls(copied.model, copied).values()) > 0
    assert copied.coverage() == guard.coverage()
    before = {name: value.clone() for name, value in guard.state_dict().items()}
    copied.consolidate([samples(1)])
    assert all(torch.equal(value, before[name]) for name, value in guard.state_dict().items())
    with torch.no_grad():
        next(copied.model.parameters()).add_(1)
    assert max(pulls(copied.model, copied).values()) > 0  # after a consolidate of its own, too


@every_guard
def test_a_copy_with_its_model_is_attached_to_nothing(make: Callable[..., Guard]):
    """Whatever the original was in the middle of."""
    model, guard = guarded(make)
    optimizer = AdamW(model.parameters(), lr=0.01)
    guard.attach(optimizer)
    with guard.protect():
        learn(model, SGD(model.parameters(), lr=1e-4))
        (other, copied), stepped = copy.deepcopy((model, guard)), copy.deepcopy(optimizer)
    assert copied.model is other
    with pytest.raises(ValueError, match="the optimizer holds no parameter of the protected model"):
        copied.attach(stepped)  # a copy of its own steps a third model
    with copied.protect():  # and this is not within another one's
        learn(other, SGD(other.parameters(), lr=0.01))
    with guard.protect():
        learn(model, SGD(model.parameters(), lr=0.01))
    assert_same(other, model)
    with pytest.warns(UserWarning, match="no optimizer stepped on the protected model"), copied.protect():
        learn(Net(), SGD(Net().parameters(), lr=0.01))


def by_torch(things: Any) -> Any:
    file = io.BytesIO()
    torch.save(things, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPYING: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda things: pickle.loads(pickle.dumps(things)),
    "deepcopy": copy.deepcopy,
    "torch.save": by_torch,
}


@every_guard
@pytest.mark.parametrize("copied", COPYING.values(), ids=COPYING)
def test_model_and_guard_are_copied_together(make: Callable[..., Guard], copied: Callable[[Any], Any]):
    model, guard = guarded(make)
    guard.attach(optimizer := SGD(model.parameters(), lr=0.01))
    learn(model, optimizer)
    other, same = copied((model, guard))
    assert same.model is other
    assert same.num_protected_steps == 0
    assert copied(guard).model is not model  # alone, it brings a model of its own
    assert pulls(other, same) == pulls(model, guard)
    assert same.coverage() == guard.coverage()
    for each, its in ((model, guard), (other, same)):
        its.attach(optimizer := SGD(each.parameters(), lr=0.01))
        learn(each, optimizer)
        its.consolidate([samples(1)])
    assert_same(other, model)
    assert guard.state_dict().keys() == same.state_dict().keys()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in guard.state_dict().items())


@every_guard
def test_a_model_that_has_its_guard_is_copied_with_it(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.guard = guard  # type: ignore[assignment]
    for act in COPYING.values():
        other: Any = act(model)
        assert other.guard.model is other
        assert pulls(other, other.guard) == pulls(model, guard)


@pytest.mark.slow
def test_another_process_goes_on_with_pickled_pairs():
    context = torch.multiprocessing.get_context("spawn")
    pairs, results = [guarded(make) for make in GUARDS.values()], context.Queue()
    # copies: torch shares the memory of what it sends
    process = context.Process(target=learn_elsewhere, args=(copy.deepcopy(pairs), results))
    process.start()
    for model, guard in pairs:
        optimizer = SGD(model.parameters(), lr=0.01)
        guard.attach(optimizer)
        learn(model, optimizer)
        found, steps = results.get(timeout=120)
        assert steps == guard.num_protected_steps == 3
        for name, value in state_of(model).items():
            torch.testing.assert_close(torch.from_numpy(found[name]), value, rtol=0, atol=0)
    process.join()


# --- parameters that were replaced


@every_guard
def test_weights_that_were_assigned_are_told(make: Callable[..., Guard], tmp_path: Path):
    model, guard = guarded(make)
    before, expected = guard.state_dict(), pulls(model, guard)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    optimizer = SGD(model.parameters(), lr=0.01)

    def protect() -> None:
        with guard.protect():
            pass

    acts: list[Callable[[], Any]] = [
        lambda: guard.attach(optimizer),
        protect,
        lambda: guard.consolidate([samples()]),
        guard.value,
        guard.coverage,
        lambda: guard.save(tmp_path / "guard.safetensors"),
    ]
    for act in acts:
        with pytest.raises(ValueError, match=r"trunk.weight is another parameter .*load without assign, or take"):
            act()
    guard.load_state_dict(before)  # as it says
    assert pulls(model, guard) == expected


@every_guard
def test_a_part_that_was_assigned_is_told(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.head.load_state_dict({name: value.clone() for name, value in model.head.state_dict().items()}, assign=True)
    with pytest.raises(ValueError, match=r"head.weight is another parameter"):
        guard.attach(SGD(model.parameters(), lr=0.01))


@every_guard
def test_a_weight_that_has_another_name_is_told(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.head = nn.Sequential(model.head)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"head.weight has become head.0.weight since it was measured"):
        guard.attach(SGD(model.parameters(), lr=0.01))
    model.head.requires_grad_(False)  # as the base of an adapter
    guard.attach(SGD(model.parameters(), lr=0.01))


@every_guard
def test_a_head_that_grew_in_place_before_it_learned_is_held(make: Callable[..., Guard]):
    """As `resize_token_embeddings` of transformers lets one grow: the parameter stays, its `.data` is larger."""
    model = Net()
    guard = make(model)
    guard.consolidate([samples()])
    held = guard.importance["head.weight"].clone()
    for name in ("weight", "bias"):
        parameter = getattr(model.head, name)
        parameter.data = torch.cat([parameter.data, parameter.data[:2]])
    guard.attach(optimizer := SGD(model.parameters(), lr=0.01))
    learn(model, optimizer)
    assert guard.num_protected_steps == 3
    assert torch.equal(guard.importance["head.weight"][:4], held)
    assert not guard.importance["head.weight"][4:].any()
    assert min(pulls(model, guard).values()) > 0
    guard.consolidate([samples()])
    assert guard.importance["head.weight"][4:].any()


@every_guard
def test_a_head_that_grew_in_place_is_told(make: Callable[..., Guard], tmp_path: Path):
    model, guard = guarded(make)
    optimizer = SGD(model.parameters(), lr=0.01)
    guard.attach(optimizer)
    for name in ("weight", "bias"):
        parameter = getattr(model.head, name)
        parameter.data = torch.cat([parameter.data, parameter.data[:2]])
    message = r"head.weight has the shape \(6, 6\), and had \(4, 6\) when it was measured: .*a new nn.Parameter"
    acts: list[Callable[[], Any]] = [
        lambda: learn(model, optimizer),
        lambda: guard.attach(SGD(model.parameters(), lr=0.01)),
        guard.value,
        guard.coverage,
        lambda: guard.consolidate([samples()]),
        lambda: guard.save(tmp_path / "guard.safetensors"),
    ]
    for act in acts:
        with pytest.raises(ValueError, match=message):
            act()
    for name in ("weight", "bias"):  # as it says
        setattr(model.head, name, nn.Parameter(getattr(model.head, name).data))
    assert min(pulls(model, guard).values()) > 0
    assert guard.coverage().new == ()


@every_guard
def test_weights_in_half_precision_are_told_when_it_is_attached(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.half()
    with pytest.raises(ValueError, match=r"half precision cannot be protected \(trunk.weight\)"):
        guard.attach(SGD(model.parameters(), lr=0.01))


@every_guard
@pytest.mark.parametrize("attached", [True, False])
def test_weights_that_get_half_precision_later_are_told_at_a_step(make: Callable[..., Guard], attached: bool):
    """Steps of bfloat16 are coarser than what they are held to."""
    model, guard = guarded(make)
    optimizer = SGD(model.parameters(), lr=0.01)
    if attached:
        guard.attach(optimizer)
        learn(model, optimizer)
    model.bfloat16()
    model(samples().bfloat16()).sum().backward()
    with pytest.raises(ValueError, match="half precision cannot be protected"), guard.protect():
        optimizer.step()


# --- what is not held is not moved

DECAYING: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "adam fused": lambda p: Adam(p, lr=0.01, weight_decay=0.1, fused=True),
}


@every_guard
@pytest.mark.parametrize("optimizer", DECAYING)
@pytest.mark.parametrize("frozen", ["trunk", "trunk.bias", "head"])
def test_a_layer_that_is_frozen_stays_where_it_is(make: Callable[..., Guard], optimizer: str, frozen: str):
    model, guard = guarded(make)
    stepping = DECAYING[optimizer](model.parameters())
    guard.attach(stepping)
    learn(model, stepping)
    parts = [p for name, p in model.named_parameters() if name.startswith(frozen)]
    for part in parts:
        part.requires_grad_(False)
    kept, free = copy.deepcopy(parts), copy.deepcopy(model)
    learn(model, stepping)
    assert all(torch.equal(part, before) for part, before in zip(parts, kept, strict=True))
    learn(free, DECAYING[optimizer](free.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), free.parameters(), strict=True))


@every_guard
def test_a_layer_that_was_frozen_for_a_task_is_held_again(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.trunk.requires_grad_(False)
    guard.consolidate([samples(1)])
    model.trunk.requires_grad_(True)
    with torch.no_grad():
        model.trunk.weight.add_(0.1)
    assert pulls(model, guard)["trunk.weight"] > 0


@pytest.mark.parametrize("make", [lambda m: MAS(m, 0.0), lambda m: Gram(m, strength=0.0)], ids=["mas", "gram"])
def test_with_a_strength_of_zero_a_layer_without_gradient_stays(make: Callable[..., Guard]):
    """As without a guard: an optimizer does not decay what the loss did not reach."""
    model, guard = guarded(make)
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    guard.attach(optimizer)
    before = copy.deepcopy(model.head)
    for _ in range(2):
        optimizer.zero_grad()
        model.trunk(samples()).square().mean().backward()  # the head has no part in it
        optimizer.step()
    assert_same(model.head, before)
    assert model.head.weight.grad is None
    with guard.protect():  # and nobody is warned that nothing was protected
        learn(model, optimizer)


# --- files of another shape


def loaded(path: Path, model: nn.Module) -> Guard:
    """By the one of the two that reads such files."""
    try:
        return Gram.load(path, model)
    except ValueError as error:
        if "Protection.load reads it" not in str(error):
            raise
        return Protection.load(path, model)


@pytest.mark.slow
@every_guard
def test_a_saved_protection_of_another_shape_is_told_by_its_file(make: Callable[..., Guard], tmp_path: Path):
    model, guard = guarded(make)
    path = tmp_path / "held.safetensors"
    guard.save(path)
    assert loaded(path, model).value() == guard.value()
    with read_protection(path) as (state, settings):
        pass
    others: list[Any] = [None, 1, "x", [], {}, {"function": 1}, {"function": "mas_importance", "options": []}]
    wrong = [(state, {name: each for name, each in settings.items() if name != key}) for key in settings]
    for key, value in settings.items():
        # what may be so: no budget or strength, numbers, and for `exact` all that is true or false
        fits = {"budget": others[:2], "strength": others[:2], "decay": [1], "exact": others}.get(key, [])
        wrong += [(state, settings | {key: other}) for other in others if other != value and other not in fits]
    wrong += [(state | {name: torch.zeros(3, 1, 2)}, settings) for name in state]
    wrong += [({key: state[key] for key in state if key != name}, settings) for name in state]
    for tensors, about in wrong:
        write_protection(path, tensors, about)
        with pytest.raises(ValueError, match=r"held.safetensors"):
            loaded(path, model)
