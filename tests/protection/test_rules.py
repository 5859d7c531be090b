"""The optimizer's own rules stay: what has no gradient, sparse gradients, steps upwards, schedule-free optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from guarded import GUARDS, Net, assert_same, every_guard, guarded, learn, pulls, samples
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, SparseAdam

from tripletmas.basics.weights import state_of
from tripletmas.protection.guard import Guard
from tripletmas.protection.optimizers import plain_rate
from tripletmas.protection.structured.gram import Gram

KINDS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p, **o: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, **o),
    "sgd foreach": lambda p, **o: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, foreach=True, **o),
    "adamw": lambda p, **o: AdamW(p, lr=0.01, weight_decay=0.1, **o),
    "adam fused": lambda p, **o: Adam(p, lr=0.01, weight_decay=0.1, fused=True, **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
FIXED: dict[str, Callable[..., Guard]] = {name: GUARDS[name] for name in ("mas", "local_mas", "gram, strength")}
every_fixed_penalty = pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)  # a budget's changes from step to step


def close(found: nn.Module, expected: nn.Module, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    for (name, value), other in zip(state_of(found).items(), state_of(expected).values(), strict=True):
        torch.testing.assert_close(value, other, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def differ(found: nn.Module, other: nn.Module) -> bool:
    pairs = zip(found.parameters(), other.parameters(), strict=True)
    return max(float((one - two).detach().abs().max()) for one, two in pairs) > 1e-5


# --- no gradient


def learn_trunk(model: Net, optimizer: Optimizer, before_step: Callable[[], None] = lambda: None) -> None:
    for step in range(3):
        optimizer.zero_grad()
        model.trunk(samples(10 + step)).square().mean().backward()  # the head has no part in it
        before_step()
        optimizer.step()


@every_guard
@every_kind
@pytest.mark.parametrize("clip", ["before", "after"])
def test_what_has_no_gradient_and_no_pull_stays(make: Callable[..., Guard], kind: Callable[..., Optimizer], clip: Any):
    """Weight decay and momentum move no weight that the loss did not reach, with a guard or without."""
    model = Net()
    guard = make(model)
    guard.consolidate([samples()])
    optimizer = kind(model.parameters())
    guard.attach(optimizer, clip=clip)
    before = copy.deepcopy(model)
    learn_trunk(model, optimizer, (lambda: guard.add_gradients(optimizer)) if clip == "before" else lambda: None)
    assert_same(model.head, before.head)
    assert model.head.weight.grad is model.head.bias.grad is None
    assert differ(model.trunk, before.trunk)
    assert guard.num_protected_steps == 3


@every_fixed_penalty
def test_what_has_no_gradient_is_pulled_where_it_has_moved(make: Callable[..., Guard]):
    """As by the penalty in the loss."""
    model, guard = guarded(make)
    expected, its = copy.deepcopy((model, guard))
    optimizer, other = (SGD(each.parameters(), lr=0.01, momentum=0.9) for each in (model, expected))
    guard.attach(optimizer)
    learn_trunk(model, optimizer)
    learn_trunk(expected, other, lambda: its.value().backward())
    close(model, expected)
    assert all(value > 0 for value in pulls(model, guard).values())


# --- sparse gradients


class Words(nn.Module):
    def __init__(self, sparse: bool):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(10, 6, sparse=sparse), nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.words(tokens).mean(1))


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(8, (12, 3), generator=torch.Generator().manual_seed(seed))


def learn_words(model: nn.Module, optimizer: Optimizer, penalty: Callable[[], Tensor] | None = None) -> None:
    for step in range(3):
        optimizer.zero_grad()
        loss = model(tokens(10 + step)).square().mean()
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()


@pytest.mark.parametrize("make", [GUARDS["mas"], GUARDS["gram, strength"]], ids=["mas", "gram"])
@pytest.mark.parametrize("kind", [lambda p: SGD(p, lr=0.1), lambda p: SGD(p, lr=0.1, momentum=0.9), Adagrad])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch's Adagrad
def test_sparse_gradients_equal_the_penalty_in_the_loss(make: Callable[..., Guard], kind: Any):
    model = Words(sparse=True)
    guard = make(model)
    guard.consolidate([tokens()])
    with torch.no_grad():
        model.words.weight.add_(0.1)
    expected, its = copy.deepcopy((model, guard))
    free = copy.deepcopy(model)
    guard.attach(optimizer := kind(model.parameters()))
    learn_words(model, optimizer)
    learn_words(expected, kind(expected.parameters()), its.value)
    learn_words(free, kind(free.parameters()))
    close(model, expected)
    assert differ(model, free)


def test_sparse_gradients_stay_sparse_where_nothing_pulls():
    """Momentum would carry on all words, not those of the batch alone."""
    model = Words(sparse=True)
    guard = GUARDS["mas"](model)
    guard.consolidate([tokens()])
    optimizer = SGD(model.parameters(), lr=0.0)
    guard.attach(optimizer)
    learn_words(model, optimizer)
    assert model.words.weight.grad is not None
    assert model.words.weight.grad.is_sparse


def test_sparse_adam_is_told_where_a_framework_makes_it():
    model = Words(sparse=True)
    guard = GUARDS["mas"](model)
    guard.consolidate([tokens()])
    with pytest.raises(ValueError, match="SparseAdam takes sparse gradients only"), guard.protect():
        learn_words(model, SparseAdam(list(model.words.parameters())))


# --- upwards


@every_guard
@every_kind
@pytest.mark.parametrize("clip", ["before", "after"])
def test_an_optimizer_that_goes_up_is_pulled_the_right_way(make: Callable[..., Guard], kind: Any, clip: Any):
    """Group by group: what goes up the negative loss goes where the other goes that goes down the loss."""
    found = []
    for upwards in (False, True):
        model, guard = guarded(make)
        groups = [{"params": model.trunk.parameters(), "maximize": upwards}, {"params": model.head.parameters()}]
        optimizer = kind(groups)
        guard.attach(optimizer, clip=clip)
        for step in range(3):
            optimizer.zero_grad()
            model(samples(10 + step)).square().mean().backward()
            if upwards:
                for parameter in model.trunk.parameters():
                    assert parameter.grad is not None
                    parameter.grad.neg_()
            if clip == "before":
                guard.add_gradients(optimizer)
            optimizer.step()
        found.append(model)
    close(*found)
    free = guarded(make)[0]
    learn(free, kind(free.parameters()))
    assert differ(found[0], free)


# --- plain gradient steps


class SGDW(SGD):
    """As timm and others name theirs."""


def test_the_rate_of_plain_gradient_steps_is_that_of_the_weights_that_count():
    (one,), (other,) = (list(nn.Linear(1, 1, bias=False).parameters()) for _ in range(2))
    groups = [{"params": [one], "lr": 0.1}, {"params": [other], "lr": 7.0}]
    for kind in (SGD, SGDW, schedulefree.SGDScheduleFree):
        optimizer = kind(copy.deepcopy(groups))
        (first, second) = (group["params"][0] for group in optimizer.param_groups)
        assert plain_rate(optimizer, {id(first)}) == 0.1
        assert plain_rate(optimizer, {id(first), id(second)}) == 7
        assert plain_rate(optimizer, set()) is None
    assert plain_rate(Adam(groups), {id(one)}) is None


@every_guard
def test_the_rate_of_another_models_weights_is_no_matter(make: Callable[..., Guard]):
    """Neither for what is told, nor for how firmly a budget may hold."""
    model, guard = guarded(make)
    twin, its = copy.deepcopy((model, guard))
    other = nn.Parameter(torch.zeros(2))
    guard.attach(optimizer := SGD([{"params": model.parameters()}, {"params": [other], "lr": 1e6}], lr=0.01))
    its.attach(simple := SGD(twin.parameters(), lr=0.01))
    learn(model, optimizer)
    learn(twin, simple)
    assert_same(model, twin)


# --- schedule-free

SCHEDULE_FREE: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: schedulefree.SGDScheduleFree(p, lr=0.05),
    "adamw": lambda p: schedulefree.AdamWScheduleFree(p, lr=0.01, weight_decay=0.1),
    "adamw, no foreach": lambda p: schedulefree.AdamWScheduleFree(p, lr=0.01, foreach=False),
    "radam": lambda p: schedulefree.RAdamScheduleFree(p, lr=0.1),
    "reference": lambda p: schedulefree.AdamWScheduleFreeReference(p, lr=0.01),
    "sgd closure": lambda p: schedulefree.SGDScheduleFreeClosure(p, lr=0.05),
    "adamw closure": lambda p: schedulefree.AdamWScheduleFreeClosure(p, lr=0.01),
    "wrapper": lambda p: schedulefree.ScheduleFreeWrapper(SGD(p, lr=0.05), momentum=0.9),
    "wrapper, reference": lambda p: schedulefree.ScheduleFreeWrapperReference(SGD(p, lr=0.05), momentum=0.9),
}


def learn_free(
    model: nn.Module, optimizer: Any, penalty: Callable[[], Tensor] | None = None, add: Callable[[], None] | None = None
) -> None:
    """Its weights are, at the end, those with which it answers."""

    def closure(step: int) -> Tensor:
        optimizer.zero_grad()
        loss = model(samples(10 + step)).square().mean()
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()
        return loss

    for step in range(6):
        if "Closure" in type(optimizer).__name__:
            optimizer.step(lambda step=step: closure(step))
            continue
        optimizer.train()
        closure(step)
        if add is not None:
            add()
        optimizer.step()
        optimizer.eval()


@every_fixed_penalty
@pytest.mark.parametrize("kind", SCHEDULE_FREE)
def test_schedule_free_optimizers_equal_the_penalty_in_the_loss(make: Callable[..., Guard], kind: str):
    model, guard = guarded(make)
    expected, its = copy.deepcopy((model, guard))
    free, made = copy.deepcopy(model), SCHEDULE_FREE[kind]
    optimizer, wraps = made(model.parameters()), kind.startswith("wrapper")
    guard.attach(optimizer, clip="before" if wraps else "after")
    learn_free(model, optimizer, add=(lambda: guard.add_gradients(optimizer)) if wraps else None)
    learn_free(expected, made(expected.parameters()), penalty=its.value)
    learn_free(free, made(free.parameters()))
    close(model, expected)
    assert differ(model, free)
    assert guard.num_protected_steps == 6


@pytest.mark.parametrize("kind", ["wrapper", "wrapper, reference"])
def test_a_wrapper_that_steps_on_other_weights_wants_the_penalty_before(kind: str):
    model, guard = guarded(GUARDS["mas"])
    with pytest.raises(ValueError, match=r"its SGD step on other weights.*clip='before' and call add_gradients"):
        guard.attach(SCHEDULE_FREE[kind](model.parameters()))


@every_guard
@pytest.mark.parametrize("kind", [name for name in SCHEDULE_FREE if "closure" not in name])
@pytest.mark.parametrize("enter", ["attach", "protect"])
def test_weights_that_do_not_answer_are_not_measured(make: Callable[..., Guard], kind: str, enter: str):
    model, optimizer = (model := Net()), SCHEDULE_FREE[kind](model.parameters())
    guard, wraps = make(model), kind.startswith("wrapper")
    if enter == "protect" and wraps:
        return  # there it cannot be told from its SGD
    optimizer.train()
    if enter == "attach":
        guard.attach(optimizer, clip="before" if wraps else "after")
    with guard.protect():
        optimizer.zero_grad()
        model(samples(10)).square().mean().backward()
        if wraps:
            guard.add_gradients(optimizer)
        optimizer.step()
    for act in (guard.consolidate, guard.add_unlabelled):
        with pytest.raises(ValueError, match=r"Free\w* is in its train mode.*call its eval\(\) before consolidate"):
            act([samples()])
    assert not guard.holds
    optimizer.eval()
    guard.consolidate([samples()])
    optimizer.train()
    assert guard.holds


@pytest.mark.parametrize("kind", [name for name in SCHEDULE_FREE if "closure" not in name])
def test_a_budget_moves_all_weights_of_a_schedule_free_optimizer(kind: str):
    """A layer that is brought back while it learns, and at the end of its task, is then within the budget, and where
    gradients are taken moves along: the way from the one to the other stays as it was."""
    model, gram = guarded(lambda model: Gram(model, 0.001))
    optimizer, wraps = SCHEDULE_FREE[kind](model.parameters()), kind.startswith("wrapper")
    gram.attach(optimizer, clip="before" if wraps else "after")
    learn_free(model, optimizer, add=(lambda: gram.add_gradients(optimizer)) if wraps else None)

    def way() -> tuple[nn.Module, nn.Module]:
        optimizer.eval()
        answers = copy.deepcopy(model)
        optimizer.train()
        with torch.no_grad():
            for parameter, answer in zip(model.parameters(), answers.parameters(), strict=True):
                answer.sub_(parameter)
        optimizer.eval()
        return answers, copy.deepcopy(model)

    (before, far), _ = way(), gram.settle()
    after, near = way()
    assert max(gram.shares().values()) <= 0.001**2 * 1.01
    close(after, before, atol=1e-5)
    assert differ(near, far)
