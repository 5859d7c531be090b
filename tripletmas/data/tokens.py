"""Texts as samples: strings, and what a model's tokenizer makes of them.

Shapes: n texts; a text is int64 (2, length), the ids of its tokens and a row of ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """How a model reads texts.

    Args:
        encode: (texts, whether to cut them to max_length) -> the ids of the tokens of each, the special ones included.
        max_length: the most tokens that the model reads of a text.
        identity: a checksum of all that the ids depend on: equal ones give equal ids.
    """

    encode: Callable[[Sequence[str], bool], list[list[int]]]
    max_length: int
    identity: str


class Texts(Sequence[Tensor]):
    """n texts. `texts[i]` is int64 (2, length), once there is a tokenizer.

    All are tokenized at once: a million short ones take about a minute, and some bytes a token.

    Args:
        tokenizer: of the model that reads them; None as long as none is known.

    Attributes:
        num_cut: how many are longer than the model reads.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer | None = None):
        self.strings = tuple(strings)
        self.num_cut = 0
        self._are_read = tokenizer is not None
        self._ids, self._ends = torch.empty(0, dtype=torch.int32), [0] * (len(self.strings) + 1)
        if tokenizer is not None and self.strings:
            found = self._tokenized(tokenizer)
            self._ids = torch.tensor([each for ids in found for each in ids], dtype=torch.int32)
            self._ends = [0, *accumulate(map(len, found))]

    def __len__(self) -> int:
        return len(self.strings)

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} texts, no number {index}")
        if not self._are_read:
            raise ValueError("these are texts, which only a model of texts can read")
        ids = self._ids[self._ends[index] : self._ends[index + 1]].long()
        return torch.stack([ids, torch.ones_like(ids)])

    def read_by(self, tokenizer: Tokenizer) -> Texts:
        """The same as another model reads them; how many are cut is logged."""
        texts = Texts(self.strings, tokenizer)
        if texts.num_cut:
            logger.warning(
                "%s of %s texts are longer than the %d tokens that the model reads, and are cut",
                f"{texts.num_cut:,}",
                f"{len(texts):,}",
                tokenizer.max_length,
            )
        return texts

    def _tokenized(self, tokenizer: Tokenizer) -> list[list[int]]:
        found = tokenizer.encode(self.strings, False)
        long = [position for position, ids in enumerate(found) if len(ids) > tokenizer.max_length]
        if long:
            cut = tokenizer.encode([self.strings[position] for position in long], True)
            for position, ids in zip(long, cut, strict=True):
                found[position] = ids
        self.num_cut = len(long)
        return found
