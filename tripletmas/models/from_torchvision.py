"""torchvision's classification models as networks that give raw embeddings (batch, dim).

It is imported where one of them is meant: that takes as long as torch itself, and no other model needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from tripletmas.models.networks import check_output, image_shape

_MOMENTUM = 0.1  # of PyTorch's batch norm
INCEPTIONS = ("googlenet", "inception_v3")  # auxiliary heads, and an input normalisation of their own


@cache
def names() -> tuple[str, ...]:
    """The names that torchvision has for classification models."""
    from torchvision import models

    return tuple(models.list_models(module=models))


def has(name: str) -> bool:
    """Whether torchvision has a classification model of this name; of what can be none it is not asked."""
    return name.isidentifier() and name in names()


def builder(name: str) -> Callable[..., nn.Module]:
    """What torchvision itself makes a model by."""
    from torchvision import models

    return models.get_model_builder(name)


def backbone(sample_shape: tuple[int, ...], *, name: str, dim: int = 128, pretrained: bool = False) -> nn.Module:
    """A torchvision classification model whose last layer is replaced by one to `dim`, or taken away.

    Auxiliary heads are left out.

    Args:
        sample_shape: (channels, height, width) of an image; any number of channels.
        name: a name of torchvision.models.
        dim: length of the embedding. 0 for no new last layer: the embedding is what the model's own classifier would
            see (alexnet: 4096 values after the last ReLU, resnet18: the 512 means of its last maps).
        pretrained: start from torchvision's default ImageNet weights, downloaded on first use.
    """
    channels, height, breadth = image_shape(name, sample_shape)
    network = _build(name, height, breadth, pretrained)
    if dim < 0:
        raise ValueError(f"dim must be >= 1, or 0 for no new last layer, got {dim}")
    if not pretrained:
        _quicken_statistics(network)
    _replace_head(network, dim)
    _adapt_first_convolution(network, channels, keep_filters=pretrained)
    check_output(network, name, sample_shape, dim)
    return network


def made_for(name: str) -> dict[str, Any]:
    """How images are prepared for torchvision's default weights of a model; nothing is downloaded."""
    from torchvision import models

    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    normalised = {"mean": [0.5] * 3, "deviation": [0.5] * 3}
    if name not in INCEPTIONS:
        normalised = {"mean": list(preset.mean), "deviation": list(preset.std)}
    size, resized = preset.crop_size[0], preset.resize_size[0]
    return {"size": size, "crop": size / resized, "interpolation": preset.interpolation.value, **normalised}


def _build(name: str, height: int, breadth: int, pretrained: bool) -> nn.Module:
    from torchvision import models

    options = {}
    if name in INCEPTIONS and not pretrained:
        # Without init_weights torchvision warns of a future change; False is PyTorch's own initialisation.
        options = {"aux_logits": False, "init_weights": False}
    if name.startswith("vit_"):
        options = {"image_size": _vit_image_size(name, height, breadth, pretrained)}
    try:
        network: Any = models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    except OSError as error:
        advice = "connect to the internet once, or set pretrained to false"
        raise ValueError(f"cannot download the pretrained weights of '{name}' ({error}): {advice}") from None
    if name in INCEPTIONS and pretrained:
        # The weights come with auxiliary heads, and map ImageNet's normalisation to (x - 0.5) / 0.5 for three channels
        # only: leave that to our own first layer. (torchvision accepts neither option together with weights.)
        network.aux_logits = network.transform_input = False
        network.AuxLogits = None
    return network


def _quicken_statistics(network: nn.Module) -> None:
    """Batch norm's running statistics at PyTorch's own momentum, where the network has a smaller one.

    That is made for hundreds of thousands of steps. At 0.01 (mobilenet_v3) a task of a hundred steps ends with a
    variance that is mostly the 1 that it began with, and in eval mode all embeddings are one.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum = max(module.momentum, _MOMENTUM)


def _replace_head(network: nn.Module, dim: int) -> None:
    """A new last layer of `dim` outputs; for 0 none, so that what it would see comes out."""
    layers = [(path, module) for path, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    path, head = layers[-1]
    if isinstance(head, nn.Linear):
        return _set_submodule(network, path, nn.Linear(head.in_features, dim) if dim else nn.Identity())
    # squeezenet ends in a 1x1 convolution, a ReLU and the mean over the map. Without the ReLU, which would keep
    # embeddings in the positive orthant, this is a linear layer on the mean.
    _set_submodule(network, path, nn.Conv2d(head.in_channels, dim, kernel_size=1) if dim else nn.Identity())
    parent, position = path.rsplit(".", 1)
    _set_submodule(network, f"{parent}.{int(position) + 1}", nn.Identity())


def _adapt_first_convolution(network: nn.Module, channels: int, *, keep_filters: bool) -> None:
    path, first = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if channels == first.in_channels:
        return
    adapted = nn.Conv2d(
        channels,
        first.out_channels,
        kernel_size=(first.kernel_size[0], first.kernel_size[1]),
        stride=(first.stride[0], first.stride[1]),
        padding=first.padding,  # pyright: ignore[reportArgumentType]  (a string or a pair)
        bias=first.bias is not None,
    )
    if keep_filters:
        # Every channel gets the mean of the RGB filters, times 3 / channels: channels that are all equal (a grey image)
        # then give the activations that the same image gives as RGB, so that the next layers see values of known size.
        with torch.no_grad():
            adapted.weight.copy_(first.weight.mean(dim=1, keepdim=True) * (first.in_channels / channels))
            if adapted.bias is not None and first.bias is not None:
                adapted.bias.copy_(first.bias)
    _set_submodule(network, path, adapted)


def _set_submodule(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _vit_image_size(name: str, height: int, breadth: int, pretrained: bool) -> int:
    patch = int(name.rsplit("_", 1)[1])
    if height != breadth or height % patch:
        raise ValueError(f"{name} takes square images whose side is a multiple of {patch}, got {height}x{breadth}")
    if pretrained:
        from torchvision import models

        expected = models.get_model_weights(name)["DEFAULT"].meta["min_size"][0]
        if height != expected:
            raise ValueError(f"the pretrained {name} takes images of {expected}x{expected}, got {height}x{breadth}")
    return height
