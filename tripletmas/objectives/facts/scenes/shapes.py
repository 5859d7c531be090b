"""shapes-facts: drawn scenes and the facts that hold in them; nothing to download."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tripletmas.data.dataset import LabelledDataset, Source
from tripletmas.objectives.facts.fact import Fact
from tripletmas.objectives.facts.scenes.drawing import Scenes
from tripletmas.objectives.facts.scenes.scenes import draw_scenes, facts_of

FEWEST = 10  # training images of a fact that is asked for


def shapes_facts(
    *,
    images: int = 6000,
    test_images: int = 1500,
    unseen_images: int = 300,
    size: int = 64,
    scene_seed: int = 0,
) -> Source:
    """Scenes of one to three shapes, with every fact of first, second and third order that holds in them.

    Pictures are drawn when they are asked for. Facts that hold in fewer than 10 training images are not asked for and
    not told of. The test part ends with scenes that each show a combination held out of all training images.

    Args:
        images: scenes to learn from.
        test_images: scenes to ask for.
        unseen_images: scenes with a held-out combination, to ask for besides.
        size: height and width in pixels.
        scene_seed: draws the scenes; scene number i is the same however many there are.
    """
    for name, value in (("images", images), ("test_images", test_images)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if size < 32:
        raise ValueError(f"size must be >= 32 pixels for the shapes to be told apart, got {size}")
    parts = {"train": images, "test": test_images, "unseen": unseen_images}
    drawn = {part: draw_scenes(count, seed=scene_seed, part=part) for part, count in parts.items()}
    scenes = [scene for part in drawn.values() for scene in part]
    known = [facts_of(scene) for scene in scenes]
    names = _asked(known[:images], known[images + test_images :])
    column = {each: number for number, each in enumerate(names)}
    truth = torch.zeros(len(scenes), len(names), dtype=torch.bool)
    for row, of_scene in enumerate(known):
        truth[row, [column[each] for each in of_scene if each in column]] = True
    everything = LabelledDataset(Scenes(scenes, size), truth, [str(each) for each in names])
    order = torch.arange(len(scenes))
    shown = everything.truth.any(dim=1)  # a scene of rare facts alone tells nothing
    return Source(everything.subset(order[:images][shown[:images]]), everything.subset(order[images:][shown[images:]]))


def _asked(train: Sequence[tuple[Fact, ...]], unseen: Sequence[tuple[Fact, ...]]) -> list[Fact]:
    """The facts of enough training images, and those of the unseen scenes that no training image shows."""
    counts: dict[Fact, int] = {}
    for of_scene in train:
        for each in of_scene:
            counts[each] = counts.get(each, 0) + 1
    held_out = {each for of_scene in unseen for each in of_scene if each not in counts}
    frequent = {each for each, count in counts.items() if count >= min(FEWEST, len(train))}
    words = {part for each in frequent for part in zip(("s", "p", "o"), each.parts, strict=True)}
    known = {each for each in held_out if all(part in words for part in zip(("s", "p", "o"), each.parts, strict=True))}
    return sorted(frequent | known, key=lambda each: (each.order, each.parts))
