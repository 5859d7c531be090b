"""Score how well facts find their images, and images their facts.

The score of an image and a fact is the mean, over the parts that the fact has, of the cosine between the image's part
and the fact's. Sherlock's order-aware scoring, too, compares only the parts that a fact has. With an image's parts each
of unit length, and a fact's divided by their number, this mean is one inner product, so that one index of images serves
facts of all orders and queries with wildcards, and one index of facts serves all images. All scores lie in [-1, 1].

Equal scores are ordered by position, smallest first (see `ExactIndex`): the values are the same on every machine, but
with ties, such as of an embedding that collapsed, they depend on the order of the images and of the facts.

Shapes: n images, f facts, c candidates, b queries of one block, k ranks, dim of one part.
Source: Elhoseiny et al., Sherlock, AAAI 2017; their code takes the cosine, inner product or distance of the whole
    vectors, where a part counts by its length; here all parts of a fact count the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tripletmas.index.base import prepare, queries_per_block, unit
from tripletmas.index.exact import ExactIndex
from tripletmas.objectives import metrics
from tripletmas.objectives.facts.fact import PARTS

_IMAGES_WITHIN = (10, 100)  # ranks of the gallery of images
_FACTS_WITHIN = (1, 5, 10)
_ORDERS = (1, 2, 3)


@dataclass(frozen=True, eq=False)
class FactScores:
    """What `score_facts` found.

    Args:
        values: metric -> mean over the facts or images that have a value; nan if none has. "NAME_1", "_2", "_3" are of
            the facts of one order.
        per_fact: language to image, metric -> (f,) float64, nan for facts that are not asked for or have no image.
        per_image: image to language, metric -> (n,) float64, nan for images that do not ask or have no asked fact (of
            that order).
        num_facts: the facts that are asked for, with or without an image.
        num_facts_without_image: those that are true of no image; no mean counts them.
        num_images: the images that ask, with or without a fact.
        num_images_without_fact: those of which no asked fact is true; no mean of images counts them. They are in the
            gallery all the same.
    """

    values: dict[str, float]
    per_fact: dict[str, Tensor]
    per_image: dict[str, Tensor]
    num_facts: int
    num_facts_without_image: int
    num_images: int
    num_images_without_fact: int


def image_vectors(raw: Tensor) -> Tensor:
    """Raw embeddings (n, 3 dim) with each of their three parts scaled to unit length; a part of zeros stays."""
    if raw.ndim != 2 or raw.shape[1] % len(PARTS):
        raise ValueError(f"images must have shape (n, 3 dim), got {tuple(raw.shape)}")
    return unit(raw.reshape(len(raw) * len(PARTS), raw.shape[1] // len(PARTS))).reshape(raw.shape)


def fact_vectors(vectors: Tensor, mask: Tensor) -> Tensor:
    """(f, 3 dim): the parts (f, 3, dim) that a fact has (f, 3), divided by their number, and zeros for the others.

    The product with `image_vectors` is the mean of cosines, if each part has unit length; this is not checked.
    """
    if vectors.ndim != 3 or vectors.shape[1] != len(PARTS):
        raise ValueError(f"vectors must have shape (f, 3, dim), got {tuple(vectors.shape)}")
    _check_bool("mask", mask, tuple(vectors.shape[:2]))
    empty = (~mask.any(dim=1)).nonzero()
    if len(empty):
        raise ValueError(f"a fact must have at least one part, fact {int(empty[0])} has none in the mask")
    parts = vectors.masked_fill(~mask[:, :, None], 0.0) / mask.sum(dim=1)[:, None, None]
    return parts.flatten(1)


def score_facts(
    images: Tensor,
    truth: Tensor,
    vectors: Tensor,
    mask: Tensor,
    *,
    asked: Tensor | None = None,
    candidates: Tensor | None = None,
    of_images: Tensor | None = None,
) -> FactScores:
    """mAP of the images that facts find, and top@k, hit@k and MRR of the facts that images find; all exact.

    Language to image: each asked fact that is true of an image ranks all n images, to the last. "map" is the mean over
    facts of average precision, "map@10" and "map@100" of its first ranks, divided by min(R, k); "sherlock_map@k" is
    inflated, and only for comparison with the authors' numbers (see `metrics`). "map_1" and the like are means over the
    facts of that order.

    Image to language: each image of `of_images` of which an asked fact is true ranks the candidates. Its true facts
    that are not asked for, such as those of another task, are taken out of its ranking: they are neither found nor in
    the way. "top@k" is the share of its true asked facts within rank k + (their number - 1), mean over images; "hit@1"
    whether the first is true, "mrr" the reciprocal rank of the first true one. "top@5_1" and the like are, of each
    image, the share of its true facts of that order, with the tolerance of all its true facts.

    Args:
        images: (n, 3 dim) raw embeddings; an image twice counts twice.
        truth: (n, f) bool, which facts are true of each image.
        vectors, mask: (f, 3, dim) of unit length in each part, and (f, 3) bool, which parts a fact has.
        asked: (f,) bool. None: all.
        candidates: (f,) bool, the facts that an image chooses among; must hold those asked for. None: all.
        of_images: (n,) bool, the images that ask; the gallery is always all of them. None: all.

    Raises:
        ValueError: if shapes or types do not fit; naming the row of an image or fact that is not finite, a fact without
            any part, or an asked fact that is not a candidate.
    """
    facts = fact_vectors(vectors, mask)
    facts = prepare(facts, facts.shape[1], "facts", normalize=False)
    raw = prepare(images, facts.shape[1], "images", normalize=False)
    _check_bool("truth", truth, (len(images), len(facts)))
    asked, candidates = _rows("asked", asked, len(facts)), _rows("candidates", candidates, len(facts))
    of_images = _rows("of_images", of_images, len(images))
    outside = (asked & ~candidates).nonzero()
    if len(outside):
        raise ValueError(f"every fact that is asked for must be a candidate, fact {int(outside[0])} is not")

    gallery, order = image_vectors(raw).contiguous(), mask.sum(dim=1)
    shown, answerable = truth.any(dim=0), of_images & truth[:, asked].any(dim=1)
    per_fact = _facts_find_images(gallery, facts, truth, (asked & shown).nonzero().flatten())
    per_image = _images_find_facts(gallery, facts, truth, answerable.nonzero().flatten(), asked, candidates, order)
    by_order = {f"{name}_{of}": value[order == of] for name, value in per_fact.items() for of in _ORDERS}
    return FactScores(
        {name: metrics.mean_of_answered(value) for name, value in (per_fact | per_image | by_order).items()},
        per_fact,
        per_image,
        num_facts=int(asked.sum()),
        num_facts_without_image=int((asked & ~shown).sum()),
        num_images=int(of_images.sum()),
        num_images_without_fact=int((of_images & ~answerable).sum()),
    )


def _facts_find_images(gallery: Tensor, facts: Tensor, truth: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """metric -> (f,), of the facts in these rows; nan for the others."""
    kinds = {"map": metrics.average_precision_at_k, "sherlock_map": metrics.sherlock_average_precision_at_k}
    values = metrics.unanswered(["map", *(f"{kind}@{k}" for kind in kinds for k in _IMAGES_WITHIN)], len(facts))
    index = ExactIndex.over(gallery, normalize=False)
    depth = max(len(gallery), *_IMAGES_WITHIN)
    for block in rows.split(queries_per_block(depth)):
        _, positions = index.search(facts[block], depth)
        true = truth[:, block].T.contiguous()
        relevant = true.gather(1, positions.clamp_min(0)) & (positions >= 0)
        count = true.sum(dim=1)
        values["map"][block] = metrics.average_precision(relevant, count)
        for kind, metric in kinds.items():
            for k in _IMAGES_WITHIN:
                values[f"{kind}@{k}"][block] = metric(relevant, count, k)
    return values


def _images_find_facts(
    gallery: Tensor, facts: Tensor, truth: Tensor, rows: Tensor, asked: Tensor, candidates: Tensor, order: Tensor
) -> dict[str, Tensor]:
    """metric -> (n,), of the images in these rows; nan for the others."""
    names = [f"top@{k}{of}" for k in _FACTS_WITHIN for of in ("", *(f"_{order}" for order in _ORDERS))]
    values = metrics.unanswered(["hit@1", "mrr", *names], len(gallery))
    if not len(rows):
        return values  # there may be no candidates to search
    columns = candidates.nonzero().flatten()
    asked, order = asked[columns], order[columns]
    index = ExactIndex.over(facts[columns], normalize=False)
    depth = len(columns) + max(_FACTS_WITHIN)  # deep enough for the tolerance, if all candidates are true
    for block in rows.split(queries_per_block(depth)):
        _, positions = index.search(gallery[block], len(columns))
        true = truth[block][:, columns]
        target = torch.where(true & asked, order, 0)  # of which order a true fact is, 0 for all that are not
        ranked = metrics.without(target.gather(1, positions), (true & ~asked).gather(1, positions), depth)
        relevant, count = ranked > 0, (target > 0).sum(dim=1)
        values["hit@1"][block] = metrics.recall_at_k(relevant, count, 1)
        values["mrr"][block] = metrics.reciprocal_rank(relevant, count)
        for k in _FACTS_WITHIN:
            values[f"top@{k}"][block] = metrics.top_k_detection(relevant, count, k)
            for of in _ORDERS:
                own = (target == of).sum(dim=1)
                values[f"top@{k}_{of}"][block] = metrics.top_k_detection(ranked == of, own, k, num_true=count)
    return values


def _rows(name: str, chosen: Tensor | None, size: int) -> Tensor:
    """All, where none are named."""
    chosen = torch.ones(size, dtype=torch.bool) if chosen is None else chosen
    _check_bool(name, chosen, (size,))
    return chosen


def _check_bool(name: str, given: Tensor, shape: tuple[int, ...]) -> None:
    if given.dtype != torch.bool or given.shape != shape:
        raise ValueError(f"{name} must be bool of shape {shape}, got {given.dtype} of {tuple(given.shape)}")
