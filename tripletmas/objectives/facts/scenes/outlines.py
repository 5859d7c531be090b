"""The outlines of the shapes that scenes are made of, and how far apart two outlines are.

An outline is a polygon (v, 2) of (x, y), y downward. That of a shape is upright, holds the origin, and lies in the unit
circle, which it touches. Angles are in degrees, clockwise as one sees the picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def _arc(first: float, last: float, count: int, *, radius: float = 1.0) -> Points:
    angles = np.deg2rad(np.linspace(first, last, count))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Points:
    radii = np.where(np.arange(10) % 2, 0.42, 1.0)
    return radii[:, None] * _arc(-90, 234, 10)


def _cross(half: float = 0.32) -> Points:
    quarter = np.array([(-half, -1.0), (half, -1.0), (half, -half)])
    return np.concatenate([turned(quarter, angle) for angle in (0, 90, 180, 270)])


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return np.stack([16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)], 1)


def _moon() -> Points:
    """A crescent that opens to the right: a circle without one of 0.85 of its radius."""
    horn, bite = 52.0, 0.85
    across = np.sin(np.deg2rad(horn))
    side = np.rad2deg(np.arcsin(across / bite))
    centre = np.cos(np.deg2rad(horn)) + np.sqrt(bite**2 - across**2)
    inner = _arc(180 + side, 180 - side, 14, radius=bite) + np.array([centre, 0])
    return np.concatenate([_arc(horn, 360 - horn, 24), inner[1:-1]]) + np.array([0.45, 0])


def _arrow() -> Points:
    right = np.array([(0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 0.95)])
    return np.concatenate([right, right[:0:-1] * (-1, 1)])


def turned(points: Points, angle: float) -> Points:
    """The points turned about the origin."""
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return points @ np.array([(cos, sin), (-sin, cos)])


def _in_unit_circle(points: Points) -> Points:
    return points / np.linalg.norm(points, axis=1).max()


OUTLINES: dict[str, Points] = {  # the most frequent first
    shape: _in_unit_circle(points)
    for shape, points in {
        "circle": _arc(0, 350, 36),
        "square": _arc(45, 315, 4),
        "triangle": np.array([(0, -1.0), (0.72, 0.8), (-0.72, 0.8)]),
        "star": _star(),
        "heart": _heart(),
        "arrow": _arrow(),
        "ring": _arc(0, 350, 36),
        "cross": _cross(),
        "hexagon": _arc(0, 300, 6),
        "moon": _moon(),
        "drop": np.concatenate([[(0, -1.0)], _arc(-28, 208, 22, radius=0.6) + np.array([0, 0.4])]),
        "diamond": np.array([(0, -1.0), (0.55, 0), (0, 1.0), (-0.55, 0)]),
    }.items()
}
HOLES: dict[str, Points] = {"ring": _arc(0, 350, 36, radius=0.58)}


def inner_radius(shape: str) -> float:
    """The radius of the largest circle around the origin in the shape's outline; in its hole if it has one."""
    start = HOLES.get(shape, OUTLINES[shape])
    edge = np.roll(start, -1, axis=0) - start
    share = np.clip(-(start * edge).sum(1) / (edge**2).sum(1), 0, 1)
    return float(np.linalg.norm(start + share[:, None] * edge, axis=1).min())


def gap(outline: Points, other: Points, direction: Points) -> float:
    """How far `outline` can move along the unit vector `direction` until it first meets `other`, coming from outside.

    Negative: how far to go back until they no more than touch. Infinite: it passes by.
    """
    return min(_crossings(outline, other, direction).min(), _crossings(other, outline, -direction).min())


def reach(outline: Points, centre: Points, direction: Points) -> float:
    """How far it is from a centre within the outline along the unit vector `direction` until the outline is left."""
    crossings = _crossings(centre[None], outline, direction)
    return crossings[np.isfinite(crossings)].max()


def _crossings(points: Points, outline: Points, direction: Points) -> Points:
    """(points, edges): the signed way from each point along `direction` to each edge, inf where it misses the edge."""
    axes = np.array([(direction[0], -direction[1]), (direction[1], direction[0])])  # along, across
    along, across = (points @ axes).T[:, :, None]
    start = outline @ axes
    end = np.roll(start, -1, axis=0)
    rise = end[:, 1] - start[:, 1]
    share = (across - start[:, 1]) / np.where(rise == 0, np.inf, rise)
    hit = (share >= 0) & (share <= 1) & (rise != 0)
    return np.where(hit, start[:, 0] + share * (end[:, 0] - start[:, 0]) - along, np.inf)
