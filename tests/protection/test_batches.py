"""Batches: a model may change its inputs, and what is no iterable of batches is told in our own words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from importance_cases import ESTIMATORS, assert_same
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tripletmas.basics.weights import Params
from tripletmas.protection.batches import Forward
from tripletmas.protection.importance.accumulator import ImportanceAccumulator
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.protection import MAS, LocalMAS
from tripletmas.protection.structured.gram import Gram
from tripletmas.protection.structured.moments import input_importance

GUARDS: dict[str, Callable[..., Any]] = {"mas": MAS, "local_mas": LocalMAS, "gram": Gram}
MEASURES = ESTIMATORS | {"gram": input_importance}


class Standardising(nn.Module):
    """Standardises its input, and its hidden numbers: in place, or not."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place = in_place
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).div_(0.25) if self.in_place else x.sub(0.5).div(0.25)
        return self.two(self.one(x).relu())


def samples(count: int = 5) -> Tensor:
    return torch.rand(count, 8, generator=torch.Generator().manual_seed(1))


# --- a model that changes its inputs


@pytest.mark.parametrize("name", MEASURES)
def test_a_model_may_change_its_input_in_place(name: str, caplog: pytest.LogCaptureFixture):
    """Otherwise the same samples would be standardised again at each of several passes."""
    x = samples()
    with caplog.at_level(logging.INFO, "tripletmas"):
        found = MEASURES[name](Standardising(in_place=True), x.split(3))
    assert torch.equal(x, samples())  # that of the caller
    assert_same(found, MEASURES[name](Standardising(in_place=False), x.split(3)), rtol=1e-7)
    assert not caplog.messages  # it is measured all at once, as another model


BATCHES: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda x: (x, torch.zeros(len(x))),
    "list in a dict": lambda x: {"views": [x], "labels": torch.zeros(len(x))},
}
FORWARDS: dict[str, Forward] = {
    "tuple": lambda model, batch: model(batch[0]),
    "list in a dict": lambda model, batch: model(batch["views"].pop()),  # changes the batch itself, too
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_forward_may_change_its_batch(kind: str):
    batch = BATCHES[kind](samples())
    found = mas_importance(Standardising(in_place=True), [batch], forward=FORWARDS[kind])
    assert_same(found, mas_importance(Standardising(in_place=False), [samples()]), rtol=1e-7)
    again = mas_importance(Standardising(in_place=True), [batch], forward=FORWARDS[kind])
    assert all(torch.equal(value, found[name]) for name, value in again.items())


# --- what is not several batches


def consolidated(make: Callable[..., Any], batches: Any) -> Params:
    torch.manual_seed(0)
    return make(nn.Conv2d(3, 3, 1)).consolidate(batches)  # which takes a sample alone, too


def images() -> Tensor:
    return torch.rand(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))


class Streaming(IterableDataset):
    def __iter__(self):
        return iter(images().split(2))


class StreamingSamples(IterableDataset):
    def __init__(self, named: bool):
        self.named = named

    def __iter__(self):
        for number, image in enumerate(images()):
            yield {"image": image, "label": number} if self.named else (image, torch.tensor(number))


NOT_BATCHES = {
    "a stream of samples": (
        lambda: StreamingSamples(False),
        r"this StreamingSamples gives samples one by one: .*DataL",
    ),
    "a stream of dicts": (lambda: StreamingSamples(True), "StreamingSamples gives samples one by one"),
    "a tensor": (images, "a Tensor is one batch, and several are expected: give .batch."),
    "an array": (lambda: images().numpy(), r"a ndarray is one batch, .* give .torch.as_tensor\(batch\)."),
    "a dict": (lambda: {"x": images()}, "a dict is one batch"),
    "a text": (lambda: "images", "a str is one batch"),
    "texts": (lambda: ["one", "two"], "a list is one batch"),
    "texts one by one": (lambda: iter(["one", "two"]), "a batch is a list of texts, and this is one text"),
    "samples and labels": (lambda: (images(), torch.arange(5)), "a tuple is one batch"),
    "a data set": (lambda: TensorDataset(images()), r"a TensorDataset gives samples one by one: .*DataLoader"),
    "nothing": (lambda: None, "expected an iterable of batches, such as a DataLoader, got a NoneType"),
    "a number": (lambda: 3, "expected an iterable of batches, such as a DataLoader, got an int"),
    "arrays": (lambda: [images().numpy()], r"a batch must hold a tensor .* got a ndarray without any: give torch"),
    "other lengths": (lambda: [{"input": [images(), images()[:2]]}], r"one row a sample, got lengths \[5, 2\]"),
}


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("kind", NOT_BATCHES)
def test_what_is_not_an_iterable_of_batches_is_refused(guard: str, kind: str):
    make, message = NOT_BATCHES[kind]
    with pytest.raises(ValueError, match=message):
        consolidated(GUARDS[guard], make())


@pytest.mark.parametrize("guard", GUARDS)
def test_loaders_lists_tuples_and_generators_are_batches(guard: str):
    make, x = GUARDS[guard], images()
    expected = consolidated(make, [x])
    loader: Any = DataLoader(TensorDataset(x), batch_size=2)
    for batches in (loader, Streaming(), x.split(2), list(x.split(2)), (part for part in x.split(3))):
        assert_same(consolidated(make, batches), expected, rtol=1e-5)


# --- types


class Casting(nn.Linear):
    """Under autocast it would work; alone, types differ."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bfloat16())


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Casting(8, 4), samples()),
        (nn.Linear(8, 4), samples().double()),  # as numbers from numpy are
        (nn.Conv1d(8, 4, 1), samples().double().unsqueeze(2)),
        (nn.Embedding(9, 4), samples().softmax(1)),
    ],
)
def test_a_batch_of_another_type_than_the_weights_is_told(guard: str, layer: nn.Module, x: Tensor):
    options = {"left_out": ("1",)} if guard == "local_mas" else {}
    model = nn.Sequential(layer, nn.PReLU())
    with pytest.raises(ValueError, match="cannot be called on this batch in full precision, outside autocast"):
        GUARDS[guard](model, **options).consolidate([x])


def test_a_forward_may_enter_autocast():
    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)

    torch.manual_seed(0)
    model = Casting(8, 4)
    found = mas_importance(model, [samples()], forward=forward)["weight"]
    model_in_full = nn.Linear(8, 4)
    model_in_full.load_state_dict(model.state_dict())
    expected = mas_importance(model_in_full, [samples()])["weight"]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02 * float(expected.max()))  # bfloat16 has 8 bits


@pytest.mark.parametrize("guard", GUARDS)
def test_complex_weights_are_refused(guard: str):
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"complex weights cannot be measured or protected \(1.weight\): freeze them"):
        GUARDS[guard](model)
    with pytest.raises(ValueError, match=r"\(1.weight\)"):
        mas_importance(model, [samples()])
    model[1].requires_grad_(False)
    GUARDS[guard](model)


# --- under inference mode, whose tensors can never take part in a gradient


@pytest.mark.parametrize("guard", GUARDS)
def test_measuring_under_inference_mode_is_refused(guard: str):
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    held = GUARDS[guard](model)
    state = {name: value.clone() for name, value in held.state_dict().items()}
    with torch.inference_mode():
        for act in (lambda: held.consolidate([samples()]), lambda: held.load_state_dict(state)):
            with pytest.raises(ValueError, match=r"outside torch.inference_mode\(\)"):
                act()
        made, batch = nn.Linear(8, 4), samples()
    with pytest.raises(ValueError, match=r"weight was made under torch.inference_mode\(\), and has no gradient"):
        GUARDS[guard](made).consolidate([samples()])
    assert_same(held.consolidate([batch]), GUARDS[guard](model).consolidate([samples()]))  # read under it, no matter


def test_an_accumulator_is_refused_under_inference_mode():
    model = nn.Linear(8, 4)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"outside torch.inference_mode\(\)"):
        ImportanceAccumulator(model)
    running = ImportanceAccumulator(model)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"outside torch.inference_mode\(\)"):
        running.update(samples())
    running.update(samples())
    assert running.num_samples == 5
