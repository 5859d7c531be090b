"""Weights in a file of another program: tensors by name, of safetensors or of `torch.save`; nothing else is read."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tripletmas.basics.weights import Params

_INSIDE = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params")


def read_foreign_weights(path: str | Path, sha256: str | None = None) -> Params:
    """The tensors of a file, on the CPU, under the names that they have there.

    Of a torch file, such as a checkpoint that holds more, it is the mapping of tensors in it: itself, or what it has
    under `state_dict`, `model` and the like. It is read with `weights_only`: no code in it is executed.

    Args:
        sha256: what the file must have, as hex; None for any.

    Raises:
        ValueError: if there is no such file, if it is another one, holds more than tensors and plain values, or none.
    """
    _check_file(path)
    if sha256 is not None and (found := file_sha256(path)) != sha256:
        raise ValueError(f"{path} is not the file it was: its SHA-256 is {found}, not {sha256}")
    content = _safetensors(path) if _is_safetensors(path) else _torch(path)
    tensors = _tensors_in(content)
    if not tensors:
        raise ValueError(f"{path} holds no weights: tensors by name, as state_dict() gives them, are wanted")
    return tensors


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as hex.

    Raises:
        ValueError: if it cannot be read.
    """
    _check_file(path)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _check_file(path: str | Path) -> None:
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file of weights" if Path(path).exists() else f"no such file: {path}")


def _is_safetensors(path: str | Path) -> bool:
    """By what it holds, as far as that can be told, else by its name: of either kind there are files under any name."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):  # the archive that torch writes
        return False
    return start[8:] == b"{" or Path(path).suffix == ".safetensors"


def _safetensors(path: str | Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def _torch(path: str | Path) -> Any:
    try:
        with open(path, "rb") as file:  # by a name that ends in .safetensors torch would take it for such a file
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than tensors and plain values, and is not read, since that would execute code: save "
            "model.state_dict() alone, best with safetensors"
        ) from None
    except (LookupError, EOFError):
        raise ValueError(f"{path} cannot be read as a torch file: it is none, or is damaged") from None
    except Exception as error:  # torch reports a broken file with many types
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a torch file, and may be damaged: {reason}") from None


def _tensors_in(content: Any) -> Params:
    """The tensors of a mapping, or of what it holds under a usual name."""
    if not isinstance(content, Mapping):
        return {}
    for name in _INSIDE:
        if isinstance(content.get(name), Mapping) and (inside := _tensors_in(content[name])):
            return inside
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
