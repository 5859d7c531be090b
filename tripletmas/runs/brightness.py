"""How bright images are that a model learned from, and whether others are shown to it as their negatives.

Digits that are white on black and digits that are black on white look alike to a person; a model that has seen the
ones finds nothing among the others, and no number says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from tripletmas.data.dataset import LabelledDataset
from tripletmas.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

_LOOKED_AT = 32  # images
_FAR = 0.25  # of the whole range: means of photographs of the same things differ by less
_BLANK = 0.01  # the standard deviation of the pixels of what is of one colour, but for noise
_OF_FEW, _FEW = 0.4, 5  # one photograph alone may well be dark


def brightness_of(images: LabelledDataset) -> float | None:
    """The mean of the pixels of some of the images, in [0, 1], as a model is shown them; None for other samples.

    Images of one colour do not count: of an empty page there is no negative that would be nearer to anything.
    """
    if images.texts or not len(images) or len(images.sample_shape) != 3:
        return None
    shown = [images[position][0].double() for position in looked_at(len(images))]
    drawn = [each for each in shown if float(each.std(correction=0)) > _BLANK]
    if not drawn:
        return None
    means = torch.stack([each.mean() for each in drawn])
    inside = bool(((means >= 0) & (means <= 1)).all())  # others are no pixels: they have been normalised
    return float(means.mean()) if inside else None


def looked_at(count: int) -> range:
    """The positions, of so many images, of those that are looked at."""
    return range(0, count, -(-count // _LOOKED_AT))


def brightness_learned(run: RunDirectory) -> tuple[float, ...]:
    """That of each task which the run has learned; none of runs of earlier versions."""
    return tuple(record["brightness"] for record in run.records("task") if "brightness" in record)


def warn_of_negatives(images: LabelledDataset, learned: Sequence[float], *, of: str, inverted: bool) -> None:
    """Log a warning where images are far from as bright as those that a run learned from, and their negatives are not.

    Args:
        images: as the model is shown them.
        learned: of each task of the run; empty says nothing.
        of: the run, in words.
        inverted: whether the images are shown as negatives already.
    """
    found = brightness_of(images) if learned else None
    if found is None:
        return
    far, negative = (min(abs(value - each) for each in learned) for value in (found, 1 - found))
    if far > (_FAR if len(images) >= _FEW else _OF_FEW) and negative < far / 2:
        what = "light" if found > 0.5 else "dark"
        advice = "without --invert they would be alike" if inverted else "--invert shows them so"
        logger.warning(
            "these images are mostly %s (mean %.2f of 1), and those that %s learned from are not (%.2f): %s",
            *(what, found, of, min(learned, key=lambda each: abs(each - found)), advice),
        )
