"""Ask a run on facts: images for a fact, facts for an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.image_paths import ImagesAt
from tripletmas.data.images import ImageFiles, find_images
from tripletmas.index.exact import ExactIndex
from tripletmas.models.embedding import embed
from tripletmas.objectives.facts.fact import parse_query
from tripletmas.objectives.facts.losses import FactLoss
from tripletmas.objectives.facts.scoring import fact_vectors, image_vectors
from tripletmas.objectives.facts.shown import names_of
from tripletmas.objectives.retrieval.shown import small
from tripletmas.report.figures import data_uri
from tripletmas.runs.experiment import Experiment

Found = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images to search.

    Attributes:
        names: the file of each image, or what it is called where it has none.
        known: (n, f) which facts hold of each; None where nobody says.
    """

    images: LabelledDataset
    names: tuple[str, ...]
    known: Tensor | None


def gallery_of(experiment: Experiment, after: int, folder: str | None) -> Gallery:
    """The test images of the tasks that are learned, or all images of a folder."""
    seen = experiment.stream[: after + 1]
    if folder is not None:
        names = find_images(folder)
        channels, size = experiment.stream[0].query.sample_shape[:2]
        files = ImageFiles(folder, names, size=size, channels=channels)
        return Gallery(_unlabelled(files), files.paths, None)
    images = concatenate([task.query for task in seen])
    return Gallery(images, names_of(images), images.truth)


def images_for(experiment: Experiment, gallery: Gallery, asked: Sequence[str], k: int) -> tuple[list[Found], list[str]]:
    """(for each fact that is asked for the k best images, notes).

    Raises:
        ValueError: for a query that is no fact, or names a part that no fact has.
    """
    language = _loss(experiment).language
    queries = [parse_query(text) for text in asked]
    encoded = [language.encode(parts) for parts in queries]
    matching = [language.matching(parts) for parts in queries]
    notes = [
        f"{text!r} is a combination that no fact of the run has"
        for text, facts in zip(asked, matching, strict=True)
        if not facts.any()
    ]
    vectors = fact_vectors(torch.stack([each for each, _ in encoded]), torch.stack([mask for _, mask in encoded]))
    embedded = _embedded(experiment, gallery.images)
    scores, rows = ExactIndex.over(image_vectors(embedded).contiguous(), normalize=False).search(
        vectors, min(k, len(embedded))
    )
    found = []
    for text, facts, own_scores, own_rows in zip(asked, matching, scores.tolist(), rows.tolist(), strict=True):
        neighbours = []
        for rank, (score, row) in enumerate(zip(own_scores, own_rows, strict=True), start=1):
            holds = None if gallery.known is None else bool((gallery.known[row] & facts).any())
            label = {None: None, True: "✓ shows it", False: "✗ does not"}[holds]
            neighbours.append({"rank": rank, "score": score, "label": label, "path": gallery.names[row]})
        found.append({"query": text, "pictured": False, "neighbours": neighbours})
    return found, notes


def facts_for(experiment: Experiment, images: Sequence[str], after: int, k: int) -> list[Found]:
    """For each image file the k best of the facts that are learned."""
    language = _loss(experiment).language
    learned = torch.tensor(sorted(label for task in experiment.stream[: after + 1] for label in task.classes))
    channels, size = experiment.stream[0].query.sample_shape[:2]
    embedded = _embedded(experiment, _unlabelled(ImagesAt(images, size=size, channels=channels)))
    vectors = fact_vectors(language.vectors[learned], language.mask[learned])
    scores, columns = ExactIndex.over(vectors, normalize=False).search(image_vectors(embedded), min(k, len(learned)))
    return [
        {
            "query": path,
            "neighbours": [
                {
                    "rank": rank,
                    "score": score,
                    "label": str(language.facts[int(learned[column])]),
                    "path": f"order {language.facts[int(learned[column])].order}",
                    "pictured": False,
                }
                for rank, (score, column) in enumerate(zip(own_scores, own_columns, strict=True), start=1)
            ],
        }
        for path, own_scores, own_columns in zip(images, scores.tolist(), columns.tolist(), strict=True)
    ]


def pictures_of(gallery: Gallery, found: Sequence[Found]) -> dict[str, str]:
    """name -> data URI of the images that were found and have no file."""
    if gallery.images.paths is not None or gallery.known is None:
        return {}
    shown = {each["path"] for of in found for each in of["neighbours"]}
    return {name: _data_uri(small(gallery.images[row][0])) for row, name in enumerate(gallery.names) if name in shown}


def _embedded(experiment: Experiment, images: LabelledDataset) -> Tensor:
    model = experiment.strategy.deployed(experiment.model)
    return embed(model, images, batch_size=experiment.training.eval_batch_size, progress=True).vectors


def _unlabelled(images: Sequence[Tensor]) -> LabelledDataset:
    return LabelledDataset(images, torch.zeros(len(images), dtype=torch.int64), ["image"])


def _loss(experiment: Experiment) -> FactLoss:
    if not isinstance(experiment.loss, FactLoss):
        raise ValueError("this run did not learn facts: --fact is for runs on facts or shapes-facts")
    return experiment.loss


def _data_uri(picture: Tensor) -> str:
    pixels = picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(content, "PNG")
    return data_uri(content.getvalue(), "png")
