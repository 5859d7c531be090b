"""Protection: importance and reference of every weight, and the penalty that holds important weights in place.

The penalty is `strength * sum importance * (theta - reference)^2`, without a hidden 1/2. It goes into the gradient, as
`2 * strength * importance * (theta - reference)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.basics.weights import Params, differing_names, placed_parameters
from tripletmas.protection.batches import Forward, refuse_inference_mode
from tripletmas.protection.coverage import Coverage, measure_coverage
from tripletmas.protection.file import described, read_protection, write_protection
from tripletmas.protection.guard import Estimator, Guard
from tripletmas.protection.held_weight import HeldWeight
from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.importance.uniform import uniform_importance
from tripletmas.protection.optimizers import plain_rate, signs, warn_if_oscillating
from tripletmas.protection.penalty import (
    Instead,
    Pulled,
    add_penalty_gradient,
    check_weight,
    give_back,
    gradient_to_add_to,
    laid_out_as,
    matching_parameters,
    quadratic_penalty,
    refuse_other_model,
)
from tripletmas.protection.place import grown_from, is_in_place
from tripletmas.protection.pretrained import file_to_read, warn_of_other_weights
from tripletmas.protection.replicas import check_same_importance

ESTIMATORS = {function.__name__: function for function in (mas_importance, local_mas_importance, uniform_importance)}


class Protection(Guard):
    """Holds the weights of a model in place, each as firmly as it is important to what was learned so far.

    Memory: two copies of the trainable parameters, `importance` and `reference`, from the first `consolidate` on, and
    a buffer of at most 2^20 weights, which every step uses again.

    Args:
        model: the model that is trained; parameters are matched by identity in memory and by canonical name on disk.
        strength: weight of the penalty (lambda). In the relative unit of `MAS` 0.3 is a good first value.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.
        estimate: (model, batches) -> importance by canonical name.

    Raises:
        ValueError: for a negative strength, a decay outside [0, 1], or half-precision weights, which are too coarse
            to be held in place (keep float32 weights and train under autocast).
    """

    def __init__(self, model: nn.Module, *, strength: float, decay: float = 1.0, estimate: Estimator):
        super().__init__(model, strength=strength, decay=decay, estimate=estimate)
        self._held: dict[str, HeldWeight] = {}  # by name; what the model has replaced since is still in it

    @property
    def holds(self) -> bool:
        return bool(self._held)

    @property
    def importance(self) -> Params:
        """Of every weight that is held, by canonical name; empty before the first `consolidate`."""
        return {name: held.importance for name, held in self._held.items()}

    @property
    def reference(self) -> Params:
        """The weights that it is held at (theta*), by canonical name."""
        return {name: held.reference for name, held in self._held.items()}

    def value(self) -> Tensor:
        """The penalty now, `strength * sum importance * (theta - reference)^2`: a differentiable scalar."""
        self._loop.valued |= torch.is_grad_enabled()
        held = self._present().items()
        importance, reference = {n: each.importance for n, each in held}, {n: each.reference for n, each in held}
        return self.strength * quadratic_penalty(self.model, reference, importance)

    # --- after a task

    def consolidate(self, batches: Iterable[Any]) -> Params:
        """Measure the importance of what was just learned, add it to what is protected, and re-anchor.

        Args:
            batches: unlabelled data (labels are ignored): an iterable of tensors, (inputs, ...) tuples or dicts.

        Returns:
            The importance of this task alone, by canonical name.
        """
        self._check_before_measuring()
        importance = self._estimated(batches)
        self._warn_if_unprotected()
        self.add(importance, decay=self.decay)
        self.anchor()
        return importance

    def add_unlabelled(self, batches: Iterable[Any], *, weight: float = 1.0) -> Params:
        check_weight(weight)
        self._check_before_measuring()
        importance = self._estimated(batches)
        self.add(importance, weight=weight)
        return importance

    def _estimated(self, batches: Iterable[Any]) -> Params:
        importance = self.estimate(self.model, batches)
        check_same_importance(importance)
        return importance

    def add(self, importance: Params, *, weight: float = 1.0, decay: float = 1.0) -> None:
        """Add `weight * importance` to `decay` times what is protected; the reference of a weight that has one stays.

        Raises:
            ValueError: if the model lacks a parameter that has importance, or has it in another shape.
        """
        matching_parameters(self.model, importance)
        places = placed_parameters(self.model)
        held = {name: each._replace(importance=each.importance * decay) for name, each in self._present().items()}
        for name, value in importance.items():
            parameter = places[name].parameter
            value = laid_out_as(parameter, value.detach()) * weight
            if name in held:
                held[name] = held[name]._replace(importance=held[name].importance + value)
            else:
                held[name] = HeldWeight(places[name], value, parameter.detach().clone())
        self._hold(held)
        self._note_measured(left_out=True)

    def anchor(self) -> None:
        """Make the present weights the reference (theta*)."""
        held = self._present()
        self._hold({name: each._replace(reference=each.parameter.detach().clone()) for name, each in held.items()})

    def coverage(self) -> Coverage:
        """What the penalty holds of the model as it is now, and what it leaves free."""
        return measure_coverage(self.model, {name: held.importance for name, held in self._present().items()})

    # --- on disk

    def state_dict(self) -> Params:
        """Importance and reference by `importance/NAME` and `reference/NAME`; empty before the first `consolidate`."""
        held = self._present()
        return {f"importance/{name}": each.importance for name, each in held.items()} | {
            f"reference/{name}": each.reference for name, each in held.items()
        }

    def load_state_dict(self, state: Params) -> None:
        """Take over a state that `state_dict` gave, for the present model.

        Raises:
            ValueError: if the state has parameters that the model lacks, or has in other shapes; all names that do not
                match are listed. Parameters that only the model has are not held, as `coverage` says.
        """
        importance, reference = (
            {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
            for part in ("importance/", "reference/")
        )
        refuse_other_model(self.model, importance)
        if wrong := differing_names(importance, reference):
            raise ValueError(f"the state has not one reference for each importance: {wrong}")
        places = placed_parameters(self.model).items()
        self._hold(
            {name: HeldWeight(at, importance[name], reference[name]) for name, at in places if name in importance}
        )
        self._note_measured(left_out=False)

    def save(self, path: str | Path) -> None:
        """Write importance, reference and settings to one safetensors file (settings as JSON in its header)."""
        settings = {"strength": self.strength, "decay": self.decay, "estimate": described(self.estimate)}
        write_protection(path, self.state_dict(), settings)

    @staticmethod
    def load(
        path: str | Path, model: nn.Module, *, estimate: Estimator | None = None, forward: Forward | None = None
    ) -> Protection:
        """The protection saved at `path`, for `model`; of what has another prefix in its names now, by the new names.
        A model whose weights are as unlike those it is held at as another model's is told at the first step.

        Args:
            estimate, forward: needed only where the saved protection measured with such a function of the user's own.

        Raises:
            ValueError: if the file is no saved protection or was cut short; if it was saved for another model (missing
                and unexpected names are listed), or measures in another unit than `estimate` does.
        """
        with read_protection(path, model) as (state, settings):
            if settings.get("holds") == "gram":
                raise ValueError("it is a Gram, which holds layers: tm.Gram.load reads it")
            saved = settings["estimate"]
            if estimate is None:
                estimate = _estimate_of(saved, forward)
            elif described(estimate) != saved:
                raise ValueError(f"it was measured with {saved}, but estimate= is {described(estimate)}")
            protection = Protection(model, strength=settings["strength"], decay=settings["decay"], estimate=estimate)
            protection.load_state_dict(state)
        return protection

    @staticmethod
    def from_pretrained(
        folder: str | Path, model: nn.Module, *, estimate: Estimator | None = None, forward: Forward | None = None
    ) -> Protection:
        """The protection that `save_pretrained` wrote into a model's folder, for the model that was read from it.

        Warns if the model has other weights than those it is held at, with their share.

        Args:
            estimate, forward: as in `load`.

        Raises:
            ValueError: where the folder holds none; and as `load` says.
        """
        path = file_to_read(folder)
        protection = Protection.load(path, model, estimate=estimate, forward=forward)
        warn_of_other_weights(path, protection.reference, model)
        return protection

    # --- at an optimizer's step

    def _add_gradients(self, optimizer: Optimizer, *, first: bool = True) -> list[nn.Parameter]:
        if any(each.is_moved() for each in self._held.values()):
            self._hold(self._present())
        self._warn_if_unstable(optimizer)
        # frozen since: with a gradient, weight decay and momentum would move it
        by_id = {id(held.parameter): held for held in self._held.values() if held.parameter.requires_grad}
        stepped = {number: sign for number, sign in signs(optimizer).items() if number in by_id}
        scale = getattr(optimizer, "grad_scale", None)  # GradScaler sets it where the (fused) optimizer unscales itself
        instead: Instead = {}
        by_sign: dict[float, list[Pulled]] = {}
        for number, sign in stepped.items():
            held = by_id[number]
            gradient = gradient_to_add_to(held.parameter, instead)
            by_sign.setdefault(sign, []).append(Pulled(held.parameter, gradient, held.reference, held.importance))
        for sign, pulled in by_sign.items():
            add_penalty_gradient(pulled, sign * self.strength, self._loop.buffers, scale=scale)
        give_back(instead)
        return [by_id[number].parameter for number in stepped]

    def _present(self) -> dict[str, HeldWeight]:
        places = placed_parameters(self.model)
        current = {name: place.parameter for name, place in places.items()}
        grown: dict[str, HeldWeight] = {}
        present: dict[str, HeldWeight] = {}
        for name, held in self._held.items():
            if is_in_place(self.model, name, held.place, held.reference, current):
                present[name] = held.laid_out()
            elif place := grown_from(name, held.place, held.reference, places):
                present[name] = grown[name] = held.grown(place)
        if grown:  # once it is trained, it is not known by its values any more
            self._hold({**self._held, **grown})
        return present

    def _held_names(self) -> tuple[set[str], set[str]]:
        present, model = set(self._present()), self._ids()
        return present, {name for name, each in self._held.items() if id(each.parameter) not in model} - present

    def _hold(self, held: dict[str, HeldWeight]) -> None:
        refuse_inference_mode()
        self._held = {name: each.laid_out() for name, each in held.items()}
        self._loop.checked_rates.clear()
        self._loop.checked.clear()

    def _warn_if_unstable(self, optimizer: Optimizer) -> None:
        if optimizer in self._loop.checked_rates:
            return
        self._loop.checked_rates.add(optimizer)
        held = self._held.values()
        rate = plain_rate(optimizer, {id(each.parameter) for each in held})
        if rate is not None:
            warn_if_oscillating(rate * self.strength, [each.importance for each in held])


def _estimate_of(saved: Mapping[str, Any], forward: Forward | None) -> Estimator:
    """The function that is described so, with the forward of the user's own if it had one."""
    own = {} if forward is None else {"forward": forward}
    if saved["function"] not in ESTIMATORS or not set(saved["unsaved"]) <= {"forward"}:
        raise ValueError(f"it was measured with {saved}: give the same function as estimate=")
    if saved["unsaved"] and forward is None:
        raise ValueError(f"it was measured with {saved}: give the same function as forward=")
    if forward is not None and not saved["unsaved"]:
        raise ValueError(f"it was measured with {saved}, without a forward= of one's own: leave forward= out")
    return partial(ESTIMATORS[saved["function"]], **saved["options"], **own)


@final
class MAS(Protection):
    """A `Protection` whose importance is `mas_importance`: two lines protect any training loop.

    Args:
        strength: weight of the penalty (lambda).
        decay: what is left of the importance of earlier tasks when a task is added; 1, as in the authors' code, sums.
        relative: measure importance relative to the mean squared length of the embeddings, so that a strength means
            the same for all models. False is the paper's unit (there the authors' strength is 1).
        layer, forward: as in `mas_importance`.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, equation 3; the relative unit is ours.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float = 0.3,
        *,
        decay: float = 1.0,
        relative: bool = True,
        layer: str | None = None,
        forward: Forward | None = None,
    ):
        estimate = partial(mas_importance, relative=relative, layer=layer, forward=forward)
        super().__init__(model, strength=strength, decay=decay, estimate=estimate)


@final
class LocalMAS(Protection):
    """A `Protection` whose importance is `local_mas_importance`: every layer by itself, no backward pass.

    Args:
        strength, decay: as in `MAS`.
        relative: measure each layer's importance relative to the mean squared length of its own output (ours).
        forward, left_out: as in `local_mas_importance`; layers of other kinds than linear and convolution layers, with
            their batch norm, have to be left out, and are not protected.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, the local version (l-MAS); the relative unit is ours.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float = 0.3,
        *,
        decay: float = 1.0,
        relative: bool = True,
        forward: Forward | None = None,
        left_out: Sequence[str] = (),
    ):
        estimate = partial(local_mas_importance, relative=relative, forward=forward, left_out=list(left_out))
        super().__init__(model, strength=strength, decay=decay, estimate=estimate)
