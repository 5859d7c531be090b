"""timm's models as networks that give raw embeddings (batch, dim): `timm:NAME`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from tripletmas.basics.sentences import nearest
from tripletmas.data.preparation import INTERPOLATIONS, written
from tripletmas.models.networks import check_output, image_shape

PREFIX = "timm:"


def backbone(
    sample_shape: tuple[int, ...], *, name: str, dim: int | None = None, pretrained: bool = False
) -> nn.Module:
    """A model of timm without its classifier, or with a new one to `dim`.

    Args:
        sample_shape: (channels, height, width) of an image; any number of channels.
        name: `timm:` and the name that timm knows, with or without a tag of weights: timm:resnet18,
            timm:vit_small_patch16_224.augreg_in21k.
        dim: length of the embedding: a new last layer of so many outputs. null: the features that the model's own
            classifier would see.
        pretrained: start from timm's weights of this name, downloaded on first use.

    Raises:
        ValueError: if timm is not installed or has no such model; if the weights cannot be downloaded; if the model
            takes no such images.
    """
    timm, known = _timm(name)
    channels, *size = image_shape(name, sample_shape)
    if dim is not None and dim < 1:
        raise ValueError(f"dim must be >= 1, or null for the features as they are, got {dim}")
    options: dict[str, Any] = {"in_chans": channels, "num_classes": dim or 0}
    if timm.get_pretrained_cfg(known).fixed_input_size:
        options["img_size"] = tuple(size)
    try:
        network = timm.create_model(known, pretrained=pretrained, **options)
    except Exception as error:  # what the hub raises without a network has many types
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if pretrained:
            advice = "connect to the internet once, or name a file of weights by --model.weights"
            raise ValueError(f"timm's weights of {known!r} cannot be had ({reason}): {advice}") from None
        raise ValueError(f"{name} cannot take images of shape {tuple(sample_shape)}: {reason}") from None
    check_output(network, name, sample_shape, dim)
    _refuse_cut_patches(network, name, size)
    return network


def made_for(name: str) -> dict[str, Any]:
    """How images are prepared for timm's weights of this name, by its data configuration; nothing is downloaded.

    Raises:
        ValueError: if timm is not installed, or has no such model.
    """
    timm, known = _timm(name)
    from timm.data.config import resolve_data_config

    found = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(known).to_dict())
    interpolation = found["interpolation"]
    return {
        "size": written(found["input_size"][1:]),
        "interpolation": interpolation if interpolation in INTERPOLATIONS else "bicubic",
        "crop": float(found["crop_pct"]),
        "mean": list(found["mean"]),
        "deviation": list(found["std"]),
    }


def _refuse_cut_patches(network: nn.Module, name: str, size: Sequence[int]) -> None:
    """Raises ValueError where an image is no whole number of patches: what is left of it would not be seen."""
    embed = getattr(network, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if not isinstance(patch, tuple) or getattr(embed, "dynamic_img_pad", False):
        return
    if any(side % part for side, part in zip(size, patch, strict=True)):
        given, asked = ("x".join(map(str, each)) for each in (size, patch))
        raise ValueError(f"{name} takes images of whole patches of {asked} pixels, got {given}")


def _timm(name: str) -> tuple[Any, str]:
    """timm, and the name of a model as timm knows it."""
    known = name.removeprefix(PREFIX)
    try:
        import timm
    except ImportError:
        raise ValueError(f'{name} needs timm: pip install "tripletmas[timm]"') from None
    logging.getLogger("timm").setLevel(logging.WARNING)
    if not timm.is_model(known):
        near = nearest(known, timm.list_models())
        advice = f"did you mean {PREFIX}{near}?" if near else "timm.list_models() in Python lists them"
        raise ValueError(f"timm has no model {known!r} ({advice})")
    return timm, known
