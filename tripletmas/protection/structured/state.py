"""What a Gram holds, as tensors by name: for files and checkpoints.

Of each map `gram/KEY`, or `factor/KEY` and `rest/KEY` where it is of low rank, `offset/KEY` and `scalars/KEY` (value,
tasks, multiplier, share at the last step); and `reference/NAME` of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params, named_parameters
from tripletmas.protection.penalty import refuse_other_model
from tripletmas.protection.structured.gram_matrix import LowRank
from tripletmas.protection.structured.held import Held
from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.quadratic import Quadratic

_FORM = ("gram", "factor", "rest", "offset")  # of a map


def to_tensors(held: Mapping[LinearMap, Held], reference: Params) -> Params:
    """All of it."""
    state: Params = {}
    for each, of in held.items():
        form = of.form
        if isinstance(form.gram, LowRank):
            state |= {f"factor/{each.key}": form.gram.factor, f"rest/{each.key}": form.gram.rest}
        else:
            state[f"gram/{each.key}"] = form.gram
        if form.offset is not None:
            state[f"offset/{each.key}"] = form.offset.contiguous()
        scalars = [form.value, torch.full_like(form.value, form.tasks, dtype=torch.float64), of.multiplier, of.found]
        state[f"scalars/{each.key}"] = torch.stack([one.double() for one in scalars])
    return state | {f"reference/{name}": value for name, value in reference.items()}


def from_tensors(state: Params, model: nn.Module) -> tuple[dict[LinearMap, Held], Params]:
    """What `to_tensors` was given, on the devices of the model.

    Raises:
        ValueError: for parameters that the model lacks, or has in other shapes.
    """
    current = named_parameters(model)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        kind, _, name = key.partition("/")
        parts.setdefault(kind, {})[name] = value
    reference = parts.get("reference", {})
    refuse_other_model(model, reference)
    held = {}
    for key, scalars in parts.get("scalars", {}).items():
        each = LinearMap.from_key(key)
        device = current[each.parameters[0]].device
        kept = {kind: parts[kind][key].to(device) for kind in _FORM if key in parts.get(kind, {})}
        gram = kept["gram"] if "gram" in kept else LowRank(kept["factor"], kept["rest"])
        value, _, multiplier, found = scalars.to(next(iter(kept.values()))).unbind()
        held[each] = Held(Quadratic(gram, kept.get("offset"), value, float(scalars[1])), multiplier, found)
    return held, {name: value.to(current[name].device) for name, value in reference.items()}
