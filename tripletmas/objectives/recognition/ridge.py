"""Recognition without a task label: a ridge classifier on sums over the tasks, which cannot forget what was summed.

Of each task's training data the second moments of their features, H^T H, and the products with the classes, H^T Y, are
added to those of earlier tasks; no old data is needed. A class that is learned again adds to its own products. The
classifier is W = (H^T H + strength I)^-1 H^T Y, as if all
tasks had been fitted at once. That is exact while the model stands still (pretrained, or frozen after what it learned).
A model that goes on learning leaves the sums of earlier tasks stale: they were made by the model of their time, and
nothing moves them. The scores say what that costs.

Features are relu(x R) of the embedding x at unit length, R a fixed random matrix of standard normal entries, the same
for every run of these sizes; or x itself. There is no intercept.

Shapes: n samples, c classes, m features.
Source: McDonnell et al., RanPAC, NeurIPS 2023, where x has the length that the network gives it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tripletmas.basics.weights import Params
from tripletmas.data.tasks import Stream, classes_of
from tripletmas.models.embedding import Embeddings

STRENGTHS = tuple(10.0**exponent for exponent in range(-8, 9))
HELD_OUT = 5  # one in so many samples of a class judges the strengths
_ROWS = 4096  # features that are in memory at once


class RidgeClassifier:
    """The sums over the tasks seen so far, in float64, and the classifier that they give.

    Attributes:
        labels: (c,) the classes, in the order in which they were learned.
        gram: (m, m) the sum of h h^T over all samples.
        products: (m, c) the sum of h y^T, y one at the sample's class and zero elsewhere.
        strength: of the ridge, chosen on the last task.

    Args:
        random_dim: m, the random dimensions; 0 for the embedding itself. Memory is 8 m^2 bytes.
    """

    def __init__(self, random_dim: int):
        if random_dim < 0:
            raise ValueError(f"ridge_dim must be >= 1, or 0 for the embedding itself, got {random_dim}")
        self.random_dim = random_dim
        self.labels = torch.empty(0, dtype=torch.int64)
        self.gram = torch.empty(0, 0, dtype=torch.float64)
        self.products = torch.empty(0, 0, dtype=torch.float64)
        self.strength = math.nan
        self._weights: Tensor | None = None

    def after_task(self, embedded: Embeddings, seen: Stream) -> None:
        """Add the last of the tasks seen, given its training data as the present model embeds them."""
        classes = torch.tensor(seen[-1].classes)
        gram, products = torch.zeros(()), torch.zeros(())
        for vectors, labels in zip(embedded.vectors.split(_ROWS), embedded.labels.split(_ROWS), strict=True):
            h = random_features(vectors, self.random_dim)
            gram, products = gram + h.T @ h, products + h.T @ one_hot(labels, classes)
        self.strength = choose_strength(embedded, classes, self.random_dim)
        self.gram = self.gram + gram if len(self.labels) else gram
        self.products = _with_new(self.products, self.labels, products, classes)
        self.labels = torch.tensor(classes_of(seen))
        self._weights = None

    def predict(self, vectors: Tensor) -> Tensor:
        """The label of the class with the largest answer to each embedding, (n,)."""
        if self._weights is None:
            self._weights = _solve(self.gram, self.products, self.strength)
        return self.labels[(random_features(vectors, self.random_dim) @ self._weights).argmax(dim=1)]

    def state_dict(self) -> Params:
        """All that resuming needs."""
        strength = torch.tensor(self.strength, dtype=torch.float64)
        return {"ridge/gram": self.gram, "ridge/products": self.products, "ridge/strength": strength}

    def load_state_dict(self, state: Params, stream: Stream) -> None:
        """Take over what `state_dict` gave, for the classes of the stream's first tasks.

        The stream may have grown since: then a class may have another label than it had.
        """
        self.gram, self.products = state["ridge/gram"], state["ridge/products"]
        self.strength = float(state["ridge/strength"])
        self.labels = torch.tensor(classes_of(stream)[: self.products.shape[1]], dtype=torch.int64)
        self._weights = None


def random_features(vectors: Tensor, random_dim: int) -> Tensor:
    """(n, m) float64 of embeddings (n, dim); with random_dim=0 their directions, (n, dim)."""
    units = functional.normalize(vectors.double(), dim=1)
    if not random_dim:
        return units
    generator = torch.Generator().manual_seed(0)
    return (units @ torch.randn(units.shape[1], random_dim, generator=generator, dtype=torch.float64)).relu()


def one_hot(labels: Tensor, classes: Tensor) -> Tensor:
    """(n, c) float64: one at each sample's class."""
    return (labels[:, None] == classes).double()


def choose_strength(embedded: Embeddings, classes: Tensor, random_dim: int) -> float:
    """Of STRENGTHS the one that fits held-out samples of a task best, fitted to the others; by mean squared error.

    Held out is the last fifth of each class, at least one sample where there are two; 1 where nothing can be held out.
    """
    held = held_out(embedded.labels)
    if not held.any():
        return 1.0
    h, y = random_features(embedded.vectors, random_dim), one_hot(embedded.labels, classes)
    fitted = h[~held]
    if len(fitted) < fitted.shape[1]:  # the same answers by way of the inner products of samples, which are fewer
        asked, square, right = h[held] @ fitted.T, fitted @ fitted.T, y[~held]
    else:
        asked, square, right = h[held], fitted.T @ fitted, fitted.T @ y[~held]
    errors = [float((asked @ _solve(square, right, s) - y[held]).square().mean()) for s in STRENGTHS]
    return STRENGTHS[min(range(len(errors)), key=errors.__getitem__)]


def held_out(labels: Tensor) -> Tensor:
    """(n,) bool: the last fifth of each class, at least one where a class has two."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        if len(rows) > 1:
            held[rows[-max(1, len(rows) // HELD_OUT) :]] = True
    return held


def _solve(square: Tensor, right: Tensor, strength: float) -> Tensor:
    """(square + strength I)^-1 right."""
    return torch.linalg.solve(square + strength * torch.eye(len(square), dtype=square.dtype), right)


def _with_new(products: Tensor, labels: Tensor, new: Tensor, classes: Tensor) -> Tensor:
    """The products (m, c) of `labels`, to which those of a task's classes are added: to its own column, or as a new."""
    if not len(labels):
        return new
    again = torch.isin(classes, labels)
    columns = (labels[:, None] == classes[again]).long().argmax(dim=0)
    return torch.cat([products.index_add(1, columns, new[:, again]), new[:, ~again]], dim=1)
