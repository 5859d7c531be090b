"""The input Gram of every linear map of a model, on data: A = E[a a^T], in the unit of the map's own response.

Shapes: Grams (groups, columns, columns).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tripletmas.basics.distributed import gather_objects, sum_numbers, sum_over_ranks, together
from tripletmas.basics.rows import why_not_by_rows
from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params, device_of, named_parameters, trainable, unwrap
from tripletmas.protection.batches import (
    Forward,
    each_batch,
    measured_parameters,
    measuring,
    num_samples,
)
from tripletmas.protection.calling import ModelCall
from tripletmas.protection.engine.inputs import LayerInputs
from tripletmas.protection.replicas import as_one
from tripletmas.protection.structured.gram_matrix import GramMatrix, diagonal, energy, narrowed, scaled
from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.local_map import local_map
from tripletmas.protection.structured.sums import MomentSums, gram_of

Grams = dict[LinearMap, GramMatrix]


@torch.no_grad()
def relative_grams(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None, exact: bool = False
) -> Grams:
    """A / E||W a||^2 of every linear map: tr(dW A dW^T) of it is the share of the map's response that dW changes.

    E is over samples and positions, a 1 is appended to the input where there is a bias. The model is in eval mode, so
    that a batch norm is a scale and a shift of each normalised channel. Trainable parameters that no map explains (a
    class token, positions) are a response of their own, with A = 1: ||dp||^2 / ||p||^2. It takes forward passes only.
    Of several processes E is over the samples of all, as in `mas_importance`; each draws rows of its own.

    Args:
        batches: any iterable of tensors, (inputs, labels, ...) tuples or dicts.
        forward: how to call the model on a batch, (model, batch) -> a tensor with one row a sample.
        exact: count every position, and keep every Gram square. Else, once a map has seen 16384 positions, of later
            ones fewer and fewer are drawn at random (of n so far, 16384 / n of them); of a map with more than 1024
            columns it is 4096, and 1024 where many groups have so many. Of a Gram with more than 256 columns (of
            several groups, 8) the largest directions are kept, one for each 16 columns, from 3 to 128, or fewer that
            have 99 % of the trace; what is left is spread evenly over all others that inputs have.

    Raises:
        ValueError: with no trainable parameter or no sample; where the inputs of a layer are not finite; where nothing
            answers: all inputs or weights are zero. A single map of which that is true is left out, with a warning.
    """
    model = unwrap(model)
    refuse_unless_by_rows(model)
    with as_one(model):
        wanted = measured_parameters(model)
        with together("measuring input Grams"):
            moments, num_samples = _moments(model, batches, forward, exact)
        moments = _over_ranks(moments, device_of(model))
        if not sum_numbers(samples=num_samples)["samples"]:
            raise ValueError("a Gram needs at least one sample, and the batches were empty")
        explained = {name for each in moments for name in each.parameters}
        for name in wanted.keys() - explained:
            moments[LinearMap(name, None, "whole")] = torch.ones(1, 1, 1, device=wanted[name].device)
        found, silent = _in_their_own_unit(moments, named_parameters(model), exact=exact)
    if not found:
        raise ValueError("no layer answers anything on these data: all inputs or all weights are zero")
    if silent:
        warnings.warn(f"nothing to hold of {listed(silent)}: inputs or weights are all zero there", stacklevel=3)
    return found


def refuse_unless_by_rows(model: nn.Module) -> None:
    """Raise a ValueError for weights that are spread over processes in another way than by rows over all of them."""
    for name, value in named_parameters(model).items():
        if others := why_not_by_rows(value):
            raise ValueError(
                f"{name} is spread over {others}, and a Gram holds rows of weights: use fully_shard over a mesh of one "
                "dimension that has all processes, or tripletmas.MAS"
            )


def _in_their_own_unit(
    moments: dict[LinearMap, Tensor], parameters: Mapping[str, Tensor], *, exact: bool
) -> tuple[Grams, list[str]]:
    """The moments, in the order of the model, divided by the maps' squared answers; names of maps without any."""
    order = {name: number for number, name in enumerate(parameters)}
    found, silent = {}, []
    for each in sorted(moments, key=lambda one: order[one.parameters[0]]):
        moment = moments.pop(each)
        if not moment.isfinite().all():
            raise ValueError(f"the inputs of {each.name!r} are not finite on these data: NaN or infinity before it")
        gram = gram_of(moment)
        if isinstance(gram, Tensor) and not exact:
            gram = narrowed(gram)
        answer = float(energy(each.matrices(parameters), gram))
        if answer > 0 and math.isfinite(answer):
            found[each] = scaled(gram, 1 / answer)
        else:
            silent.append(each.name)
    return found, silent


def input_importance(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None, exact: bool = False
) -> Params:
    """The diagonal of `relative_grams`, by canonical name: what share of a response it is to move one weight by 1."""
    return diagonals(relative_grams(model, batches, forward=forward, exact=exact), unwrap(model))


def diagonals(grams: Mapping[LinearMap, GramMatrix], model: nn.Module) -> Params:
    """The diagonals of these Grams as importance of the model's trainable parameters; maps that share one add."""
    like, wanted = named_parameters(model), trainable(model)
    found: Params = {}
    for each, gram in grams.items():
        here = local_map(each, like)
        matrices = diagonal(gram)[here.groups].unsqueeze(1).expand(here.shape(like))
        for name, part in here.spread(matrices, like):
            if name in wanted:
                here.rows(found.setdefault(name, torch.zeros_like(like[name]).detach())).add_(part)
    return found


def _over_ranks(moments: dict[LinearMap, Tensor], device: torch.device) -> dict[LinearMap, Tensor]:
    """Their sums over all processes, one of which may have seen no sample, or none that a map was given."""
    found = {each.key: moment for each, moment in moments.items()}
    for of_rank in gather_objects({key: (moment.shape, moment.dtype) for key, moment in found.items()}):
        for key, (shape, dtype) in of_rank.items():
            if key not in found:
                found[key] = torch.zeros(shape, dtype=dtype, device=device)
    return {LinearMap.from_key(key): total for key, total in sum_over_ranks(found).items()}


def _moments(
    model: nn.Module, batches: Iterable[Any], forward: Forward | None, exact: bool
) -> tuple[dict[LinearMap, Tensor], int]:
    """The sums over the samples of this process, and how many these are."""
    call = ModelCall(model, None, forward)
    sums, total = MomentSums(exact=exact), 0
    with measuring(model) as moved, torch.no_grad():
        for batch in each_batch(batches):
            inputs = moved(call.inputs_of(batch))
            count = num_samples(inputs)
            if not count:
                continue
            total += count
            with LayerInputs(model, named_parameters(model), frozenset(trainable(model)), sums):
                call(model, inputs)
    return sums.sums, total
