"""Gram: what each layer answers to the inputs it had is held, not each weight by itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from tripletmas.basics.weights import Params, Place, named_parameters, placed_parameters, snapshot, trainable
from tripletmas.protection.batches import Forward, refuse_inference_mode
from tripletmas.protection.coverage import Coverage, measure_coverage, warn_of_moving_statistics
from tripletmas.protection.file import read_protection, write_protection
from tripletmas.protection.guard import Guard
from tripletmas.protection.hooks import gradient_scale
from tripletmas.protection.optimizers import plain_rate, signs
from tripletmas.protection.penalty import check_weight
from tripletmas.protection.pretrained import file_to_read, warn_of_other_weights
from tripletmas.protection.structured.adapting import adapt, most_stable
from tripletmas.protection.structured.budget import (
    FURTHEST,
    check_budget,
    default_budget,
    warn_if_unstable,
)
from tripletmas.protection.structured.change import Limit, anchored, bring_back, pull, values_of
from tripletmas.protection.structured.following import Kept, followed
from tripletmas.protection.structured.gram_matrix import LowRank, scaled
from tripletmas.protection.structured.held import Held
from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.moments import (
    Grams,
    diagonals,
    input_importance,
    refuse_unless_by_rows,
    relative_grams,
)
from tripletmas.protection.structured.quadratic import first_task
from tripletmas.protection.structured.state import from_tensors, to_tensors
from tripletmas.protection.structured.turns import LARGE, take_turns, turns

# Of bringing weights back, which takes more than one where maps share them, or where biases are frozen.
_ROUNDS = 10


@final
class Gram(Guard):
    """Holds what every layer answers: the input Gram penalty, exact for changes of any size of a linear layer.

    The share of a layer's response that changed, E||response now - response then||^2 / E||response then||^2 on the
    inputs then, biases included, is tr(dW A dW^T) with A = E[a a^T] / E||W a||^2, a the layer's inputs. Each task is
    held to its own weights, since these made the vectors that an index has of it. What old inputs do not reach is free.

    With a `budget` b every layer's answers may move by b of their length (root mean square: a share of b^2), on the
    average over earlier tasks: a multiplier for each layer rises where they moved further and falls where less. While
    it learns, a layer that has gone three times as far, and at the end of a task every layer beyond the budget
    (`settle`), is brought back to the nearest weights within; what no old input sees is left alone.
    With a `strength` the penalty is strength * sum over layers and tasks of the shares.
    Needs forward passes only and no label. It holds weights: keep batch norm in eval mode, whose statistics are none.

    Memory: one and a half copies of the trainable parameters, and of each layer a square matrix of its inputs, or of
    many inputs few of their directions (`kept_shares`): two copies in all. With `exact` two, and squares.

    Args:
        budget: how far the answers of each layer may move, as a part of their length, in (0, 1]. None takes, unless
            there is a strength, 0.025 over the root of the number of layers: 0.014 for three, 0.0025 for 100.
        strength: weight of the penalty in place of a budget.
        reference: own, each task is held to the weights that it was learned with; last, all to the last task's.
        decay: what is left of earlier tasks when a task is added; 1 keeps all.
        exact: count every position of the inputs (see `relative_grams`), keep what earlier tasks add in the precision
            of the weights, and pull every layer at every step; else one of 2^17 weights or more is pulled at every
            second step, twice as strongly.
        forward: how to call the model on a batch, (model, batch) -> a tensor with one row a sample.

    Raises:
        ValueError: for a budget outside (0, 1], or a budget and a strength together; and as `Guard` says.

    Source: ours; the soft form of null-space methods (OWM, GPM, Adam-NSCL), by the Gram matrices with which RegMean
    (Jin et al., ICLR 2023) merges models.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 2.0)
    >>> gram = Gram(layer, strength=1.0)
    >>> _ = gram.consolidate([torch.tensor([[1.0], [3.0]])])
    >>> _ = nn.init.constant_(layer.weight, 3.0)              # the answer is half as long again: (1 / 2)^2
    >>> gram.value().item()
    0.25
    """

    def __init__(
        self,
        model: nn.Module,
        budget: float | None = None,
        *,
        strength: float | None = None,
        reference: Literal["own", "last"] = "own",
        decay: float = 1.0,
        exact: bool = False,
        forward: Forward | None = None,
    ):
        check_budget(budget, strength)
        refuse_unless_by_rows(model)
        if reference not in ("own", "last"):
            raise ValueError(f"reference must be 'own' or 'last', got {reference!r}")
        estimate = partial(input_importance, forward=forward, exact=exact)
        super().__init__(model, strength=1.0 if strength is None else strength, decay=decay, estimate=estimate)
        self._given, self._has_budget = budget, strength is None
        self.reference: Literal["own", "last"] = reference
        self.exact = exact
        self.forward = forward
        self._held: dict[LinearMap, Held] = {}
        self._reference: Params = {}
        self._places: dict[str, Place] = {}  # of what is held, to see what the model has replaced since

    @property
    def budget(self) -> float | None:
        """How far the answers of each layer may move; None with a strength. Where none was given it depends on how many
        layers are held."""
        return self._budget_now() if self._has_budget else None

    @property
    def holds(self) -> bool:
        return bool(self._held)

    @property
    def importance(self) -> Params:
        """Of every weight by itself, by canonical name: the diagonal of the forms, the second moment of its input."""
        return diagonals({each: held.form.gram for each, held in self._present().items()}, self.model)

    def shares(self) -> dict[str, float]:
        """The share of each map's squared response that has changed, on the average over the tasks that are held."""
        with torch.no_grad():
            present = self._present()
            values = values_of(present, named_parameters(self.model), self._reference)
        return {
            each.name: float(value / held.form.tasks)
            for (each, held), value in zip(present.items(), values, strict=True)
        }

    def kept_shares(self) -> dict[str, float]:
        """Of each map of whose Gram the large directions are kept, the share of its inputs' second moment that lies in
        these; what is left is held alike in all others."""
        forms = {each.name: held.form.gram for each, held in self._present().items()}
        return {name: gram.kept_share() for name, gram in forms.items() if isinstance(gram, LowRank)}

    def set_strength(self, strength: float) -> None:
        """From now on hold with this strength, without a budget."""
        self.strength, self._has_budget = strength, False

    # --- in a training loop

    def value(self) -> Tensor:
        """The penalty now: strength times the sum of the shares over layers and tasks, or each layer's multiplier times
        its share; a differentiable scalar."""
        self._loop.valued |= torch.is_grad_enabled()
        present = self._present()
        values = values_of(present, named_parameters(self.model), self._reference)
        terms = [self._weight(held) * value for held, value in zip(present.values(), values, strict=True)]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    @torch.no_grad()
    def _add_gradients(self, optimizer: Optimizer, *, first: bool = True) -> list[nn.Parameter]:
        parameters = named_parameters(self.model)
        stepped = self._stepped_by(optimizer, parameters)
        here = {each: held for each, held in self._present().items() if not stepped.keys().isdisjoint(each.parameters)}
        if not here:
            return []
        own = [parameters[name] for name in stepped]
        if optimizer not in self._loop.checked_rates:
            warn_of_moving_statistics(self.model)
        if isinstance(optimizer, LBFGS):  # a line search wants the weights left alone, and nothing changed in a step
            if first and optimizer in self._loop.checked_rates:
                self._adapt(optimizer, here.values(), own)
            pull(here, parameters, self._reference, self._pulls(optimizer, here), stepped)
        else:
            pulled = turns(here, stepped, begins=first)
            limit, pulls = self._limit(FURTHEST, stepped) if self._has_budget else None, self._pulls(optimizer, pulled)
            pull(pulled, parameters, self._reference, pulls, stepped, limit)
            self._adapt(optimizer, here.values(), own)
        self._loop.checked_rates.add(optimizer)
        return own

    @torch.no_grad()
    def settle(self) -> None:
        """With a budget: bring every layer that has gone beyond it to the nearest weights within. `consolidate` calls
        it first; call it yourself to use or save a model before that."""
        self._warn_if_unprotected()
        if self._has_budget:
            parameters, limit = named_parameters(self.model), self._limit(1, trainable(self.model))
            for _ in range(_ROUNDS):
                if not bring_back(self._present(), parameters, self._reference, limit):
                    break
            self._note_weights()  # these changes are its own

    def _stepped_by(self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
        """The parameters that are held and that this optimizer steps, with their signs; without those frozen since:
        with a gradient, weight decay and momentum would move them."""
        sign = signs(optimizer)
        known = {name: parameters[name] for name in self._reference if name in parameters}
        return {name: sign[id(each)] for name, each in known.items() if each.requires_grad and id(each) in sign}

    def _adapt(self, optimizer: Optimizer, here: Collection[Held], own: Collection[nn.Parameter]) -> None:
        """Let the multipliers of a budget follow; with plain gradient steps on these no further than is stable."""
        rate = plain_rate(optimizer, set(map(id, own)))
        most = None if rate is None else most_stable(rate, here, averaged=self._has_budget)
        if self._has_budget:
            adapt(here, self._budget_now(), most)
        elif most is not None and optimizer not in self._loop.checked_rates:
            warn_if_unstable(self.strength, float(most.min()))

    # --- after a task

    def consolidate(self, batches: Iterable[Any]) -> Params:
        """Measure the input Grams of what was just learned, add them to what is held, and re-anchor.

        With a budget it brings the weights back to within it first (`settle`).

        Args:
            batches: unlabelled data (labels are ignored): an iterable of tensors, (inputs, ...) tuples or dicts.

        Returns:
            The diagonal of this task's forms alone, by canonical name.
        """
        self._check_before_measuring()
        self.settle()
        return self._measure_and_add(batches, weight=1.0, decay=self.decay)

    def add_unlabelled(self, batches: Iterable[Any], *, weight: float = 1.0) -> Params:
        check_weight(weight)
        self._check_before_measuring()
        return self._measure_and_add(batches, weight=weight, decay=1.0)

    @torch.no_grad()
    def add(self, grams: Grams, *, weight: float = 1.0, decay: float = 1.0) -> None:
        """Add `weight` of a task with these Grams, learned with the present weights, to `decay` times what is held."""
        current, own, before = named_parameters(self.model), self.reference == "own", self._present()
        forms = anchored(before, current, self._reference, own=own, exact=self.exact)
        for each, gram in grams.items():
            gram = gram if weight == 1 else scaled(gram, weight)
            forms[each] = forms[each].with_task(gram, weight, decay) if each in forms else first_task(gram, weight)
        multipliers = {each: held.multiplier for each, held in before.items()}
        held = {each: Held(form, multipliers.get(each)) for each, form in forms.items()}
        if not self.exact:
            take_turns(of for each, of in held.items() if math.prod(each.shape(current)) >= LARGE)
        self._hold(held)
        self._reference = snapshot({name: place.parameter for name, place in self._places.items()})
        self._note_measured(left_out=True)

    def _measure_and_add(self, batches: Iterable[Any], *, weight: float, decay: float) -> Params:
        grams = relative_grams(self.model, batches, forward=self.forward, exact=self.exact)
        self.add(grams, weight=weight, decay=decay)
        return diagonals(grams, self.model)

    def coverage(self) -> Coverage:
        """What is held of the model as it is now, and what is left free."""
        whole = [each.weight for each in self._present() if each.kind == "whole" and each.weight]
        return replace(measure_coverage(self.model, self.importance), alone=tuple(sorted(whole)))

    # --- on disk

    def state_dict(self) -> Params:
        """See `structured.state`."""
        return to_tensors(self._present(), self._reference, self.model)

    def load_state_dict(self, state: Params) -> None:
        held, reference = from_tensors(state, self.model)
        self._hold(held)
        self._reference = reference
        self._note_measured(left_out=False)

    def save(self, path: str | Path) -> None:
        settings = {"holds": "gram", "budget": self._given, "strength": None if self._has_budget else self.strength}
        settings |= {"reference": self.reference, "decay": self.decay, "exact": self.exact}
        write_protection(path, self.state_dict(), settings)

    @staticmethod
    def load(path: str | Path, model: nn.Module, *, forward: Forward | None = None) -> Gram:
        """The Gram saved at `path`, for `model`.

        Raises:
            ValueError: if the file is no saved Gram or was cut short; if it was saved for another model.
        """
        with read_protection(path, model) as (state, settings):
            if settings.get("holds") != "gram":
                raise ValueError("it holds weights one by one: Protection.load reads it")
            options = {name: settings[name] for name in ("strength", "reference", "decay", "exact")}
            gram = Gram(model, settings["budget"], **options, forward=forward)
            gram.load_state_dict(state)
        return gram

    @staticmethod
    def from_pretrained(folder: str | Path, model: nn.Module, *, forward: Forward | None = None) -> Gram:
        """The Gram that `save_pretrained` wrote into a model's folder; as `Protection.from_pretrained`."""
        path = file_to_read(folder)
        gram = Gram.load(path, model, forward=forward)
        warn_of_other_weights(path, gram._reference, model)
        return gram

    # --- inside

    def _budget_now(self) -> float:
        return default_budget(len(self._held)) if self._given is None else self._given

    def _limit(self, budgets: float, moved: Collection[str]) -> Limit:
        """So many times the budget, for bringing back weights with these names."""
        return Limit((budgets * self._budget_now()) ** 2, moved, self._loop.beside)

    def _weight(self, held: Held) -> Tensor | float:
        """What the form of a map is multiplied with in the penalty."""
        return held.multiplier / held.form.tasks if self._has_budget else self.strength

    def _pulls(self, optimizer: Optimizer, pulled: Mapping[LinearMap, Held]) -> dict[LinearMap, Tensor | float]:
        """The same at a step."""
        scale, searches = gradient_scale(optimizer), isinstance(optimizer, LBFGS)
        return {each: self._weight(held) * scale * (1 if searches else held.steps) for each, held in pulled.items()}

    def _present(self) -> dict[LinearMap, Held]:
        """Without maps of which the model has replaced a parameter."""
        present, kept = followed(self.model, Kept(self._held, self._reference, self._places))
        if kept.places is not self._places:
            self._loop.checked.clear()
        self._held, self._reference, self._places = kept
        return present

    def _held_names(self) -> tuple[set[str], set[str]]:
        present, model = {name for each in self._present() for name in each.parameters}, self._ids()
        lost = {name for name, place in self._places.items() if id(place.parameter) not in model}
        return present & self._reference.keys(), lost - present

    def _hold(self, held: dict[LinearMap, Held]) -> None:
        refuse_inference_mode()
        self._held = held
        names = {name for each in held for name in each.parameters}
        self._places = {
            name: place
            for name, place in placed_parameters(self.model).items()
            if name in names and (place.parameter.requires_grad or name in self._places)  # it may be frozen for a while
        }
        self._loop.checked_rates.clear()
        self._loop.checked.clear()
