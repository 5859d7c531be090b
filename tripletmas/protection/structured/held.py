"""What a Gram holds of one linear map, and how hard."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from tripletmas.protection.structured.budget import START
from tripletmas.protection.structured.gram_matrix import Spectrum, largest_curvature, spectrum
from tripletmas.protection.structured.quadratic import Quadratic


class Held:
    """Attributes:
    form: how much of the map's response a change of its weights is, summed over tasks.
    multiplier: of a budget, a scalar.
    found: the share at the last step, a scalar.
    """

    def __init__(self, form: Quadratic, multiplier: Tensor | None = None, found: Tensor | None = None):
        self.form = form
        self.multiplier = form.value.new_tensor(START) if multiplier is None else multiplier
        self.found = form.value.new_zeros(()) if found is None else found

    @cached_property
    def curvature(self) -> Tensor:
        """Half of the largest curvature of the form, a scalar."""
        return largest_curvature(self.form.gram)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of the Gram; kept, since a map that has gone too far once may do so again."""
        return spectrum(self.form.gram)
