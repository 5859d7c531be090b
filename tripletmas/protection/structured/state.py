"""What a Gram holds, as tensors by name: for files and checkpoints.

Of each map `gram/KEY`, or `factor/KEY` and `rest/KEY` where it is of low rank, `offset/KEY` and `scalars/KEY` (value,
tasks, multiplier, share when it was last pulled, and of one that takes turns whether it rested at the last step); and
`reference/NAME` of the parameters. Of weights that are spread over processes the references are, too, and all else is
whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params, named_parameters
from tripletmas.protection.penalty import laid_out_as, refuse_other_model
from tripletmas.protection.structured.gram_matrix import LowRank
from tripletmas.protection.structured.held import Held
from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.local_map import local_map
from tripletmas.protection.structured.quadratic import Quadratic

_FORM = ("gram", "factor", "rest", "offset")  # of a map


def to_tensors(held: Mapping[LinearMap, Held], reference: Params, model: nn.Module) -> Params:
    """All of it; of a model that is spread over processes all must ask."""
    current = named_parameters(model)
    state: Params = {}
    for each, of in held.items():
        form = of.form
        if isinstance(form.gram, LowRank):
            state |= {f"factor/{each.key}": form.gram.factor, f"rest/{each.key}": form.gram.rest}
        else:
            state[f"gram/{each.key}"] = form.gram
        if form.offset is not None:
            whole = local_map(each, current).whole_of(form.offset, current)
            state[f"offset/{each.key}"] = whole.contiguous()
        scalars = [form.value, torch.full_like(form.value, form.tasks, dtype=torch.float64), of.multiplier, of.found]
        scalars += [] if of.rests is None else [form.value.new_tensor(of.rests)]
        state[f"scalars/{each.key}"] = torch.stack([one.double() for one in scalars])
    return state | {f"reference/{name}": value for name, value in reference.items()}


def from_tensors(state: Params, model: nn.Module) -> tuple[dict[LinearMap, Held], Params]:
    """What `to_tensors` was given, on the devices of the model.

    Raises:
        ValueError: for parameters or forms that the model lacks, or has in other shapes.
    """
    current = named_parameters(model)
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*_FORM, "scalars", "reference")}
    for key, value in state.items():
        kind, _, name = key.partition("/")
        parts.setdefault(kind, {})[name] = value
    reference = parts["reference"]
    refuse_other_model(model, reference)
    if any(not parts[kind].keys() <= parts["scalars"].keys() for kind in _FORM):
        raise ValueError("the state lacks the scalars of a map")
    held = {each: _held_of(each, parts, current) for each in map(LinearMap.from_key, parts["scalars"])}
    return held, {name: laid_out_as(current[name], value) for name, value in reference.items()}


def _held_of(each: LinearMap, parts: dict[str, dict[str, Tensor]], current: Mapping[str, nn.Parameter]) -> Held:
    if any(name not in parts["reference"] and current[name].requires_grad for name in each.parameters):
        raise ValueError(f"the state lacks the weights that {each.name} is held at")
    device, scalars = current[each.parameters[0]].device, parts["scalars"][each.key]
    kept = {kind: parts[kind][each.key].to(device) for kind in _FORM if each.key in parts[kind]}
    gram = kept["gram"] if "gram" in kept else LowRank(kept["factor"], _by_column(kept["rest"], kept["factor"]))
    value, _, multiplier, found, *rests = scalars.to(next(iter(kept.values()))).unbind()
    form = Quadratic(gram, kept.get("offset"), value, float(scalars[1]))
    if not _fits(form, each.shape(current)):
        raise ValueError(f"saved for another model: what is held of {each.name} has another shape")
    if form.offset is not None:
        form = form._replace(offset=local_map(each, current).part_of(form.offset))
    return Held(form, multiplier, found, rests=bool(rests[0]) if rests else None)


def _by_column(rest: Tensor, factor: Tensor) -> Tensor:
    """The rest (groups, columns); files of earlier versions have one number for all columns of a group."""
    return rest.unsqueeze(1).expand(-1, factor.shape[1]).clone() if rest.ndim == 1 else rest


def _fits(form: Quadratic, matrices: tuple[int, int, int]) -> bool:
    """Whether a form is one of matrices of this shape."""
    groups, _, columns = matrices
    if isinstance(form.gram, LowRank):
        right = form.gram.factor.shape[:2] == (groups, columns) and form.gram.rest.shape == (groups, columns)
    else:
        right = form.gram.shape == (groups, columns, columns)
    return right and (form.offset is None or form.offset.shape == matrices)
