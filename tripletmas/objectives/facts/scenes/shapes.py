"""shapes-facts: drawn scenes and the facts that hold in them; nothing to download."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source
from tripletmas.objectives.facts.fact import Fact, by_order, truth_of
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
    if min(images, test_images) < 1:
        raise ValueError(f"images and test_images must be >= 1, got {images} and {test_images}")
    if size < 32:
        raise ValueError(f"size must be >= 32 pixels for the shapes to be told apart, got {size}")
    parts = {"train": images, "test": test_images, "unseen": unseen_images}
    scenes = [scene for part, count in parts.items() for scene in draw_scenes(count, seed=scene_seed, part=part)]
    known = [facts_of(scene) for scene in scenes]
    columns = _asked(known[:images], known[images + test_images :])
    truth = truth_of(known, columns)
    everything = LabelledDataset(Scenes(scenes, size), truth, [str(each) for each in columns])
    rows = truth.any(dim=1).nonzero().flatten()  # a scene of rare facts alone tells nothing
    return Source(everything.subset(rows[rows < images]), everything.subset(rows[rows >= images]))


def _asked(train: Sequence[tuple[Fact, ...]], unseen: Sequence[tuple[Fact, ...]]) -> list[Fact]:
    """The facts of enough training images, and those of the unseen scenes that no training image shows."""
    counts = Counter(chain.from_iterable(train))
    frequent = {each for each, count in counts.items() if count >= min(FEWEST, len(train))}
    words = {word for each in frequent for word in each.words}
    new = {each for each in chain.from_iterable(unseen) if words.issuperset(each.words)} - counts.keys()
    return by_order(frequent | new)
