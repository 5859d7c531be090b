"""How far an update can have moved stored vectors, where a protection knows; what to do about them. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_PER_SHARE = 10.0  # 1 - cosine for each unit of the sum of the layers' shares; 0.1 to 12 were seen


class Recorded(Protocol):
    """What has the records of a run."""

    def records(self, kind: str) -> Sequence[Mapping[str, Any]]: ...


def shares_of(run: Recorded, after: int) -> dict[str, float]:
    """How far the update moved the responses of each layer to old inputs, where a protection knew; else {}."""
    return next((each.get("changed_responses", {}) for each in run.records("task") if each["task"] == after), {})


def allowed_move(shares: Mapping[str, float]) -> float | None:
    """How far stored vectors can have moved at most, as a mean of 1 - cosine; None where no layer tells."""
    return _PER_SHARE * sum(shares.values()) if shares else None


def how_far(run: Recorded, after: int) -> str:
    """How far stored vectors have moved at most, where a protection knows: a part of a sentence, else nothing."""
    most = allowed_move(shares_of(run, after))
    return "" if most is None else f" (to a mean cosine of {1 - most:.3f} at least, since the layers were held)"


def ways_out(path: str) -> str:
    """What to do about stale vectors."""
    return (
        f"tripletmas index refresh {path} --compensate moves them and reads no image, "
        f"tripletmas index refresh {path} --reembed embeds their images again"
    )
