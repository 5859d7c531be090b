"""The penalty's gradient equals the literal formula for every shape, stride and dtype, and takes no memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, SparseAdam
from torch.profiler import ProfilerActivity, profile

from tripletmas.basics.weights import Params
from tripletmas.protection import penalty as penalty_gradient
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.penalty import Pulled, add_penalty_gradient, laid_out_as
from tripletmas.protection.protection import Protection

STRENGTH = 0.7


def weights() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    return {
        "matrix": draw(7, 5),
        "vector": draw(11),
        "scalar": draw(),
        "empty": draw(0, 3),
        "float64": draw(3, 4).double(),
        "float64 scalar": draw().double(),
        "channels_last": draw(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "transposed": draw(6, 9).t(),
        "permuted": draw(2, 3, 4).permute(2, 0, 1),
        "gaps": draw(8, 10)[::2, 1::3],
        "one row": draw(1, 50),
        "long rows": draw(2, 40),
    }


class Weights(nn.Module):
    """Parameters of all kinds; 'idle' gets no gradient of the loss, and none protects 'free'."""

    def __init__(self):
        super().__init__()
        for name, value in weights().items():
            self.register_parameter(name.replace(" ", "_"), nn.Parameter(value))
        self.idle = nn.Parameter(torch.ones(3, 2))
        self.free = nn.Parameter(torch.ones(2))


def protected_weights() -> tuple[Weights, Protection]:
    random = torch.Generator().manual_seed(1)
    model = Weights()
    protection = Protection(model, strength=STRENGTH, estimate=mas_importance)
    names = [name for name, _ in model.named_parameters() if name != "free"]
    protection.add(
        {
            name: torch.rand(model.get_parameter(name).shape, generator=random).to(model.get_parameter(name))
            for name in names
        }
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1
            if name != "idle":
                parameter.grad = torch.ones_like(parameter)
    return model, protection


def literal(model: nn.Module, protection: Protection) -> Params:
    """The gradients that a step must see."""
    expected = {}
    for name, parameter in model.named_parameters():
        expected[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        if name in protection.importance:
            pull = parameter.detach() - protection.reference[name]
            expected[name] += 2 * protection.strength * protection.importance[name] * pull
    return expected


def check(model: nn.Module, expected: Params) -> None:
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        assert gradient.dtype == parameter.dtype
        rtol = 1e-14 if parameter.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(
            gradient, expected[name], rtol=rtol, atol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("size", [2**20, 64, 7, 1])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_every_kind_of_weight_gets_the_literal_gradient(size: int, num_groups: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(penalty_gradient, "BUFFER_SIZE", size)
    model, protection = protected_weights()
    parameters = list(model.parameters())
    groups = [{"params": parameters[i::num_groups], "lr": 0.0} for i in range(num_groups)]
    optimizer = SGD(groups, lr=0.0)
    protection.attach(optimizer)
    for _ in range(2):  # the second step finds the buffer there
        expected = literal(model, protection)
        optimizer.step()
        check(model, expected)
    assert all(len(buffer) <= size for buffer in protection._loop.buffers.values())


def test_importance_and_reference_of_another_layout_and_dtype():
    """As a file gives them, which knows no strides, and an estimator of the user's own."""
    random = torch.Generator().manual_seed(2)
    convolution = torch.randn(4, 3, 2, 2, generator=random)
    for layout in (torch.channels_last, torch.contiguous_format):
        weight = convolution.clone(memory_format=layout)
        for dtype in (torch.float32, torch.float64):
            reference = torch.randn(4, 3, 2, 2, generator=random).to(dtype)
            importance = torch.rand(3, 4, 2, 2, generator=random).to(dtype).transpose(0, 1)
            gradient = torch.zeros(2, 2, 4, 3).permute(2, 3, 0, 1)
            add_penalty_gradient([Pulled(weight, gradient, reference, importance)], STRENGTH, {}, scale=8.0)
            expected = (8 * 2 * STRENGTH * importance * (weight - reference)).float()
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)
            assert laid_out_as(weight, reference).stride() == weight.stride()
            assert torch.equal(laid_out_as(weight, reference), reference)


def test_a_scale_multiplies_the_penalty_alone():
    for scale in (4.0, torch.tensor(4.0)):
        model, protection = protected_weights()
        plain = literal(model, protection)
        expected = {
            name: 4 * plain[name] - 3 * (torch.zeros_like(p) if p.grad is None else p.grad)
            for name, p in model.named_parameters()
        }
        optimizer = SGD(model.parameters(), lr=0.0)
        optimizer.grad_scale = scale  # pyright: ignore[reportAttributeAccessIssue]  # as GradScaler does
        protection._add_gradients(optimizer)  # which a fused optimizer's step calls
        check(model, expected)


def test_a_model_that_changes_its_dtype_stays_protected():
    model, protection = protected_weights()
    optimizer = SGD(model.parameters(), lr=0.0)
    protection.attach(optimizer)
    optimizer.step()
    model.double()
    expected = literal(model, protection)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-6, atol=1e-6)


def allocated(optimizer: Optimizer, protection: Protection) -> list[int]:
    """The sizes in bytes of what the hook takes from the allocator, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        protection._add_gradients(optimizer)
    assert profiler.profiler is not None
    events: list[Any] = profiler.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


def test_a_step_takes_no_memory_but_one_buffer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(penalty_gradient, "BUFFER_SIZE", 512)
    random = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.Flatten(), nn.Linear(20, 60), nn.Linear(60, 5))
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    protection = Protection(model, strength=STRENGTH, estimate=mas_importance)
    protection.add({name: torch.rand(p.shape, generator=random) for name, p in model.named_parameters()})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = AdamW(model.parameters())
    assert allocated(optimizer, protection) == [512 * 4]  # the first time: the buffer, in float32
    buffer = next(iter(protection._loop.buffers.values()))
    for _ in range(2):
        assert allocated(optimizer, protection) == []
    assert [each.data_ptr() for each in protection._loop.buffers.values()] == [buffer.data_ptr()]
    model.get_parameter("3.bias").grad = None  # then it is the gradient that is made, and whether it is 0 everywhere
    assert allocated(optimizer, protection) == [5 * 4, 1, 5]


def test_sparse_gradients_become_dense_as_with_the_penalty_in_the_loss():
    torch.manual_seed(0)
    model = nn.Embedding(6, 3, sparse=True)
    protection = Protection(model, strength=STRENGTH, estimate=mas_importance)
    protection.add({"weight": torch.rand(6, 3)})
    with torch.no_grad():
        model.weight += 0.1
    expected = copy.deepcopy(model)
    optimizer, plain = SGD(model.parameters(), lr=0.1), SGD(expected.parameters(), lr=0.1)
    protection.attach(optimizer)
    pull = protection.importance["weight"], protection.reference["weight"]
    for _ in range(3):
        for each, steps in ((model, optimizer), (expected, plain)):
            steps.zero_grad()
            loss = each(torch.tensor([1, 4, 1])).square().sum()
            if each is expected:
                loss = loss + STRENGTH * (pull[0] * (each.weight - pull[1]).square()).sum()
            loss.backward()
            steps.step()
    torch.testing.assert_close(model.weight, expected.weight)
    with pytest.raises(ValueError, match="SparseAdam takes sparse gradients only, and a penalty's is dense: use Adam"):
        protection.attach(SparseAdam(model.parameters()))
