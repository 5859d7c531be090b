"""A thing of a scene: what it is, where, and what holds between two things by where they are.

A scene is a square of side 1 with (0, 0) at the top left and y downward. A thing lies in the circle of its radius
around (x, y), and fills it as far as its shape can.

<S>     each thing's shape.
<S, P>  its colour; its texture, if it has one (no fact says "plain"; small things are plain: marks would not show);
        "small" for a radius <= 0.11, "large" for one >= 0.19 (no radius lies between 0.11 and 0.13 or between 0.17 and
        0.19); of triangle, heart, arrow and drop the pose, by the angle from upright, either way: "upright" <= 12,
        "tilted" 33 to 57, "lying" 78 to 102, "upside down" >= 168.
<S, P, O>
    left of     the object's centre is to the right, by at least twice as much as it is higher or lower, and by at least
                0.06 more than both radii. There is no "right of".
    above       the same downward. There is no "below".
    inside      the subject's circle lies in 0.9 of the largest circle in the object's outline (a ring's: in its hole).
    touching    along the line of their centres the outlines are at most 0.01 apart or overlap by at most that, and
                neither is inside. Symmetric: only the shape that comes first in `SHAPES` is the subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

import numpy as np

from tripletmas.objectives.facts.scenes.outlines import OUTLINES, Points, gap, inner_radius, turned

SHAPES = tuple(OUTLINES)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "orange")
TEXTURES = ("striped", "dotted", "checkered")
POSED = ("triangle", "heart", "arrow", "drop")
POSES = {"upright": (0, 12), "tilted": (33, 57), "upside down": (168, 180), "lying": (78, 102)}
SIZES = {"small": (0.085, 0.11), "": (0.13, 0.17), "large": (0.19, 0.26)}
INNER_RADIUS = {shape: inner_radius(shape) for shape in SHAPES}
CLEAR, TOUCHING, WITHIN = 0.06, 0.01, 0.9


@dataclass(frozen=True)
class Thing:
    """A shape at a place; `texture` "" is plain, `angle` is clockwise from upright, in degrees."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def size(self) -> str:
        """small, large, or "" for neither."""
        return "small" if self.radius <= SIZES["small"][1] else "large" if self.radius >= SIZES["large"][0] else ""

    @property
    def pose(self) -> str:
        """ "" for a shape without a pose, and for an angle between two poses."""
        turn = abs((self.angle + 180) % 360 - 180)
        return next((pose for pose, (low, high) in POSES.items() if low <= turn <= high and self.shape in POSED), "")

    @property
    def outline(self) -> Points:
        return turned(OUTLINES[self.shape], self.angle) * self.radius + (self.x, self.y)


def relation_of(subject: Thing, object: Thing) -> str:
    """The relation that holds by where the two things are, which no line is; "" for none."""
    right, down = object.x - subject.x, object.y - subject.y
    distance, radii = hypot(right, down), subject.radius + object.radius
    if distance <= room(subject, object):
        return "inside"
    if distance <= radii + TOUCHING:
        first = SHAPES.index(subject.shape) <= SHAPES.index(object.shape)
        apart = distance <= room(object, subject) or not first
        return "" if apart or abs(gap_between(subject, object)) > TOUCHING else "touching"
    if right >= max(2 * abs(down), radii + CLEAR):
        return "left of"
    return "above" if down >= max(2 * abs(right), radii + CLEAR) else ""


def room(subject: Thing, object: Thing) -> float:
    """How far the subject's centre can be from the object's for it to be inside; negative where it does not fit."""
    return WITHIN * INNER_RADIUS[object.shape] * object.radius - subject.radius


def gap_between(subject: Thing, object: Thing) -> float:
    way = np.array([object.x - subject.x, object.y - subject.y])
    return gap(subject.outline, object.outline, way / np.linalg.norm(way))
