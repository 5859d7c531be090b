"""What a model's forward takes: which of a batch's entries are keyword arguments, and whether it takes a whole dict."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from tripletmas.basics.sentences import listed

_DICT = re.compile(r"(?i)\b(\w*dict|mapping|batchencoding|batchfeature)\b")
_UNSAID = ("", "Any", "typing.Any")
_OF_ALL = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


class Arguments:
    """What a model's forward takes, by its signature, or that of the module that it passes everything on to.

    Attributes:
        is_dict: its one argument is annotated as a dict.
        may_take_dict: it has one argument that must be given, and nothing says that it is a tensor.
    """

    def __init__(self, model: nn.Module):
        try:
            self._signature = _signature(model)
        except (TypeError, ValueError):  # a scripted module: all that is known is that keywords are passed on
            self._signature = inspect.signature(lambda **inputs: inputs)
        own = [each for each in self._signature.parameters.values() if each.kind not in _OF_ALL]
        self._names = {each.name for each in own}
        annotation = _annotation_of_the_one(own)
        self.is_dict = annotation is not None and _DICT.search(annotation) is not None
        self.may_take_dict = self.is_dict or annotation in _UNSAID

    def those_of(self, inputs: dict[Any, Any]) -> dict[Any, Any] | None:
        """What the model is given of a dict, as it takes it; None if that is not a dict, nor such keyword arguments."""
        if self.is_dict:
            return inputs
        # a name of a file, or a text that was tokenized, is not for the model
        named = {key: value for key, value in inputs.items() if key in self._names or _holds_numbers(value)}
        return named if self.has_names_of(named) else None

    def has_names_of(self, inputs: Mapping[Any, Any]) -> bool:
        """Whether these are keyword arguments of it."""
        if self.is_dict or not all(isinstance(key, str) for key in inputs):
            return False
        if self._names and self._names.isdisjoint(inputs):
            return False  # they would vanish among others, **kwargs
        try:
            self._signature.bind(**inputs)
        except TypeError:
            return False
        return True

    def named(self) -> str:
        """Its arguments, for a sentence."""
        return listed([each for each in self._signature.parameters if each != "self"]) or "nothing"


def _signature(model: nn.Module) -> inspect.Signature:
    """Of a model's forward; of a wrapper that passes on all it is given, such as peft's, that of what is inside."""
    found = inspect.signature(model.forward)
    children = list(model.children())
    if len(children) == 1 and {each.kind for each in found.parameters.values()} == _OF_ALL:
        return _signature(children[0])
    return found


def _annotation_of_the_one(parameters: list[inspect.Parameter]) -> str | None:
    """Of the one parameter that must be given, "" where it has none; None where there is not one such."""
    required = [each for each in parameters if each.default is each.empty]
    if len(required) != 1 or required[0].kind is inspect.Parameter.KEYWORD_ONLY:
        return None
    found = required[0].annotation
    if isinstance(found, str):
        return found
    return "" if found is required[0].empty else getattr(found, "__name__", "") or str(found)


def _holds_numbers(value: Any) -> bool:
    return any(True for _ in _numbers(value))


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, (Tensor, bool, int, float)):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(each)
