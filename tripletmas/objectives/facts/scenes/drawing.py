"""A scene as a picture: uint8 (3, size, size), drawn when asked for.

What no fact is about varies with the scene's seed: the background and its clutter, the shade of each colour, the place
and slant of textures, light and noise. Edges are antialiased: a mask is drawn at `FINE` times the size and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from tripletmas.objectives.facts.scenes.outlines import HOLES, Points, reach, turned
from tripletmas.objectives.facts.scenes.scenes import Scene
from tripletmas.objectives.facts.scenes.things import Thing

Picture = NDArray[np.float32]  # (height, width, 3), 0..255
Rows = NDArray[np.integer]
PALETTE = {
    "red": (215, 35, 40),
    "blue": (35, 80, 215),
    "green": (35, 160, 60),
    "yellow": (240, 220, 40),
    "black": (22, 22, 22),
    "white": (242, 242, 242),
    "purple": (140, 45, 175),
    "orange": (240, 130, 20),
}
FINE = 4
KEPT_BYTES = 2**30  # 87,000 pictures of 64 x 64
CONTRAST = 105.0  # of the background to each colour in use: the least length of the difference
LINE_WIDTH, KNOB = 0.022, 0.034  # the knob is a radius


class Scenes(Sequence[Tensor]):
    """Pictures of scenes, drawn when they are first asked for, and kept if all fit in `KEPT_BYTES`.

    Args:
        size: height and width in pixels.
    """

    def __init__(self, scenes: Sequence[Scene], size: int = 64):
        self.scenes = scenes
        self.size = size
        self._keep = len(scenes) * 3 * size * size <= KEPT_BYTES
        self._drawn: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        if index in self._drawn:
            return self._drawn[index]
        picture = draw(self.scenes[index], self.size)
        if self._keep:
            self._drawn[index] = picture
        return picture

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_drawn": {}}


def draw(scene: Scene, size: int = 64) -> Tensor:
    """The picture (3, size, size), uint8, a function of the scene and the size."""
    rng = np.random.default_rng(scene.seed)
    shades = [_shade(rng, thing.colour) for thing in scene.things]
    marks = [_mark_colour(shade) for thing, shade in zip(scene.things, shades, strict=True) if thing.texture]
    background = _background(rng, np.array(shades + marks))
    picture = _clutter(rng, background, size)
    ink = np.float32(25) if background.mean() > 110 else np.float32(235)
    for i, j in scene.lines:
        for polygon in line(scene.things[i], scene.things[j]):
            _paint(picture, polygon, None, np.full(3, ink), "", rng)
    for thing, shade in sorted(zip(scene.things, shades, strict=True), key=lambda pair: -pair[0].radius):
        _paint(picture, thing.outline, hole(thing), shade, thing.texture, rng)
    picture *= np.float32(rng.uniform(0.92, 1.06))
    noise = rng.integers(0, 256, picture.shape, np.uint8)  # uniform: drawn many times as fast as normal
    picture += np.float32(rng.uniform(0.02, 0.09)) * (noise - np.float32(127.5))
    np.clip(picture, 0, 255, out=picture)
    return torch.from_numpy(picture.astype(np.uint8)).permute(2, 0, 1).contiguous()


def hole(thing: Thing) -> Points | None:
    """The outline of the hole of a thing, if it has one."""
    return HOLES[thing.shape] * thing.radius + (thing.x, thing.y) if thing.shape in HOLES else None


def line(subject: Thing, object: Thing) -> tuple[Points, Points]:
    """Two polygons: the line from the subject's outline to the object's, and the knob at the subject's end."""
    start, end = np.array([subject.x, subject.y]), np.array([object.x, object.y])
    direction = (end - start) / np.linalg.norm(end - start)
    first = start + reach(subject.outline, start, direction) * direction
    last = end - reach(object.outline, end, -direction) * direction
    side = turned(direction, 90) * LINE_WIDTH / 2
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    knob = first + KNOB * (direction + np.stack([np.cos(angles), np.sin(angles)], 1))
    return np.stack([first + side, last + side, last - side, first - side]), knob


def mask(outline: Points, hole: Points | None, size: int) -> tuple[slice, slice, Picture]:
    """The rows and columns that a polygon touches, and how much of each pixel there it covers, 0..1 (rows, columns)."""
    x, y = np.maximum(np.floor(outline.min(0) * size).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(outline.max(0) * size).astype(int) + 1, size)
    fine = Image.new("L", (int(right - x) * FINE, int(bottom - y) * FINE))
    pen = ImageDraw.Draw(fine)
    for polygon, value in ((outline, 255), (hole, 0)):
        if polygon is not None:  # the centre of the first fine pixel is at 0
            pen.polygon(((polygon * size - (x, y)) * FINE - 0.5).ravel().tolist(), fill=value)
    cover: Picture = np.array(fine.reduce(FINE), np.float32)
    cover /= 255
    return slice(y, bottom), slice(x, right), cover


def _paint(
    picture: Picture, outline: Points, hole: Points | None, shade: Picture, texture: str, rng: np.random.Generator
) -> None:
    size = len(picture)
    rows, columns, cover = mask(outline, hole, size)
    paint = shade
    if texture:
        marks = _marks(rng, texture, np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop), size)
        paint = shade + marks[..., None] * (_mark_colour(shade) - shade)
    part = picture[rows, columns]
    part += cover[..., None] * (paint - part)


def _marks(rng: np.random.Generator, texture: str, rows: Rows, columns: Rows, size: int) -> Picture:
    """How much of each pixel a texture marks, 0..1. Its period is a share of the picture, not of the thing."""
    slant, (right, down) = rng.uniform(-np.pi, np.pi) if texture == "striped" else rng.uniform(-0.3, 0.3), rng.random(2)
    period = {"striped": 0.075, "dotted": 0.085, "checkered": 0.125}[texture]
    turn = np.float32(2 * np.pi / (period * size))
    cos, sin = np.float32(turn * np.cos(slant)), np.float32(turn * np.sin(slant))
    y, x = rows.astype(np.float32)[:, None], columns.astype(np.float32)
    u = np.cos(cos * x + sin * y + np.float32(2 * np.pi * right))
    if texture == "striped":
        return np.clip(0.4 + 1.2 * u, 0, 1)
    v = np.cos(cos * y - sin * x + np.float32(2 * np.pi * down))
    return np.clip(1.2 * (u + v) - 0.4, 0, 1) if texture == "dotted" else np.clip(0.5 + 2.5 * u * v, 0, 1)


def _mark_colour(shade: Picture) -> Picture:
    """Light on dark shades, dark on light ones."""
    toward = np.float32(255 if _brightness(shade) < 105 else 0)
    return shade + np.float32(0.65) * (toward - shade)


def _brightness(colour: Picture) -> float:
    return float(colour @ np.array([0.299, 0.587, 0.114], np.float32))


def _shade(rng: np.random.Generator, colour: str) -> Picture:
    """The colour, a little lighter or darker, each channel a little off."""
    shade = np.array(PALETTE[colour]) * rng.uniform(0.9, 1.06) + rng.uniform(-10, 10, 3)
    return np.clip(shade, 0, 255).astype(np.float32)


def _background(rng: np.random.Generator, shades: Picture) -> Picture:
    """The first of a few muted colours that contrasts with all shades; if none does, the one that does most."""
    muted = (rng.uniform(40, 225, (24, 1)) + rng.uniform(-28, 28, (24, 3))).astype(np.float32)
    contrast = np.linalg.norm(muted[:, None] - shades, axis=2).min(1)
    return muted[np.argmax(np.minimum(contrast, CONTRAST))]


def _clutter(rng: np.random.Generator, background: Picture, size: int) -> Picture:
    """The background with faint clouds and thin faint lines."""
    clouds = np.clip(background + rng.uniform(-16, 16, (5, 5, 1)) + rng.uniform(-6, 6, (5, 5, 3)), 0, 255)
    image = Image.fromarray(clouds.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for ends in rng.uniform(0, size, (rng.integers(4), 4)).tolist():
        shade = background + rng.uniform(-18, 18)
        pen.line(ends, fill=tuple(int(value) for value in np.clip(shade, 0, 255)))
    return np.array(image, np.float32)
