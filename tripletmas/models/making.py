"""Models by name, of our own and of torchvision, timm and files: made, given weights to start from, completed.

None normalises its output. The length of a normalised embedding is constant, so its derivative, and with it the
importance that MAS measures, is zero; the losses and the indexes normalise where they compare. Weights are drawn from
torch's global generator: seed it before you make a model that must be repeatable.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tripletmas.basics.options import Option, options_of
from tripletmas.basics.sentences import listed, nearest, suggestion
from tripletmas.models import from_timm, from_torchvision, text
from tripletmas.models.exported import prepared_beside
from tripletmas.models.lora import adapt
from tripletmas.models.networks import conv4, embedding_dim, mlp
from tripletmas.models.start_weights import load_start_weights

MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "conv4": conv4}
LIBRARIES: dict[str, Callable[..., nn.Module]] = {  # what a name begins with -> what makes such a model
    from_timm.PREFIX: from_timm.backbone,
    text.PREFIX: text.sentence_encoder,
}
PREPARED = ("size", "interpolation", "crop")  # what data are read by, of what a model's weights were made for
NORMALISED = ("mean", "deviation")


def make_model(name: str, sample_shape: tuple[int, ...], *, options: Mapping[str, Any] | None = None) -> nn.Module:
    """The model `name` for samples of this shape; `options` are those of `model_options`.

    Raises:
        ValueError: an unknown name or option, a sample shape that the model cannot take, weights that are another's.
    """
    given, known = dict(options or {}), model_options(name)
    if unknown := [option for option in given if option not in known]:
        raise ValueError(f"model '{name}' has no option '{unknown[0]}'{suggestion(unknown[0], known)}")
    constructor = constructor_for(name)
    own = options_of(constructor, leave_out=("name",))
    network = _made(name, constructor, sample_shape, {key: value for key, value in given.items() if key in own})
    if not isinstance(network, nn.Module):
        raise ValueError(f"model {name!r} gave {type(network).__name__}, not a torch.nn.Module")
    values = {option: given.get(option) for option in known.keys() - own.keys()}
    return completed(network, sample_shape, **_normalised(values, made_for(name, given)))


def _normalised(values: dict[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the mean and deviation that a model's weights expect, where neither is given."""
    if values.get("mean") is not None or values.get("deviation") is not None:
        return values
    return values | {key: value for key, value in expected.items() if key in values}


def _made(
    name: str, constructor: Callable[..., nn.Module], sample_shape: tuple[int, ...], given: Mapping[str, Any]
) -> nn.Module:
    """What a constructor makes; what goes wrong in that of somebody's own is one error that names it."""
    if is_built_in(name):
        return constructor(sample_shape, **given)
    try:
        return constructor(sample_shape, **given)
    except (Exception, SystemExit) as error:
        what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        samples = f"samples {tuple(sample_shape)}" if sample_shape else "texts, whose sample_shape is ()"
        raise ValueError(f"model {name!r} cannot be made for {samples}: {what}{error}") from error


def completed(
    network: nn.Module,
    sample_shape: tuple[int, ...],
    *,
    dim: int | None = None,
    weights: str | None = None,
    weights_sha256: str | None = None,
    mean: list[float] | None = None,
    deviation: list[float] | None = None,
    lora: int | None = None,
) -> nn.Module:
    """A network with the weights to start from, what it expects of its input in front, and a last layer behind.

    Args:
        dim: length of the embedding: a linear layer of so many outputs on what the network gives; null for that as it
            is.
        weights: a file of weights to start from, safetensors or torch's own. What wrappers put before names is taken
            off; a classifier of another size is left out.
        weights_sha256: what that file must have; the run records it, and refuses another file.
        mean: subtracted from each channel of an image, whose values lie in [0, 1]; null for what the weights were made
            for, or nothing where that is not known.
        deviation: by which each channel is divided after that.
        lora: rank of the changes by which each task trains the linear and convolution layers before the last, in place
            of their weights; biases, normalisations and embeddings are then frozen. null trains all weights.
    """
    if (mean is None) != (deviation is None):
        raise ValueError("mean and deviation are given together: one number a channel, or one for all")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if mean is not None and deviation is not None:
        layers["normalize"] = Normalize(tuple(mean), tuple(deviation), sample_shape[0])
    layers["backbone"] = network
    if dim is not None:
        if dim < 1:
            raise ValueError(f"dim must be >= 1, or null for what the network gives, got {dim}")
        layers["embedding"] = nn.Linear(embedding_dim(network, sample_shape), dim)
    whole = nn.Sequential(layers) if len(layers) > 1 else network
    if weights is not None:
        load_start_weights(whole, weights, sha256=weights_sha256)
    return whole if lora is None else adapt(whole, lora)


def model_options(name: str) -> dict[str, Option]:
    """The options of the model `name`: its constructor's own, and what can be done with any network.

    Raises:
        ValueError: for an unknown name.
    """
    own = options_of(constructor_for(name), leave_out=("name",))
    others = options_of(completed, leave_out=NORMALISED if name.startswith(text.PREFIX) else ())
    return own | {key: option for key, option in others.items() if key not in own}


def defaults_for(name: str) -> Mapping[str, Any]:
    """option -> its default, where it is another one for this model: one that is pretrained learns slowly."""
    return text.DEFAULTS if name.startswith(text.PREFIX) else {}


def without_start(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which the same network is made where its weights come from elsewhere: no file is read."""
    nothing: dict[str, Any] = {"weights": None, "weights_sha256": None}
    if is_built_in(name):
        nothing["pretrained"] = False
    return {option: nothing.get(option, value) for option, value in given.items()}


def made_for(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights that a model starts from expect: PREPARED and NORMALISED, as far as it is known.

    Of a model that was exported it is what it was exported with; of timm the data configuration of the name; of
    torchvision that of its default weights, if the model starts from these or from a file. A model of one's own says it
    by an attribute `preparation`, a mapping.

    Args:
        given: the options of the model.
    """
    if beside := prepared_beside(given.get("weights")):
        return beside
    if name.startswith(from_timm.PREFIX):
        return from_timm.made_for(name)
    if name not in MODELS and from_torchvision.has(name):
        return from_torchvision.made_for(name) if given.get("pretrained") or given.get("weights") else {}
    said = getattr(MODELS.get(name), "preparation", {})
    unknown = sorted(set(said) - {*PREPARED, *NORMALISED})
    if unknown:
        raise ValueError(f"model {name!r}: preparation has no {unknown[0]!r}, only {', '.join(PREPARED + NORMALISED)}")
    return dict(said)


def model_names() -> tuple[str, ...]:
    """The names that need no file and no further package: our own first, then torchvision's classification models."""
    return (*MODELS, *from_torchvision.names())


def is_built_in(name: str) -> bool:
    """Whether a name is that of a model of our own, of torchvision or of one of LIBRARIES."""
    return name in _OURS or name.startswith(tuple(LIBRARIES)) or from_torchvision.has(name)


def constructor_for(name: str) -> Callable[..., nn.Module]:
    """The function that makes model `name`; its keyword-only parameters are the model's options.

    Where it makes many, `name` is filled in.
    """
    if name in MODELS:
        return MODELS[name]
    for prefix, constructor in LIBRARIES.items():
        if name.startswith(prefix):
            return partial(constructor, name=name)
    if not from_torchvision.has(name):
        raise unknown_model(name)
    return partial(from_torchvision.backbone, name=name)


def unknown_model(name: str, others: Iterable[str] = ()) -> ValueError:
    """What to say of a name that no model has.

    Args:
        others: names of models that installed packages bring.
    """
    if name.endswith(".py"):
        return ValueError(f"model {name!r} is a file: name the function in it that makes the model, as {name}:make")
    near = nearest(name, (*model_names(), *others))
    meant = f" (did you mean {near!r}?)" if near else ""
    kinds = [*_OURS, *others, "the names of torchvision's classification models, such as resnet18"]
    kinds += [f"{prefix}NAME" for prefix in LIBRARIES] + ["path/to/file.py:FUNCTION", "a folder of export --pretrained"]
    return ValueError(f"unknown model {name!r}{meant}; there are {listed(kinds, len(kinds))}")


class Normalize(nn.Module):
    """(x - mean) / deviation per channel; for other than three channels with the mean of the three constants.

    The constants are fixed by the pretrained weights, so they are no part of the state dict.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...], channels: int):
        super().__init__()
        for buffer, values in (("mean", mean), ("deviation", deviation)):
            if len(values) not in (1, 3, channels):
                raise ValueError(f"{buffer} has {len(values)} numbers for images of {channels} channels")
            constants = torch.tensor(values)
            if channels != len(values):
                constants = constants.mean().expand(channels).clone()
            self.register_buffer(buffer, constants.view(channels, 1, 1), persistent=False)
        if not (self.deviation > 0).all():
            raise ValueError(f"deviation must be > 0, got {list(deviation)}")

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.deviation


_OURS = tuple(MODELS)
