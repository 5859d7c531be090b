"""The keywords of a function as options: type, default and help are read from its signature and its docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import docstring_parser

REQUIRED = inspect.Parameter.empty  # the default of an option that has to be given


@dataclass(frozen=True)
class Option:
    """One option of a part: what the command line needs to know of it."""

    type: Any
    default: Any
    help: str


def options_of(constructor: Callable[..., Any], *, leave_out: Iterable[str] = ()) -> dict[str, Option]:
    """The keyword-only parameters of a function, or the fields of a dataclass, as options."""
    function = getattr(constructor, "func", constructor)  # a partial has the hints and the text of its function
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    text = docstring_parser.parse(inspect.getdoc(function) or "")
    helps = {entry.arg_name: " ".join((entry.description or "").split()) for entry in text.params}
    keywords = [
        parameter
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY or hasattr(function, "__dataclass_fields__")
    ]
    return {
        parameter.name: Option(hints.get(parameter.name, Any), parameter.default, helps.get(parameter.name, ""))
        for parameter in keywords
        if parameter.name not in leave_out
    }


def call(function: Callable[..., Any], given: Mapping[str, Any], *arguments: Any) -> Any:
    """The function with those of the options that are its own."""
    own = options_of(function)
    return function(*arguments, **{key: value for key, value in given.items() if key in own})
