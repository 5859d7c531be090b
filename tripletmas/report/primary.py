"""What a run is judged by: one metric on one gallery, which its objective decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Primary:
    """The score that headlines, curves and comparisons are about.

    Attributes:
        objective: "metric learning" or "recognition"; runs of different objectives cannot be compared.
        metric, gallery: where it lies in `Scores`.
        label: what an axis or a headline calls it.
        title: the same with all that a reader has to know.
    """

    objective: str
    metric: str
    gallery: str
    label: str
    title: str


METRIC_LEARNING = Primary(
    objective="metric learning",
    metric="recall@1",
    gallery="seen",
    label="recall@1",
    title="recall@1 on the gallery of all tasks seen",
)
RECOGNITION = Primary(
    objective="recognition",
    metric="accuracy",
    gallery="task",
    label="task-incremental accuracy",
    title="task-incremental accuracy: each task by its own head",
)


def primary_of(config: Mapping[str, Any]) -> Primary:
    """The primary score of a run with this configuration; one without `objective` is metric learning."""
    return RECOGNITION if config.get("objective") == RECOGNITION.objective else METRIC_LEARNING
