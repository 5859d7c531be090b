"""Scenes and their pictures: what holds, what never does, how often, and that it can be seen."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from tripletmas.data.dataset import LabelledDataset
from tripletmas.objectives.facts.fact import Fact, parse_fact
from tripletmas.objectives.facts.scenes.drawing import PALETTE, Scenes, draw, hole, line, mask
from tripletmas.objectives.facts.scenes.outlines import OUTLINES, gap, inner_radius, reach
from tripletmas.objectives.facts.scenes.scenes import (
    HELD_OUT,
    PARTS,
    TRIPLES,
    Scene,
    _with_another,
    draw_scenes,
    facts_of,
)
from tripletmas.objectives.facts.scenes.shapes import shapes_facts
from tripletmas.objectives.facts.scenes.things import COLOURS, POSED, POSES, SHAPES, TEXTURES, Thing

FINE = 240  # pixels along the side of a mask that is looked at


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return draw_scenes(3000, seed=0, part="train")


@pytest.fixture(scope="module")
def some(train: list[Scene]) -> list[Scene]:
    return train[:300] + draw_scenes(60, seed=0, part="unseen")


def cover(thing: Thing, size: int = 64, *, filled: bool = False) -> np.ndarray:
    """(size, size): how much of each pixel the thing covers; `filled`: its hole, too."""
    rows, columns, part = mask(thing.outline, None if filled else hole(thing), size)
    whole = np.zeros((size, size))
    whole[rows, columns] = part
    return whole


def pixels(scene: Scene, size: int = 64) -> np.ndarray:
    return draw(scene, size).permute(1, 2, 0).numpy().astype(float)


def plain(shape: str, x: float, y: float, *, radius: float = 0.15, colour: str = "red", angle: float = 0) -> Thing:
    return Thing(shape, colour, "", x, y, radius, angle)


def texts(*things: Thing, lines: tuple[tuple[int, int], ...] = ()) -> set[str]:
    return {str(each) for each in facts_of(Scene(things, lines, 0)) if each.order > 1} - {"circle, red", "square, red"}


@pytest.mark.parametrize("part", PARTS)
def test_a_scene_is_a_function_of_seed_part_and_number(part: str):
    assert draw_scenes(20, seed=3, part=part)[:12] == draw_scenes(12, seed=3, part=part)
    assert draw_scenes(12, seed=4, part=part) != draw_scenes(12, seed=3, part=part)
    others = [scene for other in PARTS if other != part for scene in draw_scenes(12, seed=3, part=other)]
    assert not set(draw_scenes(12, seed=3, part=part)) & set(others)


def test_an_unknown_part():
    with pytest.raises(ValueError, match="part must be one of train, test, unseen, got 'validation'"):
        draw_scenes(1, seed=0, part="validation")


@pytest.mark.slow
def test_held_out_facts_are_only_in_unseen_scenes(train: list[Scene]):
    held_out = set(HELD_OUT)
    assert len(held_out) == 24
    assert {each.order for each in held_out} == {2, 3}
    seen = {each for scene in train for each in facts_of(scene)}
    assert not held_out & seen
    assert not held_out & {each for scene in draw_scenes(1500, seed=0, part="test") for each in facts_of(scene)}
    unseen = [set(facts_of(scene)) & held_out for scene in draw_scenes(400, seed=0, part="unseen")]
    assert all(unseen)
    assert set().union(*unseen) == held_out
    for place in range(3):  # each part of a held-out fact occurs, in its place, in a fact of train
        assert {each.parts[place] for each in held_out} <= {each.parts[place] for each in seen}


@pytest.mark.slow
def test_facts_of_three_orders_with_a_long_tail(train: list[Scene]):
    counts = Counter(each for scene in train for each in facts_of(scene))
    attributes = len(SHAPES) * (len(COLOURS) + len(TEXTURES) + 2) + len(POSED) * len(POSES)  # 2: small, large
    assert len(counts) == len(SHAPES) + attributes + len(TRIPLES) - len(HELD_OUT) > 200
    assert {each for each in counts if each.order == 3} == set(TRIPLES) - set(HELD_OUT)
    sizes = sorted(counts.values())
    assert 200 <= sum(size >= 10 for size in sizes) <= 300
    assert sizes[-1] > 100 * sizes[0]
    # under Zipf's law of n facts, the first tenth has about log(n / 10) / log(n), 0.6, of all; were all alike, 0.1
    assert sum(sizes[-len(sizes) // 10 :]) > 0.35 * sum(sizes)
    assert 3 <= np.mean([len(facts_of(scene)) for scene in train]) <= 8


def test_things_are_apart_and_inside_the_picture(train: list[Scene]):
    for scene in train:
        assert 1 <= len(scene.things) <= 3
        for kind in ("shape", "colour"):
            assert len({getattr(thing, kind) for thing in scene.things}) == len(scene.things)
        for thing in scene.things:
            assert min(thing.x, thing.y) >= thing.radius
            assert max(thing.x, thing.y) <= 1 - thing.radius
            assert not 0.11 < thing.radius < 0.13
            assert not 0.17 < thing.radius < 0.19
            assert thing.size == "" or thing.size == ("small" if thing.radius < 0.15 else "large")
            assert (thing.pose != "") == (thing.shape in POSED)
            assert not (thing.texture and thing.size == "small")


def test_facts_are_those_that_the_masks_show(train: list[Scene]):
    """An oracle on pixels: no outline, no gap along a line of centres."""
    scenes = [scene for scene in train if len(scene.things) > 1][:150]
    found = Counter()
    for scene in scenes:
        expected = set()
        for thing in scene.things:
            expected.add(Fact(thing.shape))
            for predicate in {thing.colour, thing.texture, thing.size, thing.pose} - {""}:
                expected.add(Fact(thing.shape, predicate))
        for one, two in permutations(range(len(scene.things)), 2):
            expected |= {Fact(*parts) for parts in seen_in_masks(scene, one, two)}
        assert facts_of(scene) == tuple(sorted(expected))
        found.update(each.predicate for each in expected if each.order == 3)
    assert min(found[name] for name in ("left of", "above", "inside", "touching", "holding a line to")) > 5


def seen_in_masks(scene: Scene, one: int, two: int) -> set[tuple[str, str, str]]:
    subject, object = scene.things[one], scene.things[two]
    right, down, radii = object.x - subject.x, object.y - subject.y, subject.radius + object.radius
    mine, other = cover(subject, FINE) > 0.5, cover(object, FINE) > 0.5
    relations = {"holding a line to"} if (one, two) in scene.lines else set()
    if right >= 2 * abs(down) and right >= radii + 0.06:
        assert mine.any(0).nonzero()[0].max() + 0.06 * FINE <= other.any(0).nonzero()[0].min() + 1
        relations.add("left of")
    if down >= 2 * abs(right) and down >= radii + 0.06:
        assert mine.any(1).nonzero()[0].max() + 0.06 * FINE <= other.any(1).nonzero()[0].min() + 1
        relations.add("above")
    inside = not (mine & (cover(object, FINE, filled=True) <= 0.5)).any()
    holds = not (other & (cover(subject, FINE, filled=True) <= 0.5)).any()
    if inside:
        relations.add("inside")
    apart = distance_transform_edt(~mine)[other].min() / FINE
    first = SHAPES.index(subject.shape) < SHAPES.index(object.shape)
    if first and not inside and not holds and apart <= 0.01 + 1.5 / FINE:
        relations.add("touching")
    return {(subject.shape, relation, object.shape) for relation in relations}


def test_left_of_and_above_at_their_limits():
    circle = plain("circle", 0.2, 0.5)
    assert texts(circle, plain("square", 0.57, 0.5)) == {"circle, left of, square"}  # 0.37 >= 0.15 + 0.15 + 0.06
    assert texts(circle, plain("square", 0.55, 0.5)) == set()  # 0.35
    assert texts(circle, plain("square", 0.7, 0.74)) == {"circle, left of, square"}  # 0.5 >= 2 * 0.24
    assert texts(circle, plain("square", 0.7, 0.76)) == set()
    assert texts(circle, plain("square", 0.2, 0.9)) == {"circle, above, square"}
    assert texts(circle, plain("square", 0.2, 0.1)) == {"square, above, circle"}


def test_touching_and_inside_at_their_limits():
    circle = plain("circle", 0.2, 0.5)
    # the square's left side is 0.15 / sqrt(2) = 0.106 from its centre, so the gap is x - 0.2 - 0.15 - 0.106
    for x, touching in ((0.444, False), (0.448, True), (0.464, True), (0.468, False)):
        assert texts(circle, plain("square", x, 0.5)) == ({"circle, touching, square"} if touching else set())
    large = plain("square", 0.5, 0.5, radius=0.3)  # its largest circle: 0.212, of that 0.9: 0.191
    assert texts(plain("circle", 0.59, 0.5, radius=0.1), large) >= {"circle, inside, square"}
    assert "circle, inside, square" not in texts(plain("circle", 0.593, 0.5, radius=0.1), large)


def test_a_line_is_from_its_subject():
    things = plain("circle", 0.2, 0.2), plain("square", 0.7, 0.6)
    assert texts(*things, lines=((1, 0),)) == {"square, holding a line to, circle"}


@pytest.mark.parametrize(
    ("angle", "pose"),
    [(0, "upright"), (-12, "upright"), (20, ""), (45, "tilted"), (315, "tilted"), (-90, "lying"), (175, "upside down")],
)
def test_poses(angle: float, pose: str):
    assert plain("arrow", 0.5, 0.5, angle=angle).pose == pose
    assert plain("circle", 0.5, 0.5, angle=angle).pose == ""


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_fill_the_unit_circle_and_hold_the_origin(shape: str):
    outline = OUTLINES[shape]
    assert np.linalg.norm(outline, axis=1).max() == pytest.approx(1)
    assert 0 < inner_radius(shape) < 1
    for angle in np.linspace(0, 2 * np.pi, 17):
        direction = np.array([np.cos(angle), np.sin(angle)])
        assert inner_radius(shape) <= reach(outline, np.zeros(2), direction) + 1e-9 <= 1 + 1e-8


def test_gap():
    square = np.array([(0.0, 0.0), (1, 0), (1, 1), (0, 1)])
    right = np.array([1.0, 0])
    assert gap(square, square + np.array([3, 0.5]), right) == pytest.approx(2)
    assert gap(square, square + np.array([0.75, 0.5]), right) == pytest.approx(-0.25)
    assert gap(square, square + np.array([3, 1.5]), right) == np.inf


def test_facts_are_written_and_read_back(train: list[Scene]):
    facts = facts_of(train[0])
    assert tuple(parse_fact(str(each)) for each in facts) == facts
    assert all(parse_fact(str(each)) == each for each in (*TRIPLES, *HELD_OUT))


def test_other_things_keep_off_lines():
    """From one side of the picture to the other: where the line does not count, one in three things lies on it."""
    things = [plain("circle", 0.1, 0.5, radius=0.09), plain("square", 0.9, 0.5, radius=0.09, colour="blue")]
    for seed in range(100):
        *_, other = _with_another(np.random.default_rng(seed), things, [(0, 1)])
        assert other is things[1] or abs(other.y - 0.5) > other.radius


def test_what_is_asked_for_is_shown_often_or_is_a_new_combination():
    source = shapes_facts(images=150, test_images=30, unseen_images=60, size=32)
    facts = [parse_fact(name) for name in source.train.class_names]
    counts = source.train.truth.sum(dim=0).tolist()
    assert all(count == 0 or count >= 10 for count in counts)
    known = {word for each, count in zip(facts, counts, strict=True) if count for word in each.words}
    new = [each for each, count in zip(facts, counts, strict=True) if not count]
    assert new
    assert all(known.issuperset(each.words) for each in new)
    told = {each for scene in draw_scenes(150, seed=0, part="train") for each in facts_of(scene)}
    assert told.isdisjoint(new)
    assert source.test is not None
    assert source.test.truth[:, [facts.index(each) for each in new]].any(dim=0).all()


# --- pictures


def test_a_picture_is_a_function_of_the_scene_and_the_size(some: list[Scene]):
    for scene in some[:10]:
        picture = draw(scene)
        assert (picture.dtype, picture.shape) == (torch.uint8, (3, 64, 64))
        assert picture.equal(draw(scene))
        assert draw(scene, 33).shape == (3, 33, 33)
        assert not picture.equal(draw(Scene(scene.things, scene.lines, scene.seed + 1)))


def test_scenes_are_samples(some: list[Scene]):
    samples = Scenes(some[:6], 32)
    dataset = LabelledDataset(samples, torch.zeros(6, dtype=torch.int64), ["any"])
    assert len(samples) == 6
    assert dataset.sample_shape == (3, 32, 32)
    assert (dataset[[4, 1]][0] * 255).round().to(torch.uint8).equal(torch.stack([samples[4], samples[1]]))
    assert samples[-1].equal(draw(some[5], 32))


def test_a_plain_thing_has_its_colour(some: list[Scene]):
    names, colours = list(PALETTE), np.array(list(PALETTE.values()))
    assert set(names) == set(COLOURS)
    seen = set()
    for scene in some:
        picture = pixels(scene)
        covers = [cover(thing) for thing in scene.things]
        for thing, own in zip(scene.things, covers, strict=True):
            pairs = zip(scene.things, covers, strict=True)  # smaller things are drawn over larger ones
            over = sum((each for other, each in pairs if other.radius < thing.radius), np.zeros_like(own))
            shown = picture[(own > 0.8) & (over == 0)]
            if thing.texture == "":
                nearest = names[np.linalg.norm(colours - np.median(shown, axis=0), axis=1).argmin()]
                assert nearest == thing.colour
                seen.add(nearest)
    assert seen == set(COLOURS)


def test_things_stand_out_from_what_is_around_them(some: list[Scene]):
    alone = [scene for scene in some if len(scene.things) == 1]
    assert len(alone) > 50
    for scene in alone:
        picture, own = pixels(scene), cover(scene.things[0])
        around = np.median(picture[own == 0], axis=0)
        differences = np.linalg.norm(picture[own > 0.8] - around, axis=1)  # base colour, marks and what blends the two
        assert np.median(differences) > 60
        assert (differences > 30).mean() > 0.85


def test_textures_show():
    """Of a plain thing the pixels vary by noise alone; of a textured one by the marks, in which textures differ."""
    pictures = {}
    for texture in ("", *TEXTURES):
        thing = Thing("square", "blue", texture, 0.5, 0.5, 0.3, 0.0)
        pictures[texture] = pixels(Scene((thing,), (), 5))[20:44, 20:44].mean(2)
    assert all(pictures[texture].std() > 2.5 * pictures[""].std() for texture in TEXTURES)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_masks_are_antialiased_and_true_to_area(size: int):
    for shape in SHAPES:
        thing = Thing(shape, "red", "", 0.47, 0.53, 0.22, 7.0)
        whole = cover(thing, size)
        area = polygon_area(thing.outline)
        inner = hole(thing)
        if inner is not None:
            area -= polygon_area(inner)
        assert whole.sum() / size**2 == pytest.approx(area, rel=0.08)  # a fine pixel more or less along the outline
        assert ((whole > 0.1) & (whole < 0.9)).sum() >= 0.3 * size * 0.22  # values between, along the edges
        assert len(np.unique(whole)) > 6


def polygon_area(outline: np.ndarray) -> float:
    x, y = outline.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def test_every_two_shapes_differ():
    covers = {shape: cover(Thing(shape, "red", "", 0.5, 0.5, 0.15, 0.0)) for shape in SHAPES}
    for one, two in combinations(SHAPES, 2):
        overlap = np.minimum(covers[one], covers[two]).sum() / np.maximum(covers[one], covers[two]).sum()
        assert overlap < 0.9, (one, two)


def test_a_mask_stays_in_the_picture():
    rows, columns, part = mask(Thing("star", "red", "", 0.02, 0.98, 0.1, 0.0).outline, None, 64)
    assert (rows.start, columns.start) >= (0, 0)
    assert (rows.stop, columns.stop) <= (64, 64)
    assert part.shape == (rows.stop - rows.start, columns.stop - columns.start)


def test_what_is_inside_is_not_hidden():
    inner = Thing("star", "yellow", "", 0.5, 0.5, 0.1, 0.0)
    outer = Thing("square", "blue", "", 0.5, 0.5, 0.28, 0.0)
    for things in ((inner, outer), (outer, inner)):
        shown = pixels(Scene(things, (), 1))[31:34, 31:34].mean((0, 1))
        assert np.linalg.norm(shown - PALETTE["yellow"]) < np.linalg.norm(shown - PALETTE["blue"])


def test_a_line_shows_and_its_knob_is_at_the_subject(some: list[Scene]):
    held = [scene for scene in some if scene.lines]
    assert len(held) > 20
    for scene in held:
        i, j = scene.lines[0]
        subject, object = scene.things[i], scene.things[j]
        stroke, knob = line(subject, object)
        bare = pixels(Scene(scene.things, (), scene.seed), 128)
        changed = np.abs(pixels(scene, 128) - bare).max(2)
        middle = stroke.mean(0)
        x, y = (middle * 128).astype(int)
        assert changed[y, x] > 40
        centre = knob.mean(0)
        to_subject = np.hypot(*(centre - (subject.x, subject.y)))
        to_object = np.hypot(*(centre - (object.x, object.y)))
        assert to_subject - subject.radius < to_object - object.radius
