"""What a reader of data gives: what is learned, what is asked, and where that is searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from tripletmas.data.dataset import LabelledDataset


@dataclass(frozen=True)
class Source:
    """The parts of a data set, which share their class names.

    Args:
        test: the queries; None where the set has no test part, so that a stream holds out a share of `train`.
        gallery: where the queries are searched; None for the queries themselves, each left out of its own search.
        hold_out: groups that `test` leaves out, so that a stream holds out a share of them although there is a `test`.
        pairs: a class is an answer and what it answers; queries are held out by class, and the gallery is all answers.
        group_order: the groups in the order in which a stream has them; None for that of their names.
    """

    train: LabelledDataset
    test: LabelledDataset | None = None
    gallery: LabelledDataset | None = None
    hold_out: tuple[str, ...] = ()
    group_order: tuple[str, ...] | None = None
    pairs: bool = False

    @property
    def whole(self) -> LabelledDataset:
        """The part that has every class."""
        return self.gallery if self.pairs and self.gallery is not None else self.train

    @classmethod
    def of(cls, whole: LabelledDataset, positions: Mapping[str, Tensor | Sequence[int]]) -> Source:
        """The parts of a data set, given the positions of "train", "test" and "gallery"; None for one without any."""
        test, gallery = (whole.subset(positions[part]) if part in positions else None for part in ("test", "gallery"))
        return cls(whole.subset(positions["train"]), test, gallery)

    def of_classes(self, labels: Sequence[int]) -> Source:
        """The same parts with the samples of these classes only."""
        test, gallery = (None if part is None else part.of_classes(labels) for part in (self.test, self.gallery))
        return replace(self, train=self.train.of_classes(labels), test=test, gallery=gallery)

    def of_groups(self, groups: Sequence[str]) -> Source:
        """The same parts with the samples of these groups only."""
        members = self.train.members or {}
        of = self.of_classes(sorted({label for group in groups for label in members.get(group, ())}))
        test, gallery = (None if part is None else part.of_groups(groups) for part in (of.test, of.gallery))
        return replace(of, train=of.train.of_groups(groups), test=test, gallery=gallery)
