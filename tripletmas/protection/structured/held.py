"""What a Gram holds of one linear map, and how hard."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from tripletmas.protection.structured.budget import START
from tripletmas.protection.structured.gram_matrix import LowRank, Spectrum, largest_curvature, spectrum
from tripletmas.protection.structured.quadratic import Quadratic


class Held:
    """Attributes:
    form: how much of the map's response a change of its weights is, summed over tasks.
    multiplier: of a budget, a scalar.
    found: the share when it was last pulled, a scalar.
    rests: whether it is not pulled at this step; None where it is pulled at every step.
    """

    def __init__(
        self,
        form: Quadratic,
        multiplier: Tensor | None = None,
        found: Tensor | None = None,
        *,
        rests: bool | None = None,
    ):
        self.form = form
        self.multiplier = form.value.new_tensor(START) if multiplier is None else multiplier
        self.found = form.value.new_zeros(()) if found is None else found
        self.rests = rests

    @property
    def steps(self) -> int:
        """For how many steps one pull is."""
        return 1 if self.rests is None else 2

    @cached_property
    def curvature(self) -> Tensor:
        """Half of the largest curvature of the form, a scalar."""
        return largest_curvature(self.form.gram)

    @property
    def spectrum(self) -> Spectrum:
        """Of the Gram; that of a square one is kept, since a map that has gone too far once may do so again."""
        return spectrum(self.form.gram) if isinstance(self.form.gram, LowRank) else self._of_square

    @cached_property
    def _of_square(self) -> Spectrum:
        return spectrum(self.form.gram)
