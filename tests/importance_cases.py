"""What the tests of importance share: every estimator by name, models in the middle of training, comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from architectures import made
from torch import Tensor, nn

from tripletmas.basics.weights import Params
from tripletmas.protection.importance.accumulator import ImportanceAccumulator
from tripletmas.protection.importance.fisher import fisher_importance, squared_gradient_importance
from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance

SLOW = "the slow path"


def assert_same(found: Params, expected: Params, rtol: float = 1e-10) -> None:
    """The same names in the same order, and values up to rounding."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * float(value.abs().max()) + 1e-14)


def labelled(batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """With the labels 0 and 1, which depend on the sample alone."""
    for inputs in batches:
        yield inputs, (inputs.flatten(1).sum(1) > 0).long()


def of_last_layer(model: nn.Module, batches: Iterable[Tensor]) -> Params:
    return mas_importance(model, batches, layer=[name for name, _ in model.named_modules()][-1])


def accumulated(model: nn.Module, batches: Iterable[Tensor]) -> Params:
    running = ImportanceAccumulator(model)
    for batch in batches:
        running.update(batch)
    return running.importance()


# (model, batches of inputs) -> importance
Estimator = Callable[[nn.Module, Iterable[Any]], Params]
ESTIMATORS: dict[str, Estimator] = {
    "mas": mas_importance,
    "mas, relative": partial(mas_importance, relative=True),
    "mas, vector": partial(mas_importance, output="vector"),
    "mas, last layer": of_last_layer,
    "mas, batch": partial(mas_importance, approximate="batch"),
    "accumulator": accumulated,
    "local": local_mas_importance,
    "fisher, sampled": fisher_importance,
    "fisher, all": partial(fisher_importance, labels="all"),
    "fisher, true": lambda model, batches: fisher_importance(model, labelled(batches), labels="true"),
    "squared gradients": lambda model, batches: squared_gradient_importance(
        model, labelled(batches), nn.CrossEntropyLoss()
    ),
}


def used_model(name: str) -> tuple[nn.Module, Tensor]:
    """A model in the middle of training: gradients on some parameters, some submodules in eval mode."""
    model, x = made(name)
    model.train()
    model(x).sum().backward()
    list(model.modules())[-1].eval()
    next(model.parameters()).grad = None
    return model, x


def state(model: nn.Module) -> dict[str, Any]:
    """All that measuring must leave as it is."""

    def copied(value: Tensor | None) -> Any:
        return None if value is None else value.detach().clone()

    return {
        "state": {name: copied(value) for name, value in model.state_dict().items()},
        "grad": {name: copied(p.grad) for name, p in model.named_parameters()},
        "identity": {name: (id(p), id(p.grad), p.data_ptr()) for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "modes": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
        "watchers": len(torch.overrides._get_current_function_mode_stack()),
        "drawn": torch.get_rng_state(),
    }


def assert_equal_state(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal_state(found[key], value)
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected
