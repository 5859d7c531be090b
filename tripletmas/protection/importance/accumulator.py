"""Importance as a running mean, for data that arrive batch by batch; and means of several estimates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tripletmas.basics.distributed import gather_objects
from tripletmas.basics.weights import Params, differing_names, read_off
from tripletmas.protection.batches import Forward
from tripletmas.protection.engine.per_sample import PerSampleGradients

# A length that does not depend on the weights: equal for all samples, and with gradients that are rounding noise.
_EQUAL_LENGTHS = 1e-4
_ROUNDING_NOISE = 1e-2


@dataclass
class _Lengths:
    """The squared lengths of the outputs of all samples: their sum, the least and the largest."""

    total: float = 0.0
    least: float = float("inf")
    largest: float = float("-inf")

    def note(self, scalars: Tensor) -> None:
        """Those of more samples, each the sum of its numbers, (n, m)."""
        lengths = scalars.double().sum(1)
        total, least, largest = read_off([lengths.sum(), lengths.min(), lengths.max()])
        self.total += total
        self.least, self.largest = min(self.least, least), max(self.largest, largest)

    def of_all(self) -> _Lengths:
        """Those of the samples of all processes."""
        found = gather_objects((self.total, self.least, self.largest))
        totals, leasts, largests = zip(*found, strict=True)
        return _Lengths(sum(totals), min(leasts), max(largests))


class ImportanceAccumulator:
    """The importance of a model's weights on all samples so far, as `mas_importance` defines it.

    For data that come one sample or one batch at a time, such as those of the place where the model is used. All
    batches must be measured with the same weights: for a model that has learned since, start a new one, and merge.
    Several processes have one each and give it their own samples; `importance` is over those of all of them.

    Args:
        relative, layer, forward, output, approximate: as in `mas_importance`.

    >>> import torch
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 3.0)          # d (w x)^2 / d w = 2 w x^2 = 6 x^2
    >>> running = ImportanceAccumulator(layer)
    >>> for x in (1.0, 2.0):
    ...     running.update(torch.tensor([[x]]))
    >>> running.importance()["weight"].item(), running.num_samples
    (15.0, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        relative: bool = False,
        layer: str | None = None,
        forward: Forward | None = None,
        output: Literal["squared_length", "vector"] = "squared_length",
        approximate: Literal["batch"] | None = None,
    ):
        if output not in ("squared_length", "vector"):
            raise ValueError(f"output must be 'squared_length' or 'vector', got {output!r}")
        if approximate not in (None, "batch"):
            raise ValueError(f"approximate must be None (exact) or 'batch', got {approximate!r}")
        self._relative, self._layer, self._output = relative, layer, output
        lengths = self._lengths = _Lengths()
        if output == "squared_length":
            scalar, seen = _squared_lengths, lengths.note
        else:
            scalar, seen = _each_output, lambda outputs: lengths.note(outputs.double().square())
        self._engine = PerSampleGradients(
            model, scalar, layer=layer, forward=forward, seen=seen, approximate=approximate
        )
        self._versions = self._weight_versions()

    @property
    def num_samples(self) -> int:
        """How many samples this process has added."""
        return self._engine.num_samples

    def update(self, batch: Any) -> None:
        """Add the samples of one batch: a tensor, an (inputs, labels, ...) tuple or a dict.

        Raises:
            ValueError: if the weights are no longer those of the first batch; for outputs as `mas_importance` says.
        """
        self.update_all([batch])

    def update_all(self, batches: Iterable[Any]) -> None:
        """Add the samples of several batches; faster than `update` for each where batches are small."""
        if self._weight_versions() != self._versions:
            raise ValueError("the weights have changed since the first batch: start a new ImportanceAccumulator")
        self._engine.update(batches)

    def importance(self) -> Params:
        """The mean over all samples so far, by canonical parameter name. Of several processes all must ask.

        Raises:
            ValueError: without any sample; if nothing is important, with the cause.
        """
        sums, num_samples, _ = self._engine.finished()
        lengths = self._lengths.of_all()
        mean = lengths.total / num_samples
        if not any(bool(total.sum() > 0) for total in sums.values()) or self._is_rounding(sums, lengths, num_samples):
            raise ValueError(self._constant_length(mean))
        scale = 1 / num_samples
        if self._relative:
            if mean == 0:
                raise ValueError("every embedding is zero, so no importance can be relative to its length")
            # the gradient of an output has the unit of the length, that of the squared length the unit of its square
            scale /= mean if self._output == "squared_length" else mean**0.5
        return {name: total * scale for name, total in sums.items()}

    def _weight_versions(self) -> list[tuple[int, int]]:
        return [(id(value), value._version) for value in self._engine.parameters.values()]

    def _constant_length(self, mean: float) -> str:
        measured = f"the output of layer {self._layer!r}" if self._layer else "the model's output"
        return (
            f"the importance is zero everywhere: the length of {measured} ({mean**0.5:.4g}) does not depend on any "
            "weight. If it ends in a normalisation, leave that out, since losses and indexes normalise by themselves, "
            "or measure before it: layer='NAME' of the last layer before it (see model.named_modules()). If the output "
            "is zero, the model has collapsed."
        )

    def _is_rounding(self, sums: Params, lengths: _Lengths, num_samples: int) -> bool:
        """Whether all lengths are equal, and gradients so small that the output must be normalised."""
        mean = lengths.total / num_samples
        if self._output != "squared_length" or lengths.largest - lengths.least > _EQUAL_LENGTHS * mean:
            return False
        # theta . d||F||^2/d theta is of the order of ||F||^2 itself unless F is normalised: then it is rounding.
        # Weights of 0 (an adapter that has learned nothing) count as if they had the size of the others.
        weights = {name: value.detach() for name, value in self._engine.parameters.items()}
        squares = sum(float(value.square().sum()) for value in weights.values())
        usual = (squares / sum(value.numel() for value in weights.values())) ** 0.5
        reactions = [float((total * weights[name].abs().clamp(min=usual)).sum()) for name, total in sums.items()]
        return sum(reactions) <= _ROUNDING_NOISE * lengths.total


def merge_importance(estimates: Sequence[Params], weights: Sequence[float]) -> Params:
    """The weighted mean of several estimates, sum_i weight_i Omega_i / sum_i weight_i.

    With their numbers of samples as weights, the importance on all their samples together (in the unit of the paper;
    relative estimates are each relative to their own data).

    Raises:
        ValueError: without any; if their parameters differ; for a negative weight, or if all are 0.

    >>> import torch
    >>> merge_importance([{"w": torch.tensor(1.0)}, {"w": torch.tensor(4.0)}], weights=[1, 2])
    {'w': tensor(3.)}
    """
    if not estimates or len(estimates) != len(weights):
        raise ValueError(f"one weight for each estimate, and at least one: got {len(estimates)} and {len(weights)}")
    if min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"weights must be >= 0 and not all 0, got {list(weights)}")
    for number, estimate in enumerate(estimates):
        wrong = differing_names(estimates[0], estimate)
        if wrong:
            raise ValueError(f"estimate {number} is of another model than the first: {wrong}")
    shares = [weight / float(sum(weights)) for weight in weights]
    return {
        name: sum(
            (estimate[name] * share for estimate, share in zip(estimates, shares, strict=True)),
            start=torch.zeros_like(first),
        )
        for name, first in estimates[0].items()
    }


def _squared_lengths(outputs: Tensor) -> Tensor:
    return outputs.reshape(len(outputs), -1).square().sum(1, keepdim=True)


def _each_output(outputs: Tensor) -> Tensor:
    return outputs.reshape(len(outputs), -1)
