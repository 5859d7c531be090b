"""What a rule is: the gradient of every single sample, from one batch's backward pass, for one call of a function.

A rule is made from the arguments of the call, runs it, and is later given the gradient with respect to what it
returned. That and the saved input are all it takes. Weights reach a function as parameters or as tensors that are
computed from parameters alone; a rule does not mind which.

Shapes: n samples, p positions (all but samples and channels).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tripletmas.protection.engine.accumulate import buffer_size, magnitude_
from tripletmas.protection.engine.layout import Layout

Weights = dict[str, "Tensor | None"]


class Rule:
    """One call of a function with weights. Abstract: concrete rules are final.

    Attributes:
        input: what the weights are applied to.
        weights: by role ("weight", "bias"); None where the call has none.
    """

    input: Tensor
    weights: Weights

    def run(self, weights: Weights) -> Tensor:
        """The function itself, with these tensors in place of its weights."""
        raise NotImplementedError

    def accepts(self, layout: Layout) -> bool:
        """Whether the samples may be where this layout says they are in the output."""
        raise NotImplementedError

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        """Take the gradient with respect to the output; `add` and `of_sample` may be called from here on."""
        raise NotImplementedError

    def of_sample(self, role: str, sample: int) -> Tensor:
        """The gradient of one sample, in the shape of the weight."""
        raise NotImplementedError

    def add(self, role: str, total: Tensor, power: int) -> None:
        """total += sum_k |gradient_k|^power; `of_sample` is no longer right after it."""
        raise NotImplementedError


class SmallWeights(Rule):
    """Weights that are few compared with what they are applied to: all samples' gradients fit in memory, by chunks."""

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        self._grad = layout.by_sample(grad, num_samples)
        self._input = layout.by_sample(self.input, num_samples)
        self._num_samples = num_samples

    def gradients(self, role: str, start: int, stop: int) -> Tensor:
        """Of the samples [start, stop): (samples, *weight.shape)."""
        raise NotImplementedError

    def of_sample(self, role: str, sample: int) -> Tensor:
        return self.gradients(role, sample, sample + 1)[0]

    def add(self, role: str, total: Tensor, power: int) -> None:
        for start, stop in self._chunks():
            total.add_(magnitude_(self.gradients(role, start, stop), power).sum(0))

    def _chunks(self) -> Iterator[tuple[int, int]]:
        step = max(1, buffer_size(self._grad) * self._num_samples // max(1, self._grad.numel()))
        for start in range(0, self._num_samples, step):
            yield start, min(start + step, self._num_samples)


def given(weight: Tensor | None) -> Tensor:
    """A weight that the call has."""
    assert weight is not None
    return weight
