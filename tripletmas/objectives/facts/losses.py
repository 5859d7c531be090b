"""Losses between images and the facts that hold of them.

They are called as metric losses are: raw embeddings (b, 3 dim), and labels (b, f) that say which facts hold of each
image. Facts stay where the language view has them: only the images' side is learned.

Shapes: b images of a batch, f facts, dim of one part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tripletmas.objectives.facts.fact import PARTS
from tripletmas.objectives.facts.language import LanguageView
from tripletmas.objectives.facts.scoring import fact_vectors, image_vectors


class FactLoss(nn.Module):
    """A loss that knows the language view of all facts of a stream.

    Attributes:
        vectors, mask: as the language view has them, on the device of the loss; not in its state dict, since the
            configuration makes them again.
    """

    vectors: Tensor
    mask: Tensor

    def __init__(self, language: LanguageView):
        super().__init__()
        self.language = language
        self.register_buffer("vectors", language.vectors, persistent=False)
        self.register_buffer("mask", language.mask, persistent=False)

    def parts_of(self, labels: Tensor) -> Tensor:
        """(b, 3) whether a fact of each image (b, f) has a subject, a predicate, an object."""
        return labels.float() @ self.mask.float() > 0

    def _pairs(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(image, fact) of all pairs that hold, after a look at the shapes."""
        expected = (len(embeddings), len(self.vectors))
        if labels.shape != expected or labels.dtype != torch.bool:
            raise ValueError(
                f"facts need labels of shape {expected}, true where a fact holds, got {labels.dtype} of "
                f"{tuple(labels.shape)}: use --data facts or shapes-facts"
            )
        if embeddings.shape[1] != self.vectors[0].numel():
            raise ValueError(f"embeddings must have length {self.vectors[0].numel()}, got {embeddings.shape[1]}")
        images, facts = labels.nonzero(as_tuple=True)
        if not len(images):
            raise ValueError("no fact holds of any image of the batch")
        return images, facts


class FactDistance(FactLoss):
    """The masked distance: the mean over pairs (image, fact) of 1/2 sum over the fact's parts of ||v - l||^2.

    v is the image's raw part, l the fact's; parts that a fact does not have cost nothing. An image of several facts is
    drawn to all of them, and comes to lie at their mean.

    Args:
        squared: false takes the mean over pairs of the sum of the distances themselves, without the 1/2, as the
            PyTorch port does.

    Source: Elhoseiny et al., Sherlock, AAAI 2017 (mhelhoseiny/sherlock, WeightedEuclideanLoss); not squared in
        lifelong_fact_learning by the authors of MAS.
    """

    def __init__(self, language: LanguageView, *, squared: bool = True):
        super().__init__(language)
        self.squared = squared

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        images, facts = self._pairs(embeddings, labels)
        parts = embeddings.unflatten(1, (len(PARTS), -1))
        distances = (parts[images] - self.vectors[facts]).square().sum(dim=2)
        if self.squared:
            return 0.5 * (distances * self.mask[facts]).sum() / len(images)
        # the root of exactly 0 has no gradient
        return (distances.clamp_min(1e-12).sqrt() * self.mask[facts]).sum() / len(images)


class FactContrastive(FactLoss):
    """Each image is to score higher with its own facts than with the other facts of the batch, and the other way round.

    The score is the one of the metrics: the mean over the fact's parts of the cosine. Candidates are the facts that
    hold of some image of the batch; what holds of an image besides is never its negative. The two directions count
    equally. It sees no raw length, and is 0 for a batch of one fact.

    Args:
        temperature: scores are divided by it: the smaller, the more the hardest negatives count.

    Source: the loss in each direction is SupCon (Khosla et al., NeurIPS 2020) of pytorch-metric-learning.
    """

    def __init__(self, language: LanguageView, *, temperature: float = 0.1):
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        from pytorch_metric_learning.distances import DotProductSimilarity  # here, since it takes a second
        from pytorch_metric_learning.losses import SupConLoss

        super().__init__(language)
        similarity = DotProductSimilarity(normalize_embeddings=False)
        self.contrast = SupConLoss(temperature=temperature, distance=similarity)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self._pairs(embeddings, labels)
        present = labels.any(dim=0)
        if int(present.sum()) < 2:
            return embeddings.sum() * 0.0  # nothing to tell apart, as in a last batch of few images
        holds = labels[:, present]
        images = image_vectors(embeddings)
        facts = fact_vectors(self.vectors[present], self.mask[present])
        return 0.5 * (self._one_way(images, facts, holds) + self._one_way(facts, images, holds.T))

    def _one_way(self, queries: Tensor, candidates: Tensor, holds: Tensor) -> Tensor:
        pairs = (*holds.nonzero(as_tuple=True), *(~holds).nonzero(as_tuple=True))
        return self.contrast(queries, indices_tuple=pairs, ref_emb=candidates)
