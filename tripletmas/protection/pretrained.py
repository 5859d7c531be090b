"""A protection in a model's folder, beside the weights that the model's own `save_pretrained` writes there."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params, named_parameters

FILE = "protection.safetensors"


def file_to_write(folder: str | Path) -> Path:
    """Where a protection goes in a model's folder, which need not be there yet.

    Raises:
        ValueError: if it is a file.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name the model's folder, in which {FILE} is written")
    return folder / FILE


def file_to_read(folder: str | Path) -> Path:
    """The protection in a model's folder.

    Raises:
        ValueError: where there is no such folder, or no protection in it.
    """
    path = Path(folder).expanduser() / FILE
    if path.is_file():
        return path
    if path.parent.is_dir():
        raise ValueError(f"{folder} holds no protection ({FILE}): save_pretrained of a protection writes it there")
    raise ValueError(
        f"no such folder: {folder}; a protection is read from a model's folder on this machine (of a name on the "
        f"Hugging Face hub, huggingface_hub.snapshot_download(NAME) gives the folder)"
    )


def warn_of_other_weights(path: Path, reference: Params, model: nn.Module) -> None:
    """Warn if the weights of the model are not those that it is held at, with their share."""
    current = named_parameters(model)
    changes = {name: current[name].detach() - value.to(current[name].device) for name, value in reference.items()}
    others = {name: int(torch.count_nonzero(change)) for name, change in changes.items()}
    if not any(others.values()):
        return
    share = sum(others.values()) / sum(value.numel() for value in reference.values())
    most = sorted((name for name, count in others.items() if count), key=lambda name: -others[name])
    warnings.warn(
        f"{path}: {share:.2%} of the weights that it holds are not those that the model has, by "
        f"{_length(changes) / max(_length(reference), 1e-300):.2g} of their length ({listed(most, 3)}): the model has "
        "learned since, or other weights were loaded; they are pulled to those that were saved",
        stacklevel=3,
    )


def _length(values: Params) -> float:
    return sum(float(value.double().square().sum()) for value in values.values()) ** 0.5
