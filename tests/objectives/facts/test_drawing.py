"""Pictures of scenes: what is said of a scene can be seen in it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from tripletmas.data.dataset import LabelledDataset
from tripletmas.objectives.facts.scenes.drawing import PALETTE, Scenes, draw, hole, line, mask
from tripletmas.objectives.facts.scenes.scenes import Scene, draw_scenes
from tripletmas.objectives.facts.scenes.things import COLOURS, SHAPES, TEXTURES, Thing

SIZE = 64


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return draw_scenes(300, seed=0, part="train") + draw_scenes(60, seed=0, part="unseen")


def pixels(scene: Scene, size: int = SIZE) -> np.ndarray:
    return draw(scene, size).permute(1, 2, 0).numpy().astype(float)


def cover(thing: Thing, size: int = SIZE) -> np.ndarray:
    """(size, size): how much of each pixel the thing covers."""
    rows, columns, part = mask(thing.outline, hole(thing), size)
    whole = np.zeros((size, size))
    whole[rows, columns] = part
    return whole


def test_a_picture_is_a_function_of_the_scene_and_the_size(scenes: list[Scene]):
    for scene in scenes[:10]:
        picture = draw(scene)
        assert (picture.dtype, picture.shape) == (torch.uint8, (3, 64, 64))
        assert picture.equal(draw(scene))
        assert draw(scene, 33).shape == (3, 33, 33)
        assert not picture.equal(draw(Scene(scene.things, scene.lines, scene.seed + 1)))


def test_scenes_are_samples(scenes: list[Scene]):
    samples = Scenes(scenes[:6], 32)
    dataset = LabelledDataset(samples, torch.zeros(6, dtype=torch.int64), ["any"])
    assert len(samples) == 6
    assert dataset.sample_shape == (3, 32, 32)
    assert (dataset[[4, 1]][0] * 255).round().to(torch.uint8).equal(torch.stack([samples[4], samples[1]]))
    assert samples[-1].equal(draw(scenes[5], 32))


def test_a_plain_thing_has_its_colour(scenes: list[Scene]):
    names, colours = list(PALETTE), np.array(list(PALETTE.values()))
    assert set(names) == set(COLOURS)
    seen = set()
    for scene in scenes:
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


def test_things_stand_out_from_what_is_around_them(scenes: list[Scene]):
    alone = [scene for scene in scenes if len(scene.things) == 1]
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


def test_what_is_inside_is_not_hidden(scenes: list[Scene]):
    inner = Thing("star", "yellow", "", 0.5, 0.5, 0.1, 0.0)
    outer = Thing("square", "blue", "", 0.5, 0.5, 0.28, 0.0)
    for things in ((inner, outer), (outer, inner)):
        shown = pixels(Scene(things, (), 1))[31:34, 31:34].mean((0, 1))
        assert np.linalg.norm(shown - PALETTE["yellow"]) < np.linalg.norm(shown - PALETTE["blue"])


def test_a_line_shows_and_its_knob_is_at_the_subject(scenes: list[Scene]):
    held = [scene for scene in scenes if scene.lines]
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
