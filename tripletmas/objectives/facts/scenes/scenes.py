"""Random scenes of one to three things, and every fact that holds in them.

`facts_of` says what holds, from the geometry alone, by the definitions in `things`; a line from one thing to another is
part of the scene, and makes the fact <S, holding a line to, O>. The planning below it only makes frequent what should
be frequent. No two things of a scene share a shape or a colour. Third order is limited to `TRIPLES`: a scene in which
another one would hold is drawn again.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, permutations, product
from math import hypot

import numpy as np

from tripletmas.objectives.facts.fact import Fact
from tripletmas.objectives.facts.scenes.things import (
    COLOURS,
    POSED,
    POSES,
    SHAPES,
    SIZES,
    TEXTURES,
    Thing,
    gap_between,
    relation_of,
    room,
)

PARTS = ("train", "test", "unseen")
RELATIONS = ("left of", "above", "holding a line to", "touching", "inside")
CONTAINERS = ("circle", "square", "ring", "hexagon")
MARGIN = 0.02  # of every thing to the edges of the scene


@dataclass(frozen=True)
class Scene:
    """Things, lines from one to another (their positions in `things`), and a seed for all that no fact is about."""

    things: tuple[Thing, ...]
    lines: tuple[tuple[int, int], ...]
    seed: int


def facts_of(scene: Scene) -> tuple[Fact, ...]:
    """Every fact that holds in the scene, sorted."""
    found = set()
    for thing in scene.things:
        predicates = ("", thing.colour, thing.texture, thing.size, thing.pose)
        found.update(Fact(thing.shape, predicate) for predicate in predicates)
    for (i, subject), (j, object) in permutations(enumerate(scene.things), 2):
        relations = {relation_of(subject, object), "holding a line to" if (i, j) in scene.lines else ""}
        found.update(Fact(subject.shape, relation, object.shape) for relation in relations - {""})
    return tuple(sorted(found))


@cache
def _zipf(count: int, exponent: float = 1.0) -> tuple[float, ...]:
    """Weights of 1, 1/2, 1/3, ... to the power of the exponent, summing to 1."""
    weights = np.arange(1, count + 1) ** -exponent
    return tuple(weights / weights.sum())


def _triples(count: int = 100) -> tuple[Fact, ...]:
    """The third-order facts of this world, the most frequent first."""
    weight = dict(zip(SHAPES, _zipf(len(SHAPES)), strict=True)) | dict(zip(RELATIONS, _zipf(5, 0.6), strict=True))
    every = [
        Fact(subject, relation, object)
        for subject, relation, object in product(SHAPES, RELATIONS, SHAPES)
        if subject != object
        and (relation != "inside" or object in CONTAINERS)
        and (relation != "touching" or SHAPES.index(subject) < SHAPES.index(object))
    ]
    weights = np.array([np.prod([weight[part] for part in each.parts]) for each in every])
    chosen = np.random.default_rng(1).choice(len(every), count, replace=False, p=weights / weights.sum())
    return tuple(every[i] for i in chosen)


def _held_out(second: int = 14, third: int = 10) -> tuple[Fact, ...]:
    """Of each subject at most two of second order; of third order none of the ten most frequent."""
    rng = np.random.default_rng(2)
    pairs = [Fact(shape, predicate) for shape in SHAPES * 2 for predicate in [rng.choice(COLOURS + TEXTURES)]]
    pairs = rng.permutation(sorted({str(pair): pair for pair in pairs}))[:second]
    triples = rng.choice(len(TRIPLES) - 10, third, replace=False) + 10
    return tuple(sorted([Fact(*pair.split(", ")) for pair in pairs] + [TRIPLES[i] for i in triples]))


TRIPLES = _triples()
HELD_OUT = _held_out()
SEEN_TRIPLES = tuple(triple for triple in TRIPLES if triple not in HELD_OUT)
_KNOWN, _HIDDEN = frozenset(TRIPLES), frozenset(HELD_OUT)


def draw_scenes(count: int, *, seed: int, part: str) -> list[Scene]:
    """Scenes of a part: in "train" and "test" no fact of `HELD_OUT` holds, in each of "unseen" at least one does.

    Scene i is a function of (seed, part, i): a longer draw extends a shorter one.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    return [_plan(np.random.default_rng([seed, PARTS.index(part), i]), unseen=part == "unseen") for i in range(count)]


def _plan(rng: np.random.Generator, *, unseen: bool) -> Scene:
    wanted = _wanted(rng, unseen)
    crowded = rng.random() < 0.15
    while True:
        scene = _propose(rng, wanted, crowded)
        facts = set(facts_of(scene)) if scene else set()
        third = {each for each in facts if each.order == 3}
        if scene and wanted in facts and third <= _KNOWN and unseen != facts.isdisjoint(_HIDDEN):
            return scene


def _wanted(rng: np.random.Generator, unseen: bool) -> Fact:
    if unseen:
        return HELD_OUT[rng.integers(len(HELD_OUT))]
    if rng.random() < 0.6:
        return SEEN_TRIPLES[_pick(rng, _zipf(len(SEEN_TRIPLES), 0.8))]
    return Fact(SHAPES[_pick(rng, _zipf(len(SHAPES)))])


def _propose(rng: np.random.Generator, wanted: Fact, crowded: bool) -> Scene | None:
    """A scene in which `wanted` should hold; None if it does not fit. `crowded` adds a thing, if there is room."""
    first = _thing(rng, wanted.subject)
    if wanted.predicate in COLOURS:
        first = replace(first, colour=wanted.predicate)
    if wanted.predicate in TEXTURES:
        first = replace(first, texture=wanted.predicate, radius=max(first.radius, SIZES[""][0]))
    if wanted.order == 3:
        things = _arranged(rng, first, _thing(rng, wanted.object), wanted.predicate)
    else:
        things = _shifted(rng, [first])
    lines = ((0, 1),) if wanted.predicate == "holding a line to" else ()
    if things and crowded:
        things = _with_another(rng, things, lines)
    if not things or len({thing.colour for thing in things}) < len(things):
        return None
    return Scene(tuple(things), lines, int(rng.integers(2**32)))


def _thing(rng: np.random.Generator, shape: str) -> Thing:
    size = ("", "large", "small")[_pick(rng, (0.5, 0.25, 0.25))]
    texture = "" if size == "small" else ("", *TEXTURES)[_pick(rng, (0.4, 0.27, 0.2, 0.13))]
    low, high = list(POSES.values())[_pick(rng, _zipf(len(POSES)))] if shape in POSED else (0, 8)
    angle = rng.uniform(low, high) * (1 if rng.random() < 0.5 else -1)
    return Thing(shape, COLOURS[_pick(rng, _zipf(len(COLOURS)))], texture, 0.0, 0.0, rng.uniform(*SIZES[size]), angle)


def _pick(rng: np.random.Generator, weights: tuple[float, ...]) -> int:
    """A position, as likely as its weight; many times as fast as rng.choice."""
    return min(bisect(tuple(accumulate(weights)), rng.random()), len(weights) - 1)


def _arranged(rng: np.random.Generator, subject: Thing, object: Thing, relation: str) -> list[Thing]:
    """The subject and the object where the relation holds between them; [] if they do not fit."""
    if relation == "inside":
        subject = replace(subject, radius=rng.uniform(*SIZES["small"]), texture="")
        object = replace(object, radius=rng.uniform(0.22, 0.3), texture="")
    radii = subject.radius + object.radius
    slant = np.deg2rad(rng.uniform(-25, 25) if relation in ("left of", "above") else rng.uniform(-180, 180))
    direction = np.array([np.cos(slant), np.sin(slant)])
    distance = (radii + rng.uniform(0.07, 0.25)) / abs(direction[0])
    if relation == "above":
        direction = direction[::-1]
    if relation == "holding a line to":
        distance = radii + rng.uniform(0.14, 0.3)
    if relation == "inside":
        distance = rng.uniform(0, max(room(subject, object), 0))
    if relation == "touching":
        x, y = radii * direction
        distance = radii - gap_between(subject, replace(object, x=x, y=y)) - rng.uniform(0, 0.008)
    x, y = distance * direction
    return _shifted(rng, [subject, replace(object, x=x, y=y)])


def _shifted(rng: np.random.Generator, things: Sequence[Thing]) -> list[Thing]:
    """The things moved together to a random place in the square; [] if they do not fit."""
    left = min(thing.x - thing.radius for thing in things) - MARGIN
    right = max(thing.x + thing.radius for thing in things) + MARGIN
    top = min(thing.y - thing.radius for thing in things) - MARGIN
    bottom = max(thing.y + thing.radius for thing in things) + MARGIN
    if max(right - left, bottom - top) > 1:
        return []
    x, y = rng.uniform(-left, 1 - right), rng.uniform(-top, 1 - bottom)
    return [replace(thing, x=float(thing.x + x), y=float(thing.y + y)) for thing in things]


def _with_another(rng: np.random.Generator, things: list[Thing], lines: Sequence[tuple[int, int]]) -> list[Thing]:
    """The things and one of another shape, apart from them and from the lines, if a few random places have room."""
    others = [shape for shape in SHAPES if shape not in {thing.shape for thing in things}]
    new = _thing(rng, others[_pick(rng, _zipf(len(others)))])
    taken = [(thing.x, thing.y, thing.radius) for thing in things]
    for i, j in lines:
        taken += _circles_along(things[i], things[j])
    for _ in range(10):
        other = _shifted(rng, [new])[0]
        if all(hypot(x - other.x, y - other.y) > radius + other.radius + 0.03 for x, y, radius in taken):
            return [*things, other]
    return things


def _circles_along(start: Thing, end: Thing) -> list[tuple[float, float, float]]:
    """(x, y, radius) of circles on the line between the centres, that other things keep away from."""
    shares = [number / 8 for number in range(9)]
    return [(start.x + share * (end.x - start.x), start.y + share * (end.y - start.y), 0.03) for share in shares]
