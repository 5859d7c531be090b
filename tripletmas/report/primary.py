"""What a run is judged by: one metric on one gallery, which its objective decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Primary:
    """The score that headlines, curves and comparisons are about.

    Attributes:
        objective: "metric learning", "recognition" or "facts"; runs of different objectives cannot be compared.
        metric, gallery: where it lies in `Scores`.
        label: what an axis or a headline calls it.
        title: the same with all that a reader has to know.
        searched: the metric by which fresh, stale and compensated galleries are compared, and unseen classes scored.
    """

    objective: str
    metric: str
    gallery: str
    label: str
    title: str
    searched: str = "recall@1"

    @property
    def searched_label(self) -> str:
        """What pages call `searched`."""
        return {"map": "mAP"}.get(self.searched, self.searched)


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
FACTS = Primary(
    objective="facts",
    metric="map",
    gallery="seen",
    label="mAP",
    title="mAP of facts that search images, on the test images of all tasks seen",
    searched="map",
)


def primary_of(config: Mapping[str, Any]) -> Primary:
    """The primary score of a run with this configuration; one without `objective` is metric learning."""
    return next((each for each in (RECOGNITION, FACTS) if config.get("objective") == each.objective), METRIC_LEARNING)
