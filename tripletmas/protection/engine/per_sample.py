"""Exact per-sample gradients: the sum over samples of |d scalar(x_k) / d theta|^p, for every trainable parameter.

The magnitude is taken per sample, before any sum: gradients of different samples must not cancel, and the result must
not depend on how samples are batched. It takes one forward and one backward pass a batch: `trace` watches the forward
pass, and in the backward pass `rules` turn the gradient of each layer's output into the per-sample gradients of its
weights, without holding those of all samples. Weights without a rule are as exact, and slower (`single`).

Sources: Aljundi et al., Memory Aware Synapses, ECCV 2018, equation 2. That a batch's backward pass holds what the
gradients of its samples need: Goodfellow, Efficient Per-Example Gradient Computations, arXiv 1510.01799, for linear
layers; Rochette et al., Efficient Per-Example Gradient Computations in Convolutional Neural Networks, arXiv 1912.06015.

Shapes: n samples in a batch; the model's output is (n, ...).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params, device_of, listed, trainable, unwrap
from tripletmas.protection.engine.backward import Backward, leaves_reached
from tripletmas.protection.engine.batches import Forward, make_call, num_samples, prepared, rows
from tripletmas.protection.engine.blocks import Blocks
from tripletmas.protection.engine.layout import is_near
from tripletmas.protection.engine.measuring import float_type, measuring
from tripletmas.protection.engine.single import OneByOne, add_gradients
from tripletmas.protection.engine.trace import Call, Probe, Trace

logger = logging.getLogger(__name__)

Scalar = Callable[[Tensor], Tensor]  # the outputs of all samples (n, ...) -> (n, m), each row of its sample alone

# The activations of a batch that is differentiated at once stay below this many numbers; larger batches are parted.
_ACTIVATIONS = {"cpu": 2**28, "cuda": 2**31}

# How far a sample's gradient may be from the one it has alone, relative to its own norm (a rounding error can switch a
# ReLU) and to the largest of all parameters: more is an error, and nobody's rounding.
_GRADIENT_TOLERANCE = {torch.float64: (1e-6, 1e-12), torch.float32: (2e-2, 1e-4)}


@dataclass
class PerSampleSums:
    """What a pass over the data gives: sums over samples, and how many samples there were.

    Attributes:
        gradients: sum_k |gradient_k|^power by parameter.
        total, smallest, largest: of what `size` makes of the samples' scalars.
        layers: for layers by themselves, the total squared length by the names of a layer's parameters.
    """

    gradients: Params
    num_samples: int = 0
    total: float = 0.0
    smallest: float = float("inf")
    largest: float = float("-inf")
    layers: dict[frozenset[str], float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Of what `size` makes of the samples' scalars."""
        return self.total / self.num_samples


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
        forward: how to call the model on a batch. Without it a tensor is the input, a tuple's first item is, and
            a dict without its labels is passed as keyword arguments.
        left_out: modules or parameters, by name, that are not measured.
        size: the scalars (n, m) -> one number a sample (n,), of which sum, least and largest are kept.
        approximate: "batch" takes the magnitude of the summed gradient of each batch, not of each sample.

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
        size: Callable[[Tensor], Tensor] = lambda scalars: scalars.sum(1),
        approximate: Literal["batch"] | None = None,
    ):
        if approximate not in (None, "batch"):
            raise ValueError(f"approximate must be None (exact) or 'batch', got {approximate!r}")
        self.model = unwrap(model)
        self.parameters = _without(trainable(model), left_out)
        if not self.parameters:
            raise ValueError(
                "the model has no trainable parameter (requires_grad=True), so there is nothing to measure"
            )
        self.sums = PerSampleSums(
            {name: torch.zeros_like(value, dtype=_dtype(value)) for name, value in self.parameters.items()}
        )
        self.without_rule: dict[str, str] = {}  # names of parameters that take the slow path -> why
        self._scalar, self._power, self._forward, self._approximate = scalar, power, forward, approximate
        self._call = make_call(self.model, layer, forward)
        self._one_by_one = OneByOne(self.model, self._call, scalar, power) if scalar is not None else None
        self._size = size
        self._num_batches = 0
        self._is_checked = scalar is None
        self._is_broken = False
        self._seconds = {"all": 0.0, "one by one": 0.0}

    def update(self, batches: Iterable[Any]) -> None:
        """Measure these batches.

        Raises:
            ValueError: for an output that is no tensor of one row a sample, or is not finite; for layers by
                themselves, if there are others than linear and convolution layers.
        """
        if self._is_broken:
            raise ValueError("an earlier batch failed half-way, so that the sums are no longer right: start again")
        device, dtype = device_of(self.model), float_type(self.model)
        slow_before = set(self.without_rule)
        with measuring(self.model, device):
            for batch in batches:
                inputs = prepared(batch, self._forward, device, dtype)
                started = time.perf_counter()
                self._is_broken = True  # until this batch is wholly in
                if num_samples(inputs):
                    self._add(inputs)
                self._is_broken = False
                self._seconds["all"] += time.perf_counter() - started
        new = [name for name in self.without_rule if name not in slow_before]
        if new:
            self._tell(new)

    def finished(self) -> PerSampleSums:
        """The sums so far.

        Raises:
            ValueError: without any sample, or where a gradient is not finite.
        """
        if self._is_broken:
            raise ValueError("a batch failed half-way, so that the sums are not right: start again")
        if not self.sums.num_samples:
            raise ValueError("importance needs at least one sample, and the batches were empty")
        for name, total in self.sums.gradients.items():
            # the sum, one pass without a tensor of its own, tells almost always
            if not torch.isfinite(total.sum()) and not torch.isfinite(total).all():
                raise ValueError(f"the gradient of parameter {name!r} is not finite, although the model's output is")
        return self.sums

    def _add(self, inputs: Any) -> None:
        if self._approximate:
            self._keep(self._batch_gradient(inputs))
            return
        n = num_samples(inputs)
        by_rules = not self._are_all_slow()
        calls = self._probe(rows(inputs, n - 1, n)) if by_rules and n > 1 else None
        numbers = 2 * n * sum(call.alone.numel() for call in calls or () if call.alone is not None)
        most = _ACTIVATIONS.get(device_of(self.model).type, _ACTIVATIONS["cuda"])
        parts = max(1, min(-(-numbers // most), n // 2))
        size = -(-n // parts)
        for start in range(0, n, size):
            self._keep(self._measured(rows(inputs, start, start + size), calls if parts == 1 else None))

    def _measured(self, inputs: Any, calls: list[Call] | None) -> Tensor:
        """Add the gradients of these samples; returns their scalars (n, m)."""
        scalars = None
        if not self._are_all_slow() and (num_samples(inputs) > 1 or self._scalar is None):
            scalars = self._by_rules(inputs, calls)
        slow = self.parameters if scalars is None else {name: self.parameters[name] for name in self.without_rule}
        if slow:
            if self._one_by_one is None:
                raise ValueError(
                    "local importance is known for linear and convolution layers, with the batch norm and the "
                    f"activation that follow them; not for {listed(_modules_of(slow))} "
                    f"({'; '.join(dict.fromkeys(self.without_rule.values()))}). Name them in left_out=, and they will "
                    "have no importance"
                )
            started = time.perf_counter()
            found = self._one_by_one.add(slow, inputs, self.sums.gradients)
            scalars = found if scalars is None else scalars
            self._seconds["one by one"] += time.perf_counter() - started
        assert scalars is not None
        return scalars

    def _keep(self, scalars: Tensor) -> None:
        finite = torch.isfinite(scalars).all(1)
        if not finite.all():
            first = self.sums.num_samples + int((~finite).nonzero()[0])
            raise ValueError(f"the model's output is not finite for sample {first} of the importance data")
        self.sums.num_samples += len(scalars)
        sizes = self._size(scalars.double())
        self.sums.total += float(sizes.sum())
        self.sums.smallest = min(self.sums.smallest, float(sizes.min()))
        self.sums.largest = max(self.sums.largest, float(sizes.max()))

    # --- a batch at once

    def _probe(self, sample: Any) -> list[Call] | None:
        """Pass a sample alone, to learn in which layout each layer sees it; None if rules are no use."""
        probe = Probe(dict(self.parameters), self._constants())
        try:
            with probe:
                output = self._call(self.model, sample)
        except (ValueError, torch.OutOfMemoryError):
            raise  # our own words about the output; and no mistake
        except Exception as error:  # of any kind: if it is a mistake of the model's, the slow path shows it
            return self._slow_for_all(f"watching it failed: {error}")
        if probe.not_by_rules:
            return self._slow_for_all(probe.not_by_rules)
        self._alone = output.detach()
        return probe.calls

    def _by_rules(self, inputs: Any, calls: list[Call] | None) -> Tensor | None:
        """Add the gradients of all parameters with rules; None, and nothing added, if this batch cannot be done so."""
        n = num_samples(inputs)
        sample = n - 1
        if n > 1 and calls is None:
            self._num_batches += 1  # another sample of each batch, but not the first: all orders have it in one place
            sample = n - 1 - self._num_batches % (n - 1)
            calls = self._probe(rows(inputs, sample, sample + 1))
            if calls is None:
                return None
        blocks = Blocks(n) if self._scalar is None else None
        trace = Trace(dict(self.parameters), self._constants(), n, calls or [], sample, blocks)
        try:
            output = self._watched(trace, inputs, sample)
            return None if output is None else self._from_trace(trace, blocks, output, rows(inputs, sample, sample + 1))
        finally:
            trace.close()

    def _watched(self, trace: Trace, inputs: Any, sample: int) -> Tensor | None:
        """The output of a watched forward pass; None if it cannot be used, and why is noted."""
        try:
            with trace:
                output = self._call(self.model, inputs)
        except (ValueError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            return self._slow_for_all(f"watching it failed: {error}")
        if trace.not_by_rules:
            return self._slow_for_all(trace.not_by_rules)
        if trace.inputs_changed():
            return self._slow_for_all("an input or weight is changed in place after a layer used it")
        if not trace.has_expected_calls():
            return self._slow_for_all("a batch is processed by other calls than a sample alone")
        alone = trace.num_samples == 1 or is_near(output[sample : sample + 1].detach(), self._alone)
        if not alone and bool(torch.isfinite(output).all()):
            return self._slow_for_all("the samples of a batch influence each other")
        return output

    def _from_trace(self, trace: Trace, blocks: Blocks | None, output: Tensor, alone: Any) -> Tensor | None:
        n = trace.num_samples
        if blocks is None:
            assert self._scalar is not None
            scalars = self._scalar(output)
        else:
            lengths = blocks.squared_lengths()
            for names, length in zip(blocks.parameters, lengths.detach().double().sum(0).tolist(), strict=True):
                self.sums.layers[frozenset(names)] = self.sums.layers.get(frozenset(names), 0.0) + length
            scalars = lengths.sum(1, keepdim=True)
            trace.without_rule |= blocks.ambiguous
        leaves = leaves_reached(scalars)
        reached = {id(leaf) for leaf in leaves}
        for name, value in self.parameters.items():
            if name in trace.without_rule or id(value) in reached:
                self.without_rule.setdefault(name, "no rule for how it is used")
        ruled = {name: value for name, value in self.parameters.items() if name not in self.without_rule}
        if self._is_checked or n == 1:
            Backward(trace, ruled, self.sums.gradients, self._power, n).run(scalars, leaves)
            return scalars.detach()
        # the first time, into sums of its own if there are others: where the gradients are not right, nothing is added
        is_first = not self.sums.num_samples
        own = {name: value if is_first else torch.zeros_like(value) for name, value in self._sums_of(ruled)}
        backward = Backward(trace, ruled, own, self._power, n, check=trace.sample)
        backward.run(scalars, leaves)
        if bool(torch.isfinite(scalars).all()) and not self._is_right(backward.checked, ruled, alone):
            for value in own.values():
                value.zero_()
            return self._slow_for_all("a sample has other gradients in a batch than alone")
        self._is_checked = True
        for name, value in own.items() if not is_first else ():
            self.sums.gradients[name] += value
        return scalars.detach()

    def _sums_of(self, names: Iterable[str]) -> list[tuple[str, Tensor]]:
        return [(name, self.sums.gradients[name]) for name in names]

    def _is_right(self, found: Params, parameters: dict[str, nn.Parameter], alone: Any) -> bool:
        """Whether these are the gradients that a sample has by itself, in a pass that nobody watches."""
        assert self._scalar is not None
        scalar = self._scalar(self._call(self.model, alone)).sum()
        if not parameters or not scalar.requires_grad:
            return not any(bool(value.any()) for value in found.values())
        truth = torch.autograd.grad(scalar, list(parameters.values()), allow_unused=True)
        known = dict(zip(parameters, truth, strict=True))
        largest = max((float(value.norm()) for value in truth if value is not None), default=0.0)
        for name, value in known.items():
            value = torch.zeros_like(self.sums.gradients[name]) if value is None else value.to_dense()
            error = (found[name] - value).norm() if name in found else value.norm()
            near, noise = _GRADIENT_TOLERANCE.get(value.dtype, _GRADIENT_TOLERANCE[torch.float32])
            if not float(error) <= near * float(value.norm()) + noise * largest:
                return False
        return True

    def _constants(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def _are_all_slow(self) -> bool:
        return len(self.without_rule) == len(self.parameters)

    def _slow_for_all(self, reason: str) -> None:
        self.without_rule |= dict.fromkeys(self.parameters, reason)

    def _tell(self, names: Sequence[str]) -> None:
        assert self._one_by_one is not None
        torch_says = self._one_by_one.why_not_vectorized
        reasons = [*dict.fromkeys(self.without_rule[name] for name in names), torch_says]
        logger.info(
            "importance of %s: the slow path, %s (%s); %.2f of %.2f s",
            f"{listed(_modules_of(names))} ({len(names)} of {len(self.parameters)} parameters)",
            "one sample at a time" if torch_says else "samples in chunks by torch.func",
            "; ".join(filter(None, reasons)),
            self._seconds["one by one"],
            self._seconds["all"],
        )

    # --- for comparison

    def _batch_gradient(self, inputs: Any) -> Tensor:
        if self._scalar is None:
            raise ValueError("approximate='batch' is for the whole model, not for layers by themselves")
        scalars = self._scalar(self._call(self.model, inputs))
        add_gradients(scalars.sum(0), self.parameters, self.sums.gradients, self._power)
        return scalars.detach()


def _modules_of(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _without(parameters: dict[str, nn.Parameter], left_out: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters but those with one of these names, or in a module with one of them."""
    if isinstance(left_out, str):
        raise ValueError(f"left_out must be a list of names, got the text {left_out!r}")
    for each in left_out:
        if not any(name == each or name.startswith(f"{each}.") for name in parameters):
            raise ValueError(
                f"left_out: no trainable parameter is, or is in, {each!r}; there are {listed(_modules_of(parameters))}"
            )
    return {
        name: value
        for name, value in parameters.items()
        if not any(name == each or name.startswith(f"{each}.") for each in left_out)
    }


def _dtype(value: Tensor) -> torch.dtype:
    return torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
