"""The weights that a network starts from, in a file of another program, where names and last layer may differ."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tripletmas.basics.foreign_weights import read_foreign_weights
from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params, state_of

logger = logging.getLogger(__name__)

_FEW = 0.02  # the share of a network's tensors that may be missing, its last layer apart
_COUNTERS = "num_batches_tracked"  # of batch norm, no weights
_SHARE = 0.2  # of a file's names that have to begin alike: a file may hold a text encoder, or a teacher, besides
_DEPTH = 3  # of wrappers, each of which puts a name before all names


@dataclass(frozen=True)
class Fit:
    """How the tensors of a file fit a network.

    Args:
        taken: name in the network -> the tensor.
        missing: names of the network that the file has not, which start as they were drawn, and
        reshaped: those that it has in another shape.
        unexpected: names of the file, without wrappers, that the network has no place for.
        inside: what the names of the network begin with that the file's names are put into.
    """

    taken: Params
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    unexpected: tuple[str, ...]
    inside: str


def load_start_weights(network: nn.Module, file: str, *, sha256: str | None = None) -> None:
    """Give a network the weights in a file (see `read_foreign_weights`), and log what was left out.

    What wrappers put before names (`module.`, `model.`, `_orig_mod.`, `backbone.`) is taken off, or put on, whatever
    makes most names fit. A classifier of another size is left out. Filters of a first convolution for other channels
    become their mean: equal channels, as those of a grey image, then give the same activations.

    Args:
        sha256: what the file must have; None for any.

    Raises:
        ValueError: as `read_foreign_weights`; if more than a few tensors of the network, its last layer apart, are not
            in the file, or the file has layers within those of the network that it has not: weights of another one;
            for weights that are not finite.
    """
    own = state_of(network)
    fit = _fit(read_foreign_weights(file, sha256), own, network)
    _refuse_another(file, fit, own, last_layer(network))
    if broken := [name for name, value in fit.taken.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"{file} holds weights that are nan or infinite{_named(', in', broken)}: take another file")
    with torch.no_grad():
        for name, value in fit.taken.items():
            own[name].copy_(value)
    logger.info(
        "%s: %d of %d tensors of the network start from it%s%s",
        *(file, len(fit.taken), len(own)),
        _named("; newly drawn", (*fit.missing, *fit.reshaped)),
        _named("; left out of the file", fit.unexpected),
    )


def _refuse_another(file: str, fit: Fit, own: Params, head: str) -> None:
    """Raises ValueError where a file has the weights of another network than one of these tensors.

    Args:
        head: what the names of the last layer begin with, which may be another one.
    """
    reshaped, absent = (_but(head, names) for names in (fit.reshaped, fit.missing))
    parts = {name.removeprefix(fit.inside).partition(".")[0] for name in _but(head, own)}
    foreign = [name for name in fit.unexpected if name.partition(".")[0] in parts]
    if not fit.taken or max(len(reshaped) + len(absent), len(foreign)) > _FEW * len(own):
        raise ValueError(
            f"{file} has the weights of another network: {len(fit.taken)} of {len(own)} tensors fit"
            + _named("; missing", absent)
            + _named("; of another shape", reshaped)
            + _named("; unexpected", foreign)
        )


def _but(head: str, names: Iterable[str]) -> list[str]:
    """The names that are none of the last layer's."""
    return [name for name in names if not name.startswith(head)]


def last_layer(network: nn.Module) -> str:
    """What the names of a network's last layer begin with, `fc.`, if that is linear; else what no name begins with."""
    last = [(name, module) for name, module in network.named_modules() if list(module.parameters(recurse=False))][-1:]
    for name, module in last:
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1}):
            return f"{name}." if name else ""
    return "."


def _fit(found: Mapping[str, Tensor], own: Params, network: nn.Module) -> Fit:
    """How the tensors of a file fit a network with these, under the names that most of them have there."""
    named, inside = _renamed(found, own)
    named = _of_this_size(named, network)
    taken = _taken(named, own)
    missing = tuple(name for name in own if name not in named and not name.endswith(_COUNTERS))
    reshaped = tuple(name for name in own if name in named.keys() - taken.keys())
    unexpected = tuple(name.removeprefix(inside) for name in named if name not in own)
    return Fit(taken, missing, reshaped, unexpected, inside)


def _of_this_size(named: Params, network: nn.Module) -> Params:
    """The tensors as the network of timm within this one, if there is one, takes them at its size."""
    for path, module in network.named_modules():
        begin = f"{path}." if path else ""
        inner = {name.removeprefix(begin): value for name, value in named.items() if name.startswith(begin)}
        changed = _refitted(module, inner)
        if changed is not inner:
            rest = {name: value for name, value in named.items() if not name.startswith(begin)}
            return rest | {begin + name: value for name, value in changed.items()}
    return named


def _refitted(network: nn.Module, tensors: Params) -> Params:
    """The tensors of a file, by the network's names, as one of timm's networks takes them at its size.

    timm's own function for networks of its kind does that, where it has one: position embeddings of images of another
    size are resampled, for instance.
    """
    place = type(network).__module__
    convert = getattr(sys.modules[place], "checkpoint_filter_fn", None) if place.startswith("timm.models.") else None
    if convert is None:
        return tensors
    try:
        return dict(convert(dict(tensors), network))
    except Exception:  # it is made for the files that timm knows, and raises many types for others
        return tensors


def _renamed(found: Mapping[str, Tensor], own: Params) -> tuple[Params, str]:
    """(the tensors with one prefix off and another on, so that most of them fit; the prefix that was put on)."""
    found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    best: Params = {}
    inside = ""
    for off in _prefixes(found):
        bare = {name.removeprefix(off): value for name, value in found.items() if name.startswith(off)}
        for on in _prefixes(own):
            named = {on + name: value for name, value in bare.items()}
            if len(_taken(named, own)) > len(_taken(best, own)):
                best, inside = named, on
    return best, inside


def _prefixes(names: Mapping[str, Tensor]) -> list[str]:
    """What many of the names begin with, up to a few dots; the shortest first, "" among them."""
    counts: dict[str, int] = {"": len(names)}
    for name in names:
        parts = name.split(".")[:-1][:_DEPTH]
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return sorted((prefix for prefix, count in counts.items() if _SHARE * len(names) <= count), key=len)


def _taken(named: Mapping[str, Tensor], own: Params) -> Params:
    """Those that fit their places in the network, as they fit these."""
    fitting = {name: _fitting(value, own.get(name)) for name, value in named.items()}
    return {name: value for name, value in fitting.items() if value is not None}


def _fitting(value: Tensor, place: Tensor | None) -> Tensor | None:
    """The tensor as it fits its place in the network; None if it does not."""
    if place is None or (place.is_floating_point() and not value.is_floating_point()):
        return None  # integers, as of a quantised network, and complex numbers are no weights of this one
    if value.shape == place.shape:
        return value
    of_other_channels = value.ndim == place.ndim == 4 and value.shape[0] == place.shape[0]
    if of_other_channels and value.shape[2:] == place.shape[2:] and value.shape[1] == 3:
        # times 3 / channels, so that the sum over the channels of an image that is grey in each stays what it was
        return value.mean(dim=1, keepdim=True).expand(place.shape) * (value.shape[1] / place.shape[1])
    return None


def _named(what: str, names: list[str] | tuple[str, ...]) -> str:
    return f"{what}: {listed(list(names), 5)}" if names else ""
