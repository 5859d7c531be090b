"""Pictures to try on: a small shop's products, month by month, drawn as if photographed by hand.

A product keeps its shape and its colours. What varies with the picture: where it stands, how large and how much askew,
from which side the light comes and how warm it is, the wall and the table, what else stands about, and noise. A month
has surroundings of its own, so that a product that returns is seen in others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

MONTHS = {
    "month1": ("lamp", "mug", "teapot", "vase"),
    "month2": ("backpack", "clock", "mug", "plant"),
    "month3": ("boot", "bottle", "chair", "mug"),
}
_WALLS = {"month1": (205, 190, 170), "month2": (160, 180, 195), "month3": (190, 200, 165)}
_TABLES = ((120, 85, 60), (175, 145, 110), (95, 95, 105), (215, 210, 205))
_FINE = 3  # edges are drawn at so many times the size, and averaged
_QUALITY = 88

Colour = tuple[int, int, int]


def draw_shop(root: Path, *, size: int = 96, per_product: int = 20) -> int:
    """Draw the shop into a folder as `<month>/<product>/<number>.jpg`; the number of pictures.

    Args:
        size: height and width in pixels.
        per_product: pictures of each product in each month.
    """
    for month, products in MONTHS.items():
        for product in products:
            folder = root / month / product
            folder.mkdir(parents=True)
            for number in range(per_product):
                picture = draw_picture(month, product, number, size)
                picture.save(folder / f"{number:03d}.jpg", quality=_QUALITY)
    return per_product * sum(map(len, MONTHS.values()))


def draw_picture(month: str, product: str, number: int, size: int) -> Image.Image:
    """One picture, RGB; the same whenever it is drawn."""
    chance = random.Random(f"{month} {product} {number}")
    side = size * _FINE
    picture = _surroundings(chance, _WALLS[month], side)
    thing = _placed(chance, _drawn(product, side))
    shade, dark = Image.new("RGBA", thing.size, (0, 0, 0, 0)), chance.randint(30, 55)
    shade.putalpha(thing.getchannel("A").point([alpha * dark // 100 for alpha in range(256)]))
    shade = shade.filter(ImageFilter.GaussianBlur(side / 40))
    picture.paste(shade, (chance.randint(-side // 16, side // 16), side // 30), shade)
    picture.paste(thing, (0, 0), thing)
    small = picture.resize((size, size), Image.Resampling.BOX)
    return _lit(chance, small.filter(ImageFilter.GaussianBlur(chance.uniform(0, 0.6))))


def _surroundings(chance: random.Random, wall: Colour, side: int) -> Image.Image:
    """A wall, a table, and things about that are out of focus."""
    shade = chance.uniform(0.75, 1.15)
    picture = Image.new("RGB", (side, side), tuple(min(255, int(c * shade) + chance.randint(-12, 12)) for c in wall))
    draw, edge = ImageDraw.Draw(picture), int(side * chance.uniform(0.55, 0.8))
    table = chance.choice(_TABLES)
    draw.rectangle((0, edge, side, side), fill=table)
    for _ in range(chance.randint(0, 4)):
        x, width, height = chance.randint(0, side), chance.randint(side // 12, side // 4), chance.randint(20, side // 2)
        colour = tuple(chance.randint(60, 220) for _ in range(3))
        outline = draw.ellipse if chance.random() < 0.4 else draw.rectangle
        outline((x - width // 2, edge - height, x + width // 2, edge + side // 20), fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(side / 45))


def _placed(chance: random.Random, thing: Image.Image) -> Image.Image:
    """A product where it stands, RGBA of the same size: turned, smaller, shifted, perhaps from its other side."""
    side = thing.width
    if chance.random() < 0.3:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    thing = thing.rotate(chance.gauss(0, 7), Image.Resampling.BICUBIC)
    scale, narrow = chance.uniform(0.55, 0.95), chance.uniform(0.82, 1.0)
    thing = thing.resize((int(side * scale * narrow), int(side * scale)), Image.Resampling.BILINEAR)
    left = (side - thing.width) // 2 + int(side * chance.uniform(-0.16, 0.16))
    top = (side - thing.height) // 2 + int(side * chance.uniform(-0.08, 0.14))
    placed = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    placed.paste(thing, (left, top))
    # darker on the side that is off the light
    ramp = Image.linear_gradient("L").rotate(chance.choice((90, 270, 0))).resize((side, side))
    ramp = ramp.point([150 + value * 105 // 255 for value in range(256)])
    lit = ImageChops.multiply(placed.convert("RGB"), Image.merge("RGB", (ramp, ramp, ramp)))
    lit.putalpha(placed.getchannel("A"))
    return lit


def _lit(chance: random.Random, picture: Image.Image) -> Image.Image:
    """In warm or cold light, bright or dim, by a camera that is not the best."""
    warm, bright = chance.uniform(-0.1, 0.1), chance.uniform(0.65, 1.15)
    noise = np.random.default_rng(chance.randrange(2**32)).normal(0, chance.uniform(1, 7), (*picture.size, 3))
    pixels = np.asarray(picture, dtype=np.float64) * bright * np.array([1 + warm, 1, 1 - warm]) + noise
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


# --- the products, in a square from -1 to 1, x to the right, y downwards


class _Pen:
    """Draws in that square on a layer of its own."""

    def __init__(self, side: int):
        self.layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.layer)
        self._half = side / 2

    def _at(self, *values: float) -> list[float]:
        return [(value + 1) * self._half for value in values]

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, round_by: float = 0.0) -> None:
        self._draw.rounded_rectangle(self._at(x0, y0, x1, y1), round_by * self._half, fill=colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self._draw.ellipse(self._at(x - rx, y - ry, x + rx, y + ry), fill=colour)

    def ring(self, x: float, y: float, rx: float, ry: float, colour: Colour, width: float = 0.1) -> None:
        self._draw.ellipse(self._at(x - rx, y - ry, x + rx, y + ry), outline=colour, width=int(width * self._half))

    def shape(self, colour: Colour, *points: tuple[float, float]) -> None:
        self._draw.polygon([(self._at(x)[0], self._at(y)[0]) for x, y in points], fill=colour)

    def line(self, colour: Colour, width: float, *points: tuple[float, float]) -> None:
        at = [(self._at(x)[0], self._at(y)[0]) for x, y in points]
        self._draw.line(at, fill=colour, width=int(width * self._half), joint="curve")


def _drawn(product: str, side: int) -> Image.Image:
    pen = _Pen(side)
    _PRODUCTS[product](pen)
    return pen.layer


def _mug(pen: _Pen) -> None:
    pen.ring(0.42, 0.05, 0.32, 0.36, (20, 120, 130), 0.13)
    pen.box(-0.55, -0.55, 0.42, 0.65, (20, 120, 130), 0.12)
    pen.box(-0.55, -0.15, 0.42, 0.2, (240, 235, 220))
    pen.disc(-0.065, -0.52, 0.48, 0.12, (12, 70, 80))


def _teapot(pen: _Pen) -> None:
    pen.ring(-0.6, 0.05, 0.28, 0.38, (170, 30, 40), 0.11)
    pen.shape((170, 30, 40), (0.4, 0.2), (0.95, -0.35), (0.8, -0.42), (0.35, -0.1))
    pen.disc(0, 0.12, 0.62, 0.52, (190, 35, 45))
    pen.disc(0, -0.36, 0.34, 0.12, (150, 25, 35))
    pen.disc(0, -0.5, 0.09, 0.09, (240, 200, 60))
    for x in (-0.35, 0.0, 0.35):
        pen.disc(x, 0.15, 0.09, 0.09, (245, 230, 210))


def _vase(pen: _Pen) -> None:
    pen.shape(
        (35, 60, 160), (-0.2, -0.8), (0.2, -0.8), (0.16, -0.4), (0.5, 0.15), (0.3, 0.85), (-0.3, 0.85), (-0.5, 0.15)
    )
    pen.disc(0, 0.15, 0.5, 0.42, (35, 60, 160))
    pen.disc(0, -0.8, 0.26, 0.07, (20, 35, 100))
    zigzag = [(-0.44 + 0.11 * i, 0.05 + 0.18 * (i % 2)) for i in range(9)]
    pen.line((235, 235, 245), 0.06, *zigzag)


def _lamp(pen: _Pen) -> None:
    pen.box(-0.05, -0.2, 0.05, 0.75, (110, 110, 115))
    pen.disc(0, 0.8, 0.4, 0.1, (80, 80, 85))
    pen.shape((240, 205, 90), (-0.28, -0.85), (0.28, -0.85), (0.6, -0.1), (-0.6, -0.1))
    pen.line((215, 165, 50), 0.06, (-0.6, -0.1), (0.6, -0.1))


def _backpack(pen: _Pen) -> None:
    pen.ring(0, -0.72, 0.2, 0.2, (60, 45, 40), 0.08)
    pen.box(-0.55, -0.7, 0.55, 0.8, (225, 115, 30), 0.35)
    pen.box(-0.42, 0.05, 0.42, 0.68, (185, 85, 20), 0.12)
    pen.line((60, 45, 40), 0.05, (-0.42, 0.2), (0.42, 0.2))
    pen.line((60, 45, 40), 0.05, (-0.45, -0.2), (0.45, -0.2))


def _clock(pen: _Pen) -> None:
    for x in (-0.4, 0.4):
        pen.line((70, 70, 75), 0.12, (x * 0.8, 0.5), (x * 1.1, 0.85))
        pen.disc(x, -0.68, 0.22, 0.18, (200, 160, 50))
    pen.disc(0, 0, 0.68, 0.68, (70, 70, 75))
    pen.disc(0, 0, 0.56, 0.56, (250, 248, 240))
    pen.line((30, 30, 30), 0.08, (0, 0), (-0.28, -0.22))
    pen.line((30, 30, 30), 0.06, (0, 0), (0.36, -0.24))


def _plant(pen: _Pen) -> None:
    for x, y in ((-0.4, -0.3), (0.4, -0.3), (-0.22, -0.62), (0.22, -0.62), (0, -0.15)):
        pen.disc(x, y, 0.26, 0.26, (45, 125, 55))
    for x, y in ((-0.3, -0.4), (0.3, -0.45), (0, -0.68)):
        pen.disc(x, y, 0.13, 0.13, (85, 165, 80))
    pen.shape((190, 95, 60), (-0.42, 0.1), (0.42, 0.1), (0.28, 0.85), (-0.28, 0.85))
    pen.box(-0.48, 0.02, 0.48, 0.2, (165, 80, 50))


def _bottle(pen: _Pen) -> None:
    pen.box(-0.12, -0.92, 0.12, -0.3, (30, 75, 45), 0.03)
    pen.box(-0.32, -0.4, 0.32, 0.9, (30, 75, 45), 0.2)
    pen.box(-0.14, -0.95, 0.14, -0.8, (150, 35, 40))
    pen.box(-0.32, 0.0, 0.32, 0.5, (235, 225, 195))
    pen.disc(0, 0.25, 0.13, 0.13, (150, 35, 40))


def _boot(pen: _Pen) -> None:
    pen.box(-0.45, -0.85, 0.1, 0.6, (120, 70, 35), 0.06)
    pen.shape((120, 70, 35), (0.05, 0.05), (0.75, 0.3), (0.8, 0.62), (-0.45, 0.62))
    pen.box(-0.5, 0.58, 0.85, 0.75, (40, 30, 25), 0.04)
    for y in (-0.5, -0.28, -0.06, 0.14):
        pen.line((235, 215, 160), 0.05, (-0.12, y), (0.14, y + 0.1))


def _chair(pen: _Pen) -> None:
    for x in (-0.5, 0.38):
        pen.box(x, 0.15, x + 0.12, 0.95, (95, 35, 85))
    pen.box(-0.5, -0.9, -0.36, 0.2, (95, 35, 85))
    pen.box(-0.36, -0.85, -0.28, 0.1, (140, 70, 130))
    pen.shape((140, 70, 130), (-0.52, 0.05), (0.45, 0.05), (0.55, 0.25), (-0.55, 0.25))


_PRODUCTS: dict[str, Callable[[_Pen], None]] = {
    "backpack": _backpack,
    "boot": _boot,
    "bottle": _bottle,
    "chair": _chair,
    "clock": _clock,
    "lamp": _lamp,
    "mug": _mug,
    "plant": _plant,
    "teapot": _teapot,
    "vase": _vase,
}
