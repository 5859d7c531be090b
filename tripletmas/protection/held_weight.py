"""A parameter that is held weight by weight: where it is in the model, its importance and its reference."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Place
from tripletmas.protection.penalty import laid_out_as
from tripletmas.protection.place import grown_tensor


class HeldWeight(NamedTuple):
    """All three of one shape."""

    place: Place
    importance: Tensor
    reference: Tensor

    @property
    def parameter(self) -> nn.Parameter:
        return self.place.parameter

    def laid_out(self) -> HeldWeight:
        """On its parameter's device, and with its strides."""
        parameter = self.parameter
        return HeldWeight(self.place, laid_out_as(parameter, self.importance), laid_out_as(parameter, self.reference))

    def is_moved(self) -> bool:
        """Whether the parameter went to another device, or to another shape by `.data`."""
        parameter, reference = self.parameter, self.reference
        return parameter.device != reference.device or parameter.shape != reference.shape

    def grown(self, place: Place) -> HeldWeight:
        """The same in a larger parameter, of which the rest has no importance."""
        now = place.parameter.detach()
        importance = grown_tensor(self.importance, torch.zeros_like(now))
        return HeldWeight(place, importance, grown_tensor(self.reference, now)).laid_out()
