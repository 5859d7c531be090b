"""Small networks that map inputs to raw embeddings (batch, dim); what can be asked of any."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn

from tripletmas.basics.sentences import with_article
from tripletmas.basics.weights import device_of, eval_mode


def mlp(sample_shape: tuple[int, ...], *, dim: int = 32, hidden: tuple[int, ...] = (256, 256)) -> nn.Module:
    """A multilayer perceptron on the flattened sample, ReLU between its layers.

    Args:
        sample_shape: the shape of one sample; any.
        dim: length of the embedding.
        hidden: width of each hidden layer; () gives a linear map.
    """
    widths = [torch.Size(sample_shape).numel(), *(_positive("hidden", width) for width in hidden)]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        layers[f"hidden{number}"] = nn.Linear(fan_in, fan_out)
        layers[f"relu{number}"] = nn.ReLU()
    layers["embedding"] = nn.Linear(widths[-1], _positive("dim", dim))
    return nn.Sequential(layers)


def conv4(sample_shape: tuple[int, ...], *, dim: int = 64, width: int = 64) -> nn.Module:
    """Four blocks of 3x3 convolution, batch norm, ReLU and 2x2 pooling, then a linear layer; images of 16 and more.

    Args:
        sample_shape: (channels, height, width) of an image.
        dim: length of the embedding.
        width: channels of each convolution.
    Source: the embedding network of Vinyals et al., Matching Networks, NeurIPS 2016, 4.1.1, there without the linear
        layer; at 28x28 the last map is 1x1.
    """
    channels, height, breadth = image_shape("conv4", sample_shape)
    if min(height, breadth) < 16:
        raise ValueError(f"conv4 needs images of 16x16 or more, got {height}x{breadth}: use mlp for small ones")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, 5):
        layers[f"block{number}"] = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(channels, _positive("width", width), kernel_size=3, padding=1),
                norm=nn.BatchNorm2d(width),
                relu=nn.ReLU(),
                pool=nn.MaxPool2d(2),
            )
        )
        channels = width
    layers["flatten"] = nn.Flatten()
    layers["embedding"] = nn.Linear(width * (height // 16) * (breadth // 16), _positive("dim", dim))
    # on CPUs a training step at 28x28 is about 1.4 times as fast in this layout of the same weights
    return nn.Sequential(layers).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def embedding_dim(model: nn.Module, sample_shape: tuple[int, ...]) -> int:
    """The length of a model's embedding: those of two samples of zeros, or of two texts of a single token, show it.

    The model is left as it was.

    Raises:
        ValueError: if the model does not return (batch, dim).
    """
    with eval_mode(model), torch.no_grad():
        samples = torch.zeros(2, *sample_shape) if sample_shape else torch.tensor([[[0], [1]]] * 2)
        found = model(samples.to(device_of(model)))
    if not isinstance(found, torch.Tensor):
        raise ValueError(
            f"the model must return embeddings (batch, dim) alone, but returned {with_article(type(found).__name__)}"
        )
    if found.ndim != 2 or len(found) != 2 or not found.is_floating_point():
        kind = "" if found.is_floating_point() else f" of {found.dtype}"
        raise ValueError(
            f"the model must return embeddings (batch, dim), but returned {tuple(found.shape)}{kind} for two samples"
        )
    if not found.shape[1]:
        raise ValueError("the model returns embeddings of length 0: its last layer has no outputs")
    return found.shape[1]


def check_output(network: nn.Module, name: str, sample_shape: tuple[int, ...], dim: int | None) -> None:
    """One sample through a network: too small an image is told here, not in the first training step.

    Args:
        dim: what its embeddings must have; None or 0 for anything.
    """
    try:
        found = embedding_dim(network, sample_shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} cannot take images of shape {tuple(sample_shape)}: {reason}") from error
    assert not dim or found == dim, f"{name} returned embeddings of length {found}"


def image_shape(name: str, sample_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(sample_shape) != 3:
        raise ValueError(f"{name} takes images (channels, height, width), got samples of shape {tuple(sample_shape)}")
    channels, height, breadth = sample_shape
    return channels, height, breadth


def _positive(option: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{option} must be >= 1, got {value}")
    return value
