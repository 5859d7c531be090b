"""Parameters by canonical name, whatever wraps the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tripletmas.basics.weights import (
    device_of,
    differing_names,
    load_state,
    named_buffers,
    named_parameters,
    snapshot,
    state_of,
    trainable,
    unwrap,
    weight_hash,
)


class CalledModule(nn.Module):
    """A model with real submodules under the names that wrappers use for the model inside."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.inner = nn.ModuleDict({"module": nn.BatchNorm1d(2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["module"](self.module(x))


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # pyright: ignore[reportReturnType]


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "compile": compiled,
    "compile(DataParallel)": lambda model: compiled(nn.DataParallel(model)),
    "DataParallel(compile)": lambda model: nn.DataParallel(compiled(model)),
    "AveragedModel(compile)": lambda model: AveragedModel(compiled(model)),
}
PARAMETERS = ["module.weight", "module.bias", "inner.module.weight", "inner.module.bias"]
BUFFERS = ["inner.module.running_mean", "inner.module.running_var", "inner.module.num_batches_tracked"]


def test_a_bare_model_has_its_own_names():
    model = CalledModule()
    assert list(named_parameters(model)) == PARAMETERS == [name for name, _ in model.named_parameters()]
    assert list(named_buffers(model)) == BUFFERS == [name for name, _ in model.named_buffers()]
    assert unwrap(model) is model


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_has_the_names_of_the_bare_one(wrapper: str):
    model = CalledModule()
    wrapped = WRAPPERS[wrapper](model)
    assert list(named_parameters(wrapped)) == PARAMETERS
    assert list(named_buffers(wrapped)) == BUFFERS
    assert list(state_of(wrapped)) == PARAMETERS + BUFFERS
    if not wrapper.startswith("AveragedModel"):  # which holds a copy
        assert unwrap(wrapped) is model
        assert all(a is b for a, b in zip(named_parameters(wrapped).values(), model.parameters(), strict=True))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_submodule_adds_nothing_to_the_names(wrapper: str):
    model = nn.Sequential(WRAPPERS[wrapper](CalledModule()), nn.Linear(2, 2))
    assert list(named_parameters(model)) == [*(f"0.{name}" for name in PARAMETERS), "1.weight", "1.bias"]


def test_distributed_data_parallel_is_unwrapped():
    model = CalledModule()
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)  # needs no process group
    nn.Module.__init__(wrapper)
    wrapper.module = model
    assert unwrap(wrapper) is model
    assert list(named_parameters(wrapper)) == PARAMETERS


def test_tied_parameters_appear_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(named_parameters(model)) == ["0.weight", "0.bias", "1.bias"]
    same = nn.Linear(3, 3)
    assert list(named_parameters(nn.Sequential(same, nn.ReLU(), same))) == ["0.weight", "0.bias"]


def test_buffers_that_are_not_saved_are_left_out():
    model = nn.Linear(2, 2)
    model.register_buffer("table", torch.ones(3), persistent=False)
    model.register_buffer("mean", torch.ones(3))
    model.register_buffer("absent", None)
    model.register_parameter("none", None)
    assert list(state_of(model)) == ["weight", "bias", "mean"]


def test_trainable_leaves_out_what_is_frozen():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert list(trainable(model)) == ["weight"]


def test_snapshot_is_a_copy():
    model = nn.Linear(2, 2)
    copied = snapshot(named_parameters(model))
    assert not copied["weight"].requires_grad
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(copied["weight"], before)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_state_goes_from_a_bare_to_a_wrapped_model_and_back(wrapper: str):
    model, other = CalledModule(), WRAPPERS[wrapper](CalledModule())
    model(torch.randn(8, 2))  # moves the running statistics
    load_state(other, state_of(model))
    for name, value in state_of(other).items():
        assert torch.equal(value, state_of(model)[name])
    third = CalledModule()
    load_state(third, state_of(other))
    assert torch.equal(named_buffers(third)[BUFFERS[0]], named_buffers(model)[BUFFERS[0]])


def test_a_state_that_does_not_fit_is_refused_and_nothing_is_copied():
    model = nn.Linear(2, 2)
    before = snapshot(state_of(model))
    state = {"weight": torch.zeros(2, 2), "extra": torch.zeros(1), "bias": torch.zeros(3)}
    with pytest.raises(
        ValueError,
        match=r"^the file belongs to another model: unexpected: extra; of another shape: bias \(3,\) for \(2,\)",
    ):
        load_state(model, state, "the file")
    with pytest.raises(ValueError, match=r"^the state belongs to another model: missing: bias$"):
        load_state(model, {"weight": torch.zeros(2, 2)})
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())


def test_differing_names():
    a, b = torch.ones(1), torch.ones(2)
    assert differing_names({"x": a, "y": b}, {"y": b, "x": a}) is None
    found = differing_names({"x": a, "y": b, "z": a}, {"x": b, "w": a, "y": b})
    assert found == "missing: z; unexpected: w; of another shape: x (2,) for (1,)"


def test_device_of_a_model_without_parameters():
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")


# --- the hash of the weights


def test_the_hash_of_weights_is_that_of_their_names_types_shapes_and_bytes():
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3), "empty": torch.empty(0, 2)}
    parts = [("a", "torch.int64", (), torch.tensor(3)), ("b", "torch.float32", (2,), state["b"])]
    parts.append(("empty", "torch.float32", (0, 2), state["empty"]))
    content = b"".join(repr(part[:3]).encode() + part[3].numpy().tobytes() for part in parts)
    assert weight_hash(state) == hashlib.sha256(content).hexdigest()


def test_the_hash_of_weights_does_not_depend_on_order_device_memory_or_wrapper():
    model = CalledModule()
    state = state_of(model)
    expected = weight_hash(state)
    assert weight_hash(dict(reversed(state.items()))) == expected
    assert weight_hash({name: value.clone() for name, value in state.items()}) == expected
    transposed = state | {"module.weight": state["module.weight"].T.contiguous().T}  # equal, but not contiguous
    assert weight_hash(transposed) == expected
    assert all(weight_hash(state_of(wrap(model))) == expected for wrap in WRAPPERS.values())
    if torch.cuda.is_available():
        assert weight_hash({name: value.cuda() for name, value in state.items()}) == expected


def test_any_change_changes_the_hash_of_weights():
    state = state_of(CalledModule())
    others = [
        state | {"module.weight": state["module.weight"].nextafter(torch.tensor(9.0))},
        state | {"inner.module.num_batches_tracked": torch.tensor(1)},  # a buffer
        {("other" if name == "module.bias" else name): value for name, value in state.items()},
        {name: value for name, value in state.items() if name != "module.bias"},
        state | {"module.weight": state["module.weight"].reshape(4)},
        state | {"module.weight": state["module.weight"].double()},
        state | {"module.bias": state["inner.module.bias"], "inner.module.bias": state["module.bias"]},
    ]
    hashes = [weight_hash(each) for each in others]
    assert len({weight_hash(state), *hashes}) == 1 + len(others)
