"""Coverage: what a penalty holds of a model, and what it leaves free."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tripletmas.basics.distributed import whole
from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params, named_buffers, named_parameters


class LayerWeights(NamedTuple):
    """How many weights of a layer have importance 0, and how many it has; weights without importance count as 0."""

    zero: int
    weights: int


@dataclass(frozen=True)
class Coverage:
    """What a penalty holds and what it leaves free. It holds the weights whose importance is not 0.

    Attributes:
        buffers: names of what is no parameter, such as batch norm's running statistics.
        frozen: names of the parameters that are not trained.
        new: names of the trainable parameters that have no importance: replaced or added since it was measured.
        loss_parameters: names of what the metric loss trains beside the model (proxies); a training loop knows them.
        layers: the trainable weights by layer, in network order; empty where they were not counted. A layer is a
            module: the parameters `conv1.weight` and `conv1.bias` make the layer `conv1`.
        alone: names of the parameters that no layer explains, each held by its own length (`Gram`).
    """

    buffers: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    loss_parameters: tuple[str, ...] = ()
    layers: Mapping[str, LayerWeights] = field(default_factory=dict)
    alone: tuple[str, ...] = ()

    @property
    def num_weights(self) -> int:
        """The trainable weights of the model: single numbers, not tensors."""
        return sum(layer.weights for layer in self.layers.values())

    @property
    def num_held(self) -> int:
        """Those of them that the penalty holds, however weakly."""
        return self.num_weights - sum(layer.zero for layer in self.layers.values())

    @property
    def share_held(self) -> float:
        """`num_held / num_weights`, from 0 to 1; nan where weights were not counted or the model has none."""
        return self.num_held / self.num_weights if self.num_weights else float("nan")

    def lines(self) -> list[str]:
        """The same in a few sentences; layers with the largest share of zeros come first, long lists are cut."""
        sentences = []
        if self.num_weights:
            share = _percent(self.num_held, self.num_weights)
            sentences.append(f"{self.num_held:,} of {self.num_weights:,} trainable weights are held ({share}).")
        if self.num_held < self.num_weights:
            free = {name: layer for name, layer in self.layers.items() if layer.zero}
            worst = sorted(free.items(), key=lambda item: -item[1].zero / item[1].weights)
            shares = listed(f"{name} {_percent(*layer)}" for name, layer in worst)
            sentences.append(f"Free because their importance is 0, as a share of their layer: {shares}.")
        for names, (one, many) in zip(self._names().values(), _KINDS.values(), strict=True):
            if names:
                sentences.append(f"Not held: {len(names)} {one if len(names) == 1 else many}: {listed(names)}.")
        if self.alone:
            sentences.append(f"Held by their own length, since no layer explains them: {listed(self.alone)}.")
        return sentences

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads: names by kind, and `layers` as {name: [zero, weights]}."""
        names = {kind: list(names) for kind, names in self._names().items()}
        layers = {name: list(layer) for name, layer in self.layers.items()}
        return {**names, "layers": layers, **({"held alone": list(self.alone)} if self.alone else {})}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Coverage:
        """The coverage that `to_json` gave; what a record of an earlier version lacks is empty."""
        names = (tuple(record.get(kind, ())) for kind in _KINDS)
        layers = {name: LayerWeights(*counts) for name, counts in record.get("layers", {}).items()}
        return cls(*names, layers=layers, alone=tuple(record.get("held alone", ())))

    def _names(self) -> dict[str, tuple[str, ...]]:
        return dict(zip(_KINDS, (self.buffers, self.frozen, self.new, self.loss_parameters), strict=True))


# The keys of the JSON, in the order of the fields -> what one and what several are called.
_KINDS = {
    "buffers": ("buffer", "buffers"),
    "frozen parameters": ("frozen parameter", "frozen parameters"),
    "replaced or new": ("replaced or new parameter", "replaced or new parameters"),
    "loss parameters": ("parameter of the loss", "parameters of the loss"),
}


def measure_coverage(model: nn.Module, importance: Params) -> Coverage:
    """What a penalty with this importance, by canonical name, holds of the model; {} holds nothing.

    Parameters of which there is no importance are listed as new only where others have some.
    """
    current = named_parameters(model)
    trained = {name: parameter for name, parameter in current.items() if parameter.requires_grad}
    layers: dict[str, LayerWeights] = {}
    for name, parameter in trained.items():
        layer = name.rpartition(".")[0] or name
        zero, weights = layers.get(layer, LayerWeights(0, 0))
        more = int(whole((importance[name] == 0).sum())) if name in importance else parameter.numel()
        layers[layer] = LayerWeights(zero + more, weights + parameter.numel())
    return Coverage(
        buffers=tuple(sorted(named_buffers(model))),
        frozen=tuple(sorted(current.keys() - trained.keys())),
        new=tuple(sorted(trained.keys() - importance.keys())) if importance else (),
        layers=layers,
    )


def _percent(part: int, whole: int) -> str:
    """A share that is neither none nor all is not rounded to 0 or 100."""
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1 %"
    return ">99.9 %" if 99.9 < percent < 100 else f"{percent:.1f} %".replace(".0 %", " %")


def warn_of_moving_statistics(model: nn.Module) -> None:
    """Warn of batch norm whose running statistics follow the data: they are no weights, so no penalty holds them."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
            warnings.warn(
                f"the running statistics of batch norm ({name}) follow the new data and change what the model answers, "
                "and only weights are held: after model.train(), call eval() of its batch-norm layers",
                stacklevel=2,
            )
            return
