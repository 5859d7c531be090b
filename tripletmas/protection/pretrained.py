"""A protection in a model's folder, beside the weights that the model's own `save_pretrained` writes there; and whether
a model has the weights of one that was loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tripletmas.basics.distributed import whole
from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params, named_parameters

FILE = "protection.safetensors"

# Weights of one model are correlated with what they were by more than this, those of two by about 1 / sqrt(count).
_UNLIKE, _ENOUGH = 0.1, 1000


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
    """Warn if the weights of the model are not those that it is held at, with their share; and if none is trained."""
    current = named_parameters(model)
    if reference and not any(current[name].requires_grad for name in reference):
        warnings.warn(
            f"{path}: none of the weights that it holds is trained (requires_grad; an adapter that peft reads is "
            "frozen without is_trainable=True): nothing can be held of this model, and no share of it",
            stacklevel=3,
        )
    others, squares = {}, torch.zeros(2, dtype=torch.float64)
    for name, value in reference.items():
        then = whole(value).to(current[name].device)
        change = whole(current[name].detach()) - then
        others[name] = int(torch.count_nonzero(change))
        squares += torch.stack([each.double().square().sum().cpu() for each in (change, then)])
    if not any(others.values()):
        return
    share = sum(others.values()) / sum(value.numel() for value in reference.values())
    length = float((squares[0] / squares[1].clamp_min(1e-300)).sqrt())
    most = sorted((name for name, count in others.items() if count), key=lambda name: -others[name])
    warnings.warn(
        f"{path}: {share:.2%} of the weights that it holds are not those that the model has, by {length:.2g} of their "
        f"length ({listed(most, 3)}): the model has learned since, or other weights were loaded; they are pulled to "
        "those that were saved",
        stacklevel=3,
    )


def warn_of_unlike(kind: str, state: Mapping[str, Tensor], model: Mapping[str, nn.Parameter]) -> None:
    """Warn where weights are as unlike those that a state holds them at as another model's, and would be pulled there.

    Weights that have learned on remain like what they were. They are compared around their means, so that two
    initialisations are unlike; of vectors (norms' scales) and of few weights it cannot be told.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    count = 0
    for name, reference in state.items():
        now = model.get(name.removeprefix("reference/"))
        if now is not None and now.ndim > 1 and now.shape == reference.shape:
            then, own = (whole(each.detach()).double().cpu() for each in (reference, now))
            then, own = then - then.mean(), own - own.mean()
            sums += torch.stack([(then * own).sum(), then.square().sum(), own.square().sum()])
            count += own.numel()
    likeness = float(sums[0] / (sums[1] * sums[2]).sqrt().clamp_min(1e-300))
    if count >= _ENOUGH and likeness < _UNLIKE:
        warnings.warn(
            f"the weights that this {kind} was loaded with are unlike those of the model (correlation {likeness:.2g}, "
            "as of another model), and every step pulls them there: load the model's weights that it was saved with, "
            "or the protection that was saved with these",
            stacklevel=5,
        )
