"""Exact per-sample gradients: the sum over samples of |d scalar(x_k) / d theta|^p, for every trainable parameter.

The magnitude is taken per sample, before any sum: gradients of different samples must not cancel, and the result must
not depend on how samples are batched. It takes one forward and one backward pass a batch: `by_rules` watches the
forward pass, and in the backward pass turns the gradient of each layer's output into the per-sample gradients of its
weights, without holding those of all samples. Weights without a rule are as exact, and slower (`single`).

Sources: Aljundi et al., Memory Aware Synapses, ECCV 2018, equation 2. That a batch's backward pass holds what the
gradients of its samples need: Goodfellow, Efficient Per-Example Gradient Computations, arXiv 1510.01799, for linear
layers; Rochette et al., Efficient Per-Example Gradient Computations in Convolutional Neural Networks, arXiv 1912.06015.

Shapes: n samples in a batch; the model's output is (n, ...).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tripletmas.basics.distributed import gather_objects, sum_numbers, sum_over_ranks, together
from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params, read_off, unwrap
from tripletmas.protection.batches import (
    Forward,
    each_batch,
    measured_parameters,
    measuring,
    num_samples,
)
from tripletmas.protection.calling import ModelCall
from tripletmas.protection.engine.by_rules import ByRules, Scalar
from tripletmas.protection.engine.single import OneByOne, add_gradients
from tripletmas.protection.replicas import check_replicas

logger = logging.getLogger(__name__)


class Measured(NamedTuple):
    """Of the samples of all processes.

    Attributes:
        sums: sum_k |gradient_k|^power by parameter.
        num_samples: how many samples these are.
        lengths: for layers by themselves, the total squared length by the names of a layer's parameters.
    """

    sums: Params
    num_samples: int
    lengths: dict[frozenset[str], float]


class PerSampleGradients:
    """Adds up |d scalar(F(x_k)) / d theta|^power over samples that arrive batch by batch.

    The model is measured in eval mode, outside autocast and compilation, and left as it was: parameters, gradients,
    buffers, train / eval flags, hooks and random generators. Half-precision weights are measured in float32.

    Args:
        scalar: maps the outputs of all samples, (n, ...), to (n, m): m numbers a sample, whose gradients' magnitudes
            are added. A row must depend on its own sample only. None: every layer by itself, the squared length of its
            own output.
        power: 1 for the absolute value, 2 for the square.
        layer: name of the submodule whose output is measured in place of the model's.
        forward: how to call the model on a batch. Without it, as `ModelCall` does.
        left_out: modules or parameters, by name, that are not measured.
        seen: is given the scalars (n, m) of samples that were measured.
        approximate: "batch" takes the magnitude of the summed gradient of each batch, not of each sample; it needs a
            scalar.

    Attributes:
        num_samples: that were measured so far, by this process.

    Raises:
        ValueError: with no trainable parameter; for an unknown layer, or name to leave out.
    """

    def __init__(
        self,
        model: nn.Module,
        scalar: Scalar | None,
        *,
        power: Literal[1, 2] = 1,
        layer: str | None = None,
        forward: Forward | None = None,
        left_out: Sequence[str] = (),
        seen: Callable[[Tensor], Any] = lambda scalars: None,
        approximate: Literal["batch"] | None = None,
    ):
        self.model = unwrap(model)
        self.parameters = _without(measured_parameters(model), left_out)
        self._scalar, self._power, self._forward, self._approximate = scalar, power, forward, approximate
        self._call = ModelCall(self.model, layer, forward)
        self._by_rules = ByRules(self.model, self._call, scalar, power, self.parameters)
        self._one_by_one = OneByOne(self.model, self._call, scalar, power)
        self._sums = {
            name: torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
            for name, value in self.parameters.items()
        }
        self.num_samples = 0
        self._without_rule = self._by_rules.without_rule
        self._seen = seen
        self._is_broken = False
        self._seconds = 0.0

    def update(self, batches: Iterable[Any]) -> None:
        """Measure these batches.

        Raises:
            ValueError: for an output that is no tensor of one row a sample, or is not finite; for layers by
                themselves, if there are others than linear and convolution layers.
        """
        self._refuse_broken()
        num_slow = len(self._without_rule)
        with measuring(self.model) as moved:
            for batch in each_batch(batches):
                inputs = moved(self._call.inputs_of(batch))
                started = time.perf_counter()
                self._is_broken = True  # until this batch is wholly in
                if num_samples(inputs):
                    self._add(inputs)
                self._is_broken = False
                self._seconds += time.perf_counter() - started
        if len(self._without_rule) > num_slow:
            self._tell(list(self._without_rule)[num_slow:])

    def finished(self) -> Measured:
        """The sums so far, over the samples of all processes: each of them must ask.

        Raises:
            ValueError: on all processes, if their models differ, without any sample, where a gradient is not finite, or
                if a batch failed half-way on one of them.
        """
        check_replicas(self.parameters)
        with together("measuring importance"):
            self._refuse_broken()
        count = int(sum_numbers(samples=self.num_samples)["samples"])
        if not count:
            raise ValueError("importance needs at least one sample, and the batches were empty")
        sums = sum_over_ranks(self._sums)
        # the sum, one pass without a tensor of its own, tells almost always
        for (name, total), whole in zip(sums.items(), read_off([each.sum() for each in sums.values()]), strict=True):
            if not math.isfinite(whole) and not torch.isfinite(total).all():
                raise ValueError(f"the gradient of parameter {name!r} is not finite, although the model's output is")
        lengths: dict[frozenset[str], float] = {}
        for of_rank in gather_objects(self._by_rules.lengths):
            for names, length in of_rank.items():
                lengths[names] = lengths.get(names, 0.0) + length
        return Measured(sums, count, lengths)

    def _refuse_broken(self) -> None:
        if self._is_broken:
            raise ValueError("an earlier batch failed half-way, so that the sums are no longer right: start again")

    def _add(self, inputs: Any) -> None:
        if self._approximate and self._scalar is not None:  # for comparison: the gradient of the batch's sum
            scalars = self._scalar(self._call(self.model, inputs))
            add_gradients(scalars.sum(0), self.parameters, self._sums, self._power)
            self._keep(scalars.detach(), range(self.num_samples, self.num_samples + len(scalars)))
            return
        before = self.num_samples
        for part in self._by_rules.parts(inputs):
            scalars = self._by_rules.add(part, self._sums)
            slow = self.parameters if scalars is None else {name: self.parameters[name] for name in self._without_rule}
            if slow:
                self._refuse_slow_layers(slow)
                found = self._one_by_one.add(slow, part.inputs, self._sums)
                scalars = found if scalars is None else scalars
            assert scalars is not None
            self._keep(scalars, [before + sample for sample in part.samples])

    def _refuse_slow_layers(self, names: Iterable[str]) -> None:
        if self._scalar is None:
            raise ValueError(
                "local importance is known for linear and convolution layers, with the batch norm and the "
                f"activation that follow them; not for {listed(_modules_of(names))} "
                f"({'; '.join(dict.fromkeys(self._without_rule.values()))}). Name them in left_out=, and they will "
                "have no importance"
            )

    def _keep(self, scalars: Tensor, numbers: Sequence[int]) -> None:
        finite = torch.isfinite(scalars).all(1)
        if not finite.all():
            first = numbers[int((~finite).nonzero()[0])]
            raise ValueError(f"the model's output is not finite for sample {first} of the importance data")
        self.num_samples += len(scalars)
        self._seen(scalars)

    def _tell(self, names: Sequence[str]) -> None:
        torch_says = self._one_by_one.why_not_vectorized
        reasons = [*dict.fromkeys(self._without_rule[name] for name in names), torch_says]
        logger.info(
            "importance of %s: the slow path, %s (%s); %.2f of %.2f s",
            f"{listed(_modules_of(names))} ({len(names)} of {len(self.parameters)} parameters)",
            "one sample at a time" if torch_says else "samples in chunks by torch.func",
            "; ".join(filter(None, reasons)),
            self._one_by_one.seconds,
            self._seconds,
        )


def _modules_of(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _without(parameters: dict[str, nn.Parameter], left_out: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters but those with one of these names, or in a module with one of them."""
    if isinstance(left_out, str):
        raise ValueError(f"left_out must be a list of names, got the text {left_out!r}")
    left = dict(parameters)
    for each in left_out:
        named = [name for name in parameters if f"{name}.".startswith(f"{each}.")]
        if not named:
            raise ValueError(
                f"left_out: no trainable parameter is, or is in, {each!r}; there are {listed(_modules_of(parameters))}"
            )
        for name in named:
            left.pop(name, None)
    if not left:
        raise ValueError("left_out names all there are: no trainable parameter is left to measure")
    return left
