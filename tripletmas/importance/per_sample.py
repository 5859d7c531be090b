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

from tripletmas.importance.backward import Backward, leaves_reached
from tripletmas.importance.batches import Forward, make_call, num_samples, prepared, rows
from tripletmas.importance.blocks import Blocks
from tripletmas.importance.layout import is_near
from tripletmas.importance.measuring import float_type, measuring
from tripletmas.importance.single import OneByOne, add_gradients
from tripletmas.importance.trace import Call, Probe, Trace
from tripletmas.params import Params, device_of, listed, trainable, unwrap

logger = logging.getLogger(__name__)

Scalar = Callable[[Tensor], Tensor]  # the outputs of all samples (n, ...) -> (n, m), each row of its sample alone

# The activations of a batch that is differentiated at once stay below this many numbers; larger batches are parted.
_ACTIVATIONS = {"cpu": 2**28, "cuda": 2**31}


@dataclass
class PerSampleSums:
    """What a pass over the data gives: sums over samples, and how many samples there were.

    Attributes:
        gradients: sum_k |gradient_k|^power by parameter.
        scalars: of every sample, (n, m) a batch; for layers by themselves (n, layers).
        layers: for layers by themselves, the names of the parameters of each.
    """

    gradients: Params
    num_samples: int = 0
    scalars: list[Tensor] = field(default_factory=list)
    layers: list[set[str]] = field(default_factory=list)

    def values(self) -> Tensor:
        """The scalars of every sample, (num_samples, m) in float64 on the CPU."""
        return torch.cat([values.detach().double().cpu() for values in self.scalars])


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
        self._calls: list[Call] | None = None  # what is known of how the model uses its weights
        self._numbers_per_sample = 1
        self._seconds = {"all": 0.0, "one by one": 0.0}

    def update(self, batches: Iterable[Any]) -> None:
        """Measure these batches.

        Raises:
            ValueError: for an output that is no tensor of one row a sample, or is not finite; for layers by
                themselves, if there are others than linear and convolution layers.
        """
        device, dtype = device_of(self.model), float_type(self.model)
        slow_before = set(self.without_rule)
        with measuring(self.model, device):
            for batch in batches:
                inputs = prepared(batch, self._forward, device, dtype)
                started = time.perf_counter()
                if num_samples(inputs):
                    self._add(inputs)
                self._seconds["all"] += time.perf_counter() - started
        new = [name for name in self.without_rule if name not in slow_before]
        if new:
            self._tell(new)

    def finished(self) -> PerSampleSums:
        """The sums so far.

        Raises:
            ValueError: without any sample, or where a gradient is not finite.
        """
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
        if self._calls is None and n > 1 and not self._are_all_slow():
            self._probe(inputs)
        most = _ACTIVATIONS.get(device_of(self.model).type, _ACTIVATIONS["cuda"])
        parts = max(1, min(-(-n * self._numbers_per_sample // most), n // 2))
        size = -(-n // parts)
        for start in range(0, n, size):
            self._keep(self._measured(rows(inputs, start, start + size)))

    def _measured(self, inputs: Any) -> Tensor:
        """Add the gradients of these samples; returns their scalars (n, m)."""
        scalars = None
        if not self._are_all_slow() and (num_samples(inputs) > 1 or self._scalar is None):
            scalars = self._by_rules(inputs)
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
        self.sums.scalars.append(scalars)

    # --- a batch at once

    def _probe(self, inputs: Any) -> None:
        """Pass the last sample alone, to learn in which layout each layer sees the samples."""
        n = num_samples(inputs)
        probe = Probe(dict(self.parameters), self._constants())
        try:
            with probe:
                output = self._call(self.model, rows(inputs, n - 1, n))
        except ValueError:
            raise  # our own words about the output
        except Exception as error:  # of any kind: if it is a mistake of the model's, the slow path shows it
            return self._slow_for_all(f"watching it failed: {error}")
        if probe.reads_data:
            return self._slow_for_all("the model reads values off its data, on which it may branch")
        self._calls, self._alone = probe.calls, output.detach()
        self._numbers_per_sample = 2 * sum(call.alone.numel() for call in probe.calls if call.alone is not None)

    def _by_rules(self, inputs: Any) -> Tensor | None:
        """Add the gradients of all parameters with rules; None, and nothing added, if this batch cannot be done so."""
        traced = self._traced(inputs)
        if traced is None:
            return None
        try:
            return self._from_trace(num_samples(inputs), *traced)
        finally:
            traced[0].close()

    def _from_trace(self, n: int, trace: Trace, blocks: Blocks | None, output: Tensor, fresh: bool) -> Tensor | None:
        if fresh and not is_near(output[n - 1 :].detach(), self._alone) and bool(torch.isfinite(output).all()):
            self._slow_for_all("the samples of a batch influence each other")
            return None
        if n > 1:
            self._calls = trace.calls
        if blocks is None:
            assert self._scalar is not None
            scalars = objective = self._scalar(output)
        else:
            scalars = blocks.squared_lengths()
            objective = scalars.sum(1, keepdim=True)
            self.sums.layers = blocks.parameters
            trace.without_rule |= blocks.ambiguous
        reached = leaves_reached(objective)
        for name, value in self.parameters.items():
            if name in trace.without_rule or id(value) in reached:
                self.without_rule.setdefault(name, "no rule for how it is used")
        ruled = {name: value for name, value in self.parameters.items() if name not in self.without_rule}
        backward = Backward(trace, ruled, self.sums.gradients, self._power, n)
        backward.run(objective, [value for value in self.model.parameters() if id(value) in reached])
        return scalars.detach()

    def _traced(self, inputs: Any) -> tuple[Trace, Blocks | None, Tensor, bool] | None:
        """A watched forward pass: the trace, its output, and whether layouts were found in it for the first time."""
        n = num_samples(inputs)
        for again in (False, True):
            if self._calls is None and n > 1:
                self._probe(inputs)
                if self._calls is None:
                    return None
            calls = self._calls or []
            fresh = n > 1 and any(call.alone is not None for call in calls)
            blocks = Blocks(n) if self._scalar is None else None
            trace = Trace(dict(self.parameters), self._constants(), n, calls, n - 1, blocks)
            found = None
            try:
                with trace:
                    output = self._call(self.model, inputs)
                if trace.inputs_changed():
                    self._slow_for_all("an input is changed in place after a layer used it")
                    return None
                if n == 1 or (trace.same_calls and len(trace.calls) == len(calls)):
                    found = trace, blocks, output, fresh
                    return found
            except ValueError:
                raise
            except Exception as error:
                self._slow_for_all(f"watching it failed: {error}")
                return None
            finally:
                if found is None:
                    trace.close()
            if again or fresh:
                break
            self._calls = None  # this batch is processed by other calls than the last one: look again
        self._slow_for_all("a batch is processed by other calls than a sample alone")
        return None

    def _constants(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def _are_all_slow(self) -> bool:
        return len(self.without_rule) == len(self.parameters)

    def _slow_for_all(self, reason: str) -> None:
        self._calls = None
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
