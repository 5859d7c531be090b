"""Parts of a network by name: its last layer, and what is frozen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.basics.weights import unwrap


def last_layer(model: nn.Module) -> tuple[str, list[nn.Parameter]]:
    """(its name, its weights): of the modules with weights of their own the last, in the order of the model.

    It is the projection that makes the embedding. Where this module has vectors only, as a normalisation has, there is
    no projection, and no weight is given (a network cut off before its classifier). Of several branches the last layer
    is that of the last one alone.
    """
    path, last = "", []
    for name, module in model.named_modules():
        if own := list(module.parameters(recurse=False)):
            path, last = name, own
    return path, [] if all(parameter.ndim < 2 for parameter in last) else last


def freeze(model: nn.Module, patterns: str) -> None:
    """Take weights out of training, for good; batch norm among them is to stand still (see `still_norms`).

    Args:
        patterns: separated by commas: names of modules or parameters as the model has them, with all that is in them
            ("blocks.0"), or patterns of such names ("blocks.[0-3]", "*.bias"). What stands before them all may be left
            out: "stem" for "backbone.stem", where only one part of the model has such a name. In a network of timm also
            what it calls a stage: "stem" is conv_stem and bn1 of an EfficientNet.

    Raises:
        ValueError: for a name of nothing, or of things in several places; where nothing would be left to train.
    """
    parameters = dict(unwrap(model).named_parameters(remove_duplicate=False))
    stages = _stages(unwrap(model))
    asked = list(filter(None, map(str.strip, patterns.split(","))))
    if not asked:
        raise ValueError(f"freeze takes names of parts of the model, separated by commas, got {patterns!r}")
    named = [parameters[name] for pattern in asked for name in _named(pattern, parameters, stages)]
    frozen = {id(parameter) for parameter in named}
    if all(id(each) in frozen or not each.requires_grad for each in parameters.values()):
        raise ValueError(
            f"freeze leaves nothing of the model to train ({patterns!r} is all): freeze less, or do not train, by the "
            "strategy pretrained"
        )
    for parameter in named:
        parameter.requires_grad_(False)


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """All of them, of whatever dimension, by name, in the order of the model."""
    named = model.named_modules()
    return {name: each for name, each in named if isinstance(each, nn.modules.batchnorm._BatchNorm)}


def still_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms that stand still in training: those whose weights are frozen, or, without weights, all beside
    them."""
    modules, norms = dict(model.named_modules()), batch_norms(model).items()
    return [norm for name, norm in norms if _is_frozen(norm) or _is_frozen(_first_with_weights(name, modules))]


def set_train(model: nn.Module, *, freeze_batchnorm: bool) -> None:
    """Training mode, but for batch norms that stand still: all of them, or `still_norms`."""
    model.train()
    for module in batch_norms(model).values() if freeze_batchnorm else still_norms(model):
        module.eval()


def _stages(model: nn.Module) -> dict[str, list[str]]:
    """What timm calls the stages of a network of its own in this model -> the parameters in each."""
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        matcher: Any = getattr(module, "group_matcher", None)
        if matcher and type(module).__module__.startswith("timm."):
            begin = f"{path}." if path else ""
            patterns = {stage: each for stage, each in matcher(coarse=True).items() if isinstance(each, str)}
            for stage, each in patterns.items():
                found[stage] = [begin + name for name, _ in module.named_parameters() if re.match(each, name)]
    return found


def _named(pattern: str, names: Iterable[str], stages: Mapping[str, list[str]]) -> list[str]:
    """The parameters that this is a name or a pattern of, or of something that they are in, or the name of a stage."""
    names = list(names)
    if found := [name for name in names if _begins_with(pattern, name)]:
        return found
    inner = _below_the_top(pattern, names)
    if len(inner) > 1:
        raise ValueError(
            f"freeze: {pattern!r} is in several parts of the model ({listed(inner, 4)}): write the whole name of one, "
            f"or '*.{pattern}' for all"
        )
    if found := next(iter(inner.values()), None) or stages.get(pattern):
        return found
    raise ValueError(f"freeze: the model has no {pattern!r}{_nearest(pattern, names)}")


def _below_the_top(pattern: str, names: Iterable[str]) -> dict[str, list[str]]:
    """The parts of the model that have something of this name in them -> the parameters in that."""
    inner: dict[str, list[str]] = {}
    for name in names:
        words = _words(name)
        for start in range(1, len(words)):
            if _begins_with(pattern, ".".join(words[start:])):
                inner.setdefault(".".join(words[:start]), []).append(name)
    return inner


def _nearest(pattern: str, names: Iterable[str]) -> str:
    parts = _parts(names)
    longer = [part for part in parts if pattern in part]  # conv_stem for stem
    return f" (did you mean {min(longer, key=len)!r}?)" if longer else suggestion(pattern, parts)


def _parts(names: Iterable[str]) -> list[str]:
    """What a part of the model can be called, the largest first: whole names, and then those without what is before."""
    found: dict[str, int] = {}
    for words in map(_words, names):
        for start in range(len(words)):
            for end in range(start + 1, len(words) + 1):
                found.setdefault(".".join(words[start:end]), 100 * start + end)
    return sorted(found, key=lambda each: (found[each], each))


def _words(name: str) -> list[str]:
    return name.split(".")


def _begins_with(pattern: str, name: str) -> bool:
    """Whether the first words of a name, the words between its dots, are what the pattern says."""
    words = _words(name)
    return any(fnmatchcase(".".join(words[:count]), pattern) for count in range(1, len(words) + 1))


def _first_with_weights(name: str, modules: dict[str, nn.Module]) -> nn.Module:
    """The innermost module around this one, itself included, that has weights."""
    while name and not any(True for _ in modules[name].parameters()):
        name = name.rpartition(".")[0]
    return modules[name]


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and not any(each.requires_grad for each in own)
