"""The file of a saved protection: tensors in the safetensors format, settings as JSON in its header."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from tripletmas.basics.distributed import is_main, is_spread, together, whole
from tripletmas.basics.files import damaged, read_tensors, save_tensors
from tripletmas.basics.weights import Params
from tripletmas.protection.names import named_as_in

_HEADER = "protection"


def write_protection(path: str | Path, state: Params, settings: dict[str, Any]) -> None:
    """Write a file that is either whole or not there; `settings` must fit JSON.

    Of several processes rank 0 writes. Of weights that are spread over them (`fully_shard`) all must ask, and each
    waits until the file is there.
    """
    whole_state = {name: whole(value) for name, value in state.items()}
    with together(f"writing {path}") if any(map(is_spread, state.values())) else nullcontext():
        if is_main():
            save_tensors(path, whole_state, {_HEADER: settings})


@contextmanager
def read_protection(path: str | Path, model: nn.Module | None = None) -> Iterator[tuple[Params, dict[str, Any]]]:
    """State, by the names of this model if there is one, and settings, for a `with` block that makes a protection.

    Raises:
        ValueError: if the file is no saved protection or was cut short; naming it, for what is wrong in the block.
    """
    remedy = "restore it from a copy, or save the protection again"
    state, settings = read_tensors(path, remedy, header=_HEADER)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is no saved protection: Protection.save writes those")
    try:
        yield (named_as_in(model, state) if model is not None else state), settings
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", remedy) from None


def described(function: Callable[..., Any]) -> dict[str, Any]:
    """A function as JSON: its name, the options that JSON can hold (defaults included), and the names of the others."""
    bare, options = (function.func, function.keywords) if isinstance(function, partial) else (function, {})
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(bare).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in (defaults | options).items()}
    plain = {key: value for key, value in options.items() if _fits_json(value)}
    return {
        "function": getattr(bare, "__name__", type(bare).__name__),
        "options": plain,
        "unsaved": sorted(options.keys() - plain.keys()),
    }


def _fits_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_fits_json, value))
    return isinstance(value, (bool, int, float, str, type(None)))
