"""Ask a model that has learned facts: images for a fact, facts for an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.images import ImageFiles, find_images, preparation_of, thumbnail
from tripletmas.data.tasks import Stream
from tripletmas.index.exact import ExactIndex
from tripletmas.objectives.facts.fact import parse_query
from tripletmas.objectives.facts.language import LanguageView
from tripletmas.objectives.facts.objective import Facts
from tripletmas.objectives.facts.scoring import fact_vectors, image_vectors
from tripletmas.objectives.facts.shown import names_of
from tripletmas.objectives.grid import Grid, Hit, Row
from tripletmas.objectives.objective import Objective

Embed = Callable[[LabelledDataset], Tensor]  # images -> (n, dim) raw embeddings


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images to search.

    Attributes:
        names: the file of each image, or what it is called where it has none.
        known: (n, f) which facts hold of each; None where nobody says.
        files: whether the images are files of these names.
    """

    images: LabelledDataset
    names: tuple[str, ...]
    known: Tensor | None
    files: bool


def language_of(objective: Objective) -> LanguageView:
    """The facts that an objective is about.

    Raises:
        ValueError: if it is about none.
    """
    if not isinstance(objective, Facts):
        raise ValueError("this run did not learn facts: --fact is for runs on facts or shapes-facts")
    return objective.language


def gallery_of(learned: Stream, folder: str | None) -> Gallery:
    """The test images of these tasks, or all images of a folder."""
    if folder is not None:
        files = ImageFiles(folder, find_images(folder), preparation_of(learned[0].query))
        return Gallery(_unlabelled(files), files.paths, None, True)
    images = concatenate([task.query for task in learned])
    return Gallery(images, names_of(images), images.truth, images.paths is not None)


def images_for(
    language: LanguageView, embed: Embed, gallery: Gallery, asked: Sequence[str], k: int
) -> tuple[Grid, list[str]]:
    """(for each fact that is asked for the k best images, notes).

    Raises:
        ValueError: for a query that is no fact, or names a part that no fact has.
    """
    queries = [parse_query(text) for text in asked]
    parts, masks = zip(*(language.encode(query) for query in queries), strict=True)
    matching = [language.matching(query) for query in queries]
    notes = [
        f"{text!r} is a combination that no fact of the run has"
        for text, facts in zip(asked, matching, strict=True)
        if not facts.any()
    ]
    vectors = image_vectors(embed(gallery.images)).contiguous()
    index = ExactIndex.over(vectors, normalize=False)
    scores, found = index.search(fact_vectors(torch.stack(parts), torch.stack(masks)), min(k, len(vectors)))

    def hit(image: int, score: float, facts: Tensor) -> Hit:
        if gallery.known is None:
            return Hit(gallery.names[image], score)
        right = bool((gallery.known[image] & facts).any())
        return Hit(gallery.names[image], score, "shows it" if right else "does not", right)

    rows = []
    for text, facts, images, near in zip(asked, matching, found.tolist(), scores.tolist(), strict=True):
        hits = (hit(image, score, facts) for image, score in zip(images, near, strict=True))
        rows.append(Row(text, (tuple(hits),)))
    shown = found.unique().tolist()
    pictures = {gallery.names[i]: None if gallery.files else thumbnail(gallery.images[i][0]) for i in shown}
    return Grid(("",), tuple(rows), pictures=pictures), notes


def facts_for(language: LanguageView, embed: Embed, learned: Stream, images: Sequence[str], k: int) -> Grid:
    """For each image file the k best of the facts that these tasks have."""
    columns = torch.tensor(sorted(label for task in learned for label in task.classes))
    index = ExactIndex.over(fact_vectors(language.vectors[columns], language.mask[columns]), normalize=False)
    asked = image_vectors(embed(_unlabelled(ImageFiles.at(images, preparation_of(learned[0].query)))))
    scores, found = index.search(asked, min(k, len(columns)))
    rows = []
    for path, near, facts in zip(images, scores.tolist(), columns[found].tolist(), strict=True):
        best = ((score, language.facts[fact]) for score, fact in zip(near, facts, strict=True))
        rows.append(Row(path, (tuple(Hit(f"order {fact.order}", score, str(fact)) for score, fact in best),)))
    return Grid(("",), tuple(rows), pictures=dict.fromkeys(images))


def _unlabelled(images: Sequence[Tensor]) -> LabelledDataset:
    return LabelledDataset(images, torch.zeros(len(images), dtype=torch.int64), ["image"])
