"""Gram: hold what each layer answers, so that stored vectors stay usable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from tripletmas.basics.weights import Params
from tripletmas.objectives.objective import Objective
from tripletmas.protection.guard import check_penalty
from tripletmas.protection.structured import gram
from tripletmas.protection.structured.budget import check_budget
from tripletmas.strategies.consolidate import Consolidate


class Gram(Consolidate):
    """Hold what each layer answers to the inputs it had: an index made under an earlier task stays usable.

    Penalty: for each layer and earlier task, the share of the layer's squared response that has changed, E||dW a||^2
    over E||W a||^2 with a the layer's inputs then. A budget bounds its root, on the average over tasks, for each layer
    by itself; a strength weighs the sum.
    Stored vectors hardly move under it, and a map that is fitted on new images moves them: none is used, unless
    gallery.compensate names one.
    Stores one and a half copies of the weights and, for each layer, a square matrix of its inputs, or of many inputs
    few of their directions, however many tasks; costs a forward pass over the data after each task, and a matrix
    product for each layer at a step.

    Args:
        budget: how far each layer's answers may move, as a part of their length, in (0, 1]; null takes, unless there
            is a strength, 0.025 over the root of the number of layers.
        strength: weight of the penalty in place of a budget.
        reference: own, each task is held to the weights that it was learned with; last, all to those of the last task.
        decay: what is left of earlier tasks when a task is added; 1 keeps all.
        exact: count every position of a layer's inputs, where else those of large layers are drawn, and store two
            copies of the weights.

    Source: ours; see `tripletmas.Gram`.
    """

    freezes_batchnorm = True
    compensate = None

    def __init__(
        self,
        *,
        budget: float | None = None,
        strength: float | None = None,
        reference: Literal["own", "last"] = "own",
        decay: float = 1.0,
        exact: bool = False,
    ):
        check_budget(budget, strength)
        check_penalty(0.0 if strength is None else strength, decay)
        self.budget, self.strength, self.decay, self.exact = budget, strength, decay, exact
        self.reference: Literal["own", "last"] = reference

    def make_protection(self, model: nn.Module, objective: Objective) -> gram.Gram:
        return gram.Gram(
            model,
            self.budget,
            strength=self.strength,
            reference=self.reference,
            decay=self.decay,
            exact=self.exact,
        )

    def add_unlabelled(self, batches: Iterable[Any], *, weight: float = 1.0) -> Params:
        return self.prepared().add_unlabelled(batches, weight=weight)

    def set_strength(self, strength: float) -> None:
        prepared = self.prepared()
        assert isinstance(prepared, gram.Gram)
        prepared.set_strength(strength)
