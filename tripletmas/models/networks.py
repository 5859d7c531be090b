"""Models: small networks, and torchvision's backbones, that map inputs to raw embeddings (batch, dim).

None normalises its output. The length of a normalised embedding is constant, so its derivative, and with it the
importance that MAS measures, is zero; the losses and the indexes normalise where they compare. Weights are drawn from
torch's global generator: seed it before you make a model that must be repeatable.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tripletmas.basics.sentences import suggestion
from tripletmas.basics.weights import device_of
from tripletmas.models import text

INCEPTIONS = ("googlenet", "inception_v3")  # auxiliary heads, and an input normalisation of their own


def make_model(name: str, sample_shape: tuple[int, ...], *, options: Mapping[str, object] | None = None) -> nn.Module:
    """The model `name` for samples of this shape; `options` are those of its constructor.

    Raises:
        ValueError: an unknown name or option, or a sample shape that the model cannot take.
    """
    constructor = constructor_for(name)
    known = [option for option in inspect.signature(constructor).parameters if option not in ("sample_shape", "name")]
    for option in options or {}:
        if option not in known:
            raise ValueError(f"model '{name}' has no option '{option}'{suggestion(option, known)}")
    return constructor(sample_shape, **dict(options or {}))


def model_names() -> tuple[str, ...]:
    """The names that `make_model` knows: our own first, then torchvision's classification models."""
    return (*MODELS, *torchvision.models.list_models(module=torchvision.models))


def is_prefixed(name: str) -> bool:
    """Whether a name begins with what says how such models are made, and ends in which of them it is."""
    return name.startswith(tuple(PREFIXED))


def defaults_for(name: str) -> Mapping[str, Any]:
    """option -> its default, where it is another one for this model: one that is pretrained learns slowly."""
    return text.DEFAULTS if name.startswith(text.PREFIX) else {}


def constructor_for(name: str) -> Callable[..., nn.Module]:
    """The function that makes model `name`; its keyword-only parameters are the model's options.

    For a torchvision name it is `backbone` with `name` filled in.
    """
    for prefix, constructor in PREFIXED.items():
        if name.startswith(prefix):
            return partial(constructor, name=name)
    if name in MODELS:
        return MODELS[name]
    if name not in model_names():
        raise ValueError(
            f"unknown model '{name}'{suggestion(name, model_names())}; there are {', '.join(MODELS)} and the names of "
            "torchvision's classification models, such as resnet18"
        )
    return partial(backbone, name=name)


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
    channels, height, breadth = _image_shape("conv4", sample_shape)
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


def backbone(sample_shape: tuple[int, ...], *, name: str, dim: int = 128, pretrained: bool = False) -> nn.Module:
    """A torchvision classification model whose last layer is replaced by one to `dim`, or taken away.

    Auxiliary heads are left out.

    Args:
        sample_shape: (channels, height, width) of an image with values in [0, 1]; any number of channels.
        name: a name of torchvision.models.
        dim: length of the embedding. 0 for no new last layer: the embedding is what the model's own classifier would
            see (alexnet: 4096 values after the last ReLU, resnet18: the 512 means of its last maps).
        pretrained: start from torchvision's default ImageNet weights, downloaded on first use. The model then begins
            with a fixed normalisation of its input to the mean and deviation that these weights expect.
    """
    channels, height, breadth = _image_shape(name, sample_shape)
    network = _build(name, height, breadth, pretrained)
    if dim < 0:
        raise ValueError(f"dim must be >= 1, or 0 for no new last layer, got {dim}")
    _replace_head(network, dim)
    _adapt_first_convolution(network, channels, keep_filters=pretrained)
    if pretrained:
        preset = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
        mean, deviation = ((0.5,) * 3, (0.5,) * 3) if name in INCEPTIONS else (preset.mean, preset.std)
        network = nn.Sequential(OrderedDict(normalize=Normalize(mean, deviation, channels), backbone=network))
    _check_output(network, name, sample_shape, dim)
    return network


def embedding_dim(model: nn.Module, sample_shape: tuple[int, ...]) -> int:
    """The length of a model's embedding: that of one sample of zeros, or of a text of a single token.

    The model is left as it was.

    Raises:
        ValueError: if the model does not return (batch, dim).
    """
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            sample = torch.zeros(1, *sample_shape) if sample_shape else torch.tensor([[[0], [1]]])  # one token
            shape = tuple(model(sample.to(device_of(model))).shape)
    finally:
        for module, flag in training:  # not model.train(): parts may be in eval mode on purpose
            module.training = flag
    if len(shape) != 2:
        raise ValueError(f"the model must return embeddings (batch, dim), but returned {shape} for one sample")
    return shape[1]


MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "conv4": conv4}
PREFIXED: dict[str, Callable[..., nn.Module]] = {text.PREFIX: text.sentence_encoder}


class Normalize(nn.Module):
    """(x - mean) / deviation per channel; for other than three channels with the mean of the three constants.

    The constants are fixed by the pretrained weights, so they are no part of the state dict.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...], channels: int):
        super().__init__()
        for buffer, values in (("mean", mean), ("deviation", deviation)):
            constants = torch.tensor(values)
            if channels != len(values):
                constants = constants.mean().expand(channels).clone()
            self.register_buffer(buffer, constants.view(channels, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.deviation


def _build(name: str, height: int, breadth: int, pretrained: bool) -> nn.Module:
    options = {}
    if name in INCEPTIONS and not pretrained:
        # Without init_weights torchvision warns of a future change; False is PyTorch's own initialisation.
        options = {"aux_logits": False, "init_weights": False}
    if name.startswith("vit_"):
        options = {"image_size": _vit_image_size(name, height, breadth, pretrained)}
    try:
        network: Any = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    except OSError as error:
        advice = "connect to the internet once, or set pretrained to false"
        raise ValueError(f"cannot download the pretrained weights of '{name}' ({error}): {advice}") from None
    if name in INCEPTIONS and pretrained:
        # The weights come with auxiliary heads, and map ImageNet's normalisation to (x - 0.5) / 0.5 for three channels
        # only: leave that to our own first layer. (torchvision accepts neither option together with weights.)
        network.aux_logits = network.transform_input = False
        network.AuxLogits = None
    return network


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
        expected = torchvision.models.get_model_weights(name)["DEFAULT"].meta["min_size"][0]
        if height != expected:
            raise ValueError(f"the pretrained {name} takes images of {expected}x{expected}, got {height}x{breadth}")
    return height


def _check_output(network: nn.Module, name: str, sample_shape: tuple[int, ...], dim: int) -> None:
    """One sample through the model: too small an image is told here, not in the first training step."""
    try:
        found = embedding_dim(network, sample_shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} cannot take images of shape {tuple(sample_shape)}: {reason}") from error
    assert found == dim or not dim, f"{name} returned embeddings of length {found}"


def _image_shape(name: str, sample_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(sample_shape) != 3:
        raise ValueError(f"{name} takes images (channels, height, width), got samples of shape {tuple(sample_shape)}")
    channels, height, breadth = sample_shape
    return channels, height, breadth


def _positive(option: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{option} must be >= 1, got {value}")
    return value
