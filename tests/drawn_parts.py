"""Parts that are drawn, and what is counted of them by loops; for tests of forecasts."""

from __future__ import annotations

from dataclasses import replace

import oracles
import torch
from torch import Tensor

from tripletmas.index.base import unit
from tripletmas.runs.simulated import Part


def angles(*degrees: float) -> Tensor:
    """Unit vectors of the plane."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def drawn_parts(seed: int = 0, count: int = 3) -> list[Part]:
    """Parts of 12 vectors of three classes, half of which have an image; the last is current."""
    random = torch.Generator().manual_seed(seed)
    parts = []
    for number in range(count):
        vectors = unit(torch.randn(12, 4, generator=random))
        rows = torch.tensor([0, 3, 4, 7, 9, 11])
        moved, before = (unit(vectors[rows] + 0.3 * torch.randn(6, 4, generator=random)) for _ in range(2))
        compensated = unit(vectors + 0.1 * torch.randn(12, 4, generator=random))
        labels = torch.arange(12) % 3 + (number if number < 2 else 0)
        once = unit(vectors + 0.1 * torch.randn(12, 4, generator=random))
        parts.append(Part(vectors, labels, compensated, rows, moved, before, once, was_current=number == count - 2))
    last = parts[-1]
    parts[-1] = replace(last, compensated=last.vectors, now=last.vectors[last.rows], is_current=True)
    return parts


def literal(parts: list[Part], queries: list[Tensor], galleries: list[Tensor]) -> list[float]:
    """recall@1 of each part."""
    found = [
        (gallery.tolist(), part.labels.tolist(), part.rows.tolist())
        for part, gallery in zip(parts, galleries, strict=True)
    ]
    return oracles.left_out_recalls(found, [query.tolist() for query in queries])
