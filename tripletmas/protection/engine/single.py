"""Exact per-sample gradients the slow way, for weights without a rule: a forward and backward pass for each sample.

In chunks through `torch.func.vmap`, or where that cannot transform the model one sample at a time.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from tripletmas.basics.weights import Params
from tripletmas.protection.batches import Forward, apply, num_samples, split
from tripletmas.protection.engine.rule import magnitude_

# Materialised per-sample gradients of one chunk stay below this many numbers (256 MB in float32).
_CHUNK_NUMBERS = 64 * 2**20
_LARGEST_CHUNK = 64


class OneByOne:
    """Adds |gradient|^power of every sample, of some of the parameters.

    Attributes:
        why_not_vectorized: what torch.func said, once it could not transform the model.
        seconds: that it took so far.
    """

    def __init__(self, model: nn.Module, call: Forward, scalar: Any, power: int):
        self.why_not_vectorized: str | None = None
        self.seconds = 0.0
        self._model, self._call, self._scalar, self._power = model, call, scalar, power

    def add(self, parameters: dict[str, nn.Parameter], inputs: Any, totals: Params) -> Tensor:
        """totals[name] += sum_k |gradient_k|^power for these parameters.

        Returns:
            The scalars of every sample, (n, m).
        """
        started = time.perf_counter()
        chunk = max(1, min(_LARGEST_CHUNK, _CHUNK_NUMBERS // sum(value.numel() for value in parameters.values())))
        values = []
        for part in split(inputs, chunk):
            found = None
            if chunk > 1 and num_samples(part) > 1 and self.why_not_vectorized is None:
                try:
                    found = self._vectorized(parameters, part, totals)
                except Exception as error:  # of any kind: a mistake that is not torch.func's shows itself one by one
                    self.why_not_vectorized = str(error).strip().partition("\n")[0] or type(error).__name__
            values.append(self._in_turn(parameters, part, totals) if found is None else found)
        self.seconds += time.perf_counter() - started
        return torch.cat(values)

    def _vectorized(self, parameters: dict[str, nn.Parameter], inputs: Any, totals: Params) -> Tensor:
        callee = _Callee(self._model, self._call)
        # functional_call wants the module's own names, which differ from the canonical ones if a submodule is wrapped
        names = {id(value): name for name, value in callee.named_parameters()}
        own = {names[id(value)]: value.detach() for value in parameters.values()}
        others = {name: value.detach() for name, value in callee.named_parameters() if name not in own}

        def of_one(sample: Any) -> tuple[Params, Tensor]:
            one = apply(lambda tensor: tensor.unsqueeze(0), sample)  # (vmap takes tensors with rows only)

            def scalars_of(values: Params) -> Tensor:
                return self._scalar(functional_call(callee, {**others, **values}, (one,)))[0]

            scalars, pull = vjp(scalars_of, own)  # pyright: ignore[reportAssignmentType]
            magnitudes: Params = {}
            for column in range(len(scalars)):
                for name, gradient in pull(torch.eye(len(scalars)).to(scalars)[column])[0].items():
                    magnitude = gradient.abs() if self._power == 1 else gradient.square()
                    magnitudes[name] = magnitudes[name] + magnitude if name in magnitudes else magnitude
            return magnitudes, scalars

        magnitudes, scalars = vmap(of_one)(inputs)
        for name, value in parameters.items():
            totals[name] += magnitudes[names[id(value)]].sum(0)
        return scalars

    def _in_turn(self, parameters: dict[str, nn.Parameter], inputs: Any, totals: Params) -> Tensor:
        found = []
        for sample in split(inputs, 1):
            scalars = self._scalar(self._call(self._model, sample))
            add_gradients(scalars[0], parameters, totals, self._power)
            found.append(scalars.detach())
        return torch.cat(found)


def add_gradients(scalars: Tensor, parameters: dict[str, nn.Parameter], totals: Params, power: int) -> None:
    """totals[name] += |gradient|^power of each of the scalars, (m,), in turn."""
    if not scalars.requires_grad:  # no trainable parameter reaches the output
        return
    for number, scalar in enumerate(scalars):
        again = number + 1 < len(scalars)
        gradients = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=again, allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                totals[name] += magnitude_(gradient.to_dense().clone(), power)


class _Callee(nn.Module):
    """`call(model, inputs)` as a module: while it runs, the model itself has the parameters that are substituted."""

    def __init__(self, model: nn.Module, call: Forward):
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, inputs: Any) -> Tensor:
        return self.call(self.model, inputs)
