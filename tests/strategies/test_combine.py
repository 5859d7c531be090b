"""Combine: what the parts do is done, once and in order; what cannot go together is refused."""

from __future__ import annotations

import pytest
import torch
from test_distill import change, make_metric, make_model
from torch import Tensor

from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.anchors import Anchors
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.combine import Combine
from tripletmas.strategies.distill import Distill
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen
from tripletmas.strategies.imm import IMM
from tripletmas.strategies.joint import Joint
from tripletmas.strategies.l2 import L2
from tripletmas.strategies.mas import MAS
from tripletmas.strategies.replay import Replay


def test_frozen_combines_with_nothing():
    with pytest.raises(ValueError, match="'frozen' combines with nothing: its model stands still"):
        Combine({"frozen": Frozen(), "mas": MAS()})


class Recorder(Strategy):
    """Writes down each moment."""

    def __init__(self, name: str, calls: list[tuple], addition: float | None = None):
        self.name, self.calls, self.addition = name, calls, addition

    def prepare(self, model, loss, stream) -> None:
        self.calls.append((self.name, "prepare"))

    def before_task(self, model, task, optimizer) -> None:
        self.calls.append((self.name, "before_task"))

    def loss(self, model, inputs, embeddings) -> Tensor | None:
        self.calls.append((self.name, "loss"))
        return None if self.addition is None else torch.tensor(self.addition)

    def after_step(self, model) -> None:
        self.calls.append((self.name, "after_step"))

    def after_task(self, model, task) -> None:
        self.calls.append((self.name, "after_task"))


def test_every_moment_goes_to_each_part_in_order(tiny_stream):
    calls: list[tuple] = []
    strategy = Combine({"a": Recorder("a", calls), "b": Recorder("b", calls)})
    train_stream(make_model(), tiny_stream[:1], strategy, make_metric(), TrainConfig(epochs=1, batch_size=14))
    moments = ("prepare", "before_task", "loss", "after_step", "after_task")
    assert calls == [(name, moment) for moment in moments for name in "ab"]


@pytest.mark.parametrize(("terms", "expected"), [((1.0, 2.0), 3.0), ((None, 2.0), 2.0), ((None, None), None)])
def test_losses_are_added(terms, expected):
    strategy = Combine({str(number): Recorder("", [], term) for number, term in enumerate(terms)})
    found = strategy.loss(make_model(), torch.zeros(1), torch.zeros(1))
    assert (None if found is None else found.item()) == expected


def test_protections_and_states_are_those_of_all_parts(tiny_stream):
    parts = {"mas": MAS(), "l2": L2(), "distill": Distill()}
    model, strategy = make_model(), Combine(parts)
    strategy.prepare(model, make_metric(), tiny_stream)
    strategy.before_task(model, tiny_stream[0], torch.optim.SGD(model.parameters(), lr=0.1))
    strategy.after_task(model, tiny_stream[0])
    assert strategy.protections == (parts["mas"].protections[0], parts["l2"].protections[0])
    state = strategy.state_dict()
    expected = [f"{name}/{key}" for name, part in parts.items() for key in part.state_dict()]
    assert list(state) == expected
    other = Combine({"mas": MAS(), "l2": L2(), "distill": Distill()})
    change(model)
    other.prepare(model, make_metric(), tiny_stream)
    other.load_state_dict(state)
    assert list(other.state_dict()) == expected
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_a_name_that_ends_another_is_no_prefix_of_it(tiny_stream):
    model, strategy = make_model(), Combine({"l2": L2(), "my_l2": L2()})
    strategy.prepare(model, make_metric(), tiny_stream)
    strategy.after_task(model, tiny_stream[0])
    state = {key: value * (2 if key.startswith("my_l2/") else 1) for key, value in strategy.state_dict().items()}
    strategy.load_state_dict(state)
    assert [float(p.importance["1.weight"][0, 0]) for p in strategy.protections] == [1, 2]


def test_data_and_deployed_model_are_those_of_the_part_that_has_them(tiny_stream):
    strategy = Combine({"l2": L2(), "joint": Joint(), "imm": IMM()})
    model = make_model()
    strategy.prepare(model, make_metric(), tiny_stream)
    data = strategy.training_data(tiny_stream[1], tiny_stream[:1])
    assert data is not None
    assert len(data) == 28
    assert strategy.deployed(model) is model
    for task in tiny_stream[:2]:
        strategy.after_task(model, task)
    assert strategy.deployed(model) is strategy.parts["imm"].deployed(model) is not model
    plain = Combine({"l2": L2(), "distill": Distill()})
    assert plain.training_data(tiny_stream[1], tiny_stream[:1]) is tiny_stream[1].train
    assert plain.deployed(model) is model


def test_the_strength_that_is_searched_is_that_of_the_named_part(tiny_stream):
    strategy = Combine({"mas": MAS(), "distill": Distill(strength=2.0)}, searched="mas")
    strategy.prepare(make_model(), make_metric(), tiny_stream)
    strategy.set_strength(0.125)
    assert strategy.protections[0].strength == 0.125
    distill = strategy.parts["distill"]
    assert isinstance(distill, Distill)
    assert distill.strength == 2.0
    with pytest.raises(ValueError, match=r"Combine\(\.\.\., searched='mas'\)"):
        Combine({"mas": MAS(), "distill": Distill()}).set_strength(0.1)


def test_what_cannot_go_together_is_refused():
    same = Finetune()
    refused = [
        ({"joint": Joint(), "mas": MAS(), "replay": Replay()}, "'joint' and 'replay' .* both define the training data"),
        (
            {"imm": IMM(), "anchors": Anchors()},
            "'anchors' and 'imm' cannot be combined: the one keeps vectors of the model",
        ),
        ({"joint": Joint(), "replay": Replay()}, "'joint' and 'replay' .* both define the training data"),
        ({"a": IMM(), "b": IMM()}, "'a' and 'b' cannot be combined: they both deploy a model of their own"),
        ({"a": same, "b": same}, "the same strategy object"),
        ({}, "at least one strategy"),
    ]
    for parts, message in refused:
        with pytest.raises(ValueError, match=message):
            Combine(parts)
    with pytest.raises(ValueError, match=r"searched must be one of \['mas'\], got 'distill'"):
        Combine({"mas": MAS()}, searched="distill")


@pytest.mark.filterwarnings("ignore:weights that this .* holds have changed since:UserWarning")  # by hand
def test_pairs_of_old_samples_are_those_of_the_parts_that_have_some(tiny_stream):
    alone, combined = Anchors(per_class=2), Combine({"l2": L2(), "few": Anchors(per_class=1), "more": Anchors()})
    model, found = make_model(), []
    for strategy in (alone, combined):
        strategy.prepare(model, make_metric(), tiny_stream)
    for task in tiny_stream[:2]:
        for strategy in (alone, combined):
            strategy.before_task(model, task, torch.optim.SGD(model.parameters()))
        change(model)
        for strategy in (alone, combined):
            strategy.after_task(model, task)
        found.append([strategy.kept_pairs() for strategy in (alone, combined)])
    assert found[0] == [None, None]
    parts = [combined.parts[name].kept_pairs() for name in ("few", "more")]
    for side in (0, 1):
        assert found[1][0][side].shape == (4, 3)
        assert torch.equal(found[1][1][side], torch.cat([each[side] for each in parts]))
        assert len(found[1][1][side]) == 2 * (1 + 5)
