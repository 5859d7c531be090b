"""Slow, literal twins of what the library computes fast: Python loops over the definitions, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

# --- retrieval -------------------------------------------------------------------------------------------------------

TIE = 1e-6  # float32 does not tell cosines apart that differ by less


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def ranked_relevance(
    query: Sequence[float],
    label: int,
    vectors: Sequence[Sequence[float]],
    labels: Sequence[int],
    itself: int,
    best: bool,
) -> list[bool]:
    """Whether each item of the gallery is relevant, by falling cosine, without the item at position `itself`.

    Scores within TIE of their neighbour are one group; inside it the relevant items come first if `best`, else last.
    """
    pairs = [
        (cosine(query, v), y == label) for i, (v, y) in enumerate(zip(vectors, labels, strict=True)) if i != itself
    ]
    pairs.sort(key=lambda pair: -pair[0])
    groups: list[list[bool]] = []
    previous = math.inf
    for score, relevant in pairs:
        if not groups or previous - score > TIE:
            groups.append([])
        groups[-1].append(relevant)
        previous = score
    return [relevant for group in groups for relevant in sorted(group, reverse=best)]


def nearest(
    query: Sequence[float], vectors: Sequence[Sequence[float]], metric: str, k: int
) -> tuple[list[float], list[int]]:
    """Scores and positions of the k nearest by the exact score, equal scores by position; vectors as they are compared.

    A score is the inner product or the negative squared distance, its terms summed without error and rounded once.
    """
    if metric == "inner_product":
        scores = [math.fsum(a * b for a, b in zip(query, vector, strict=True)) for vector in vectors]
    else:
        scores = [-math.fsum((a - b) * (a - b) for a, b in zip(query, vector, strict=True)) for vector in vectors]
    order = sorted(range(len(vectors)), key=lambda position: (-scores[position], position))[:k]
    return [scores[position] for position in order], order


def recall_at_k(ranking: Sequence[bool], k: int) -> float:
    return 1.0 if any(ranking[:k]) else 0.0


def left_out_recalls(
    parts: Sequence[tuple[Sequence[Sequence[float]], Sequence[int], Sequence[int]]],
    queries: Sequence[Sequence[Sequence[float]]],
) -> list[float]:
    """Of each part, recall@1 of its queries, which stand for rows of its and do not find these; nan of none.

    Args:
        parts: vectors, labels and rows of each; all vectors together are searched.
        queries: of each part, one for each row.
    """
    vectors = [vector for part, _, _ in parts for vector in part]
    labels = [label for _, of, _ in parts for label in of]
    found, start = [], 0
    for (part, of, rows), asked in zip(parts, queries, strict=True):
        hits = [
            recall_at_k(ranked_relevance(query, of[row], vectors, labels, start + row, best=False), 1)
            for row, query in zip(rows, asked, strict=True)
            if labels.count(of[row]) > 1
        ]
        found.append(fmean(hits) if hits else math.nan)
        start += len(part)
    return found


def r_precision(ranking: Sequence[bool]) -> float:
    num_relevant = sum(ranking)
    return sum(ranking[:num_relevant]) / num_relevant


def sum_of_precisions(ranking: Sequence[bool]) -> float:
    """At the ranks of relevant items."""
    return sum(sum(ranking[:rank]) / rank for rank, hit in enumerate(ranking, start=1) if hit)


def map_at_r(ranking: Sequence[bool]) -> float:
    return sum_of_precisions(ranking[: sum(ranking)]) / sum(ranking)


def average_precision(ranking: Sequence[bool]) -> float:
    """Of a list that holds all relevant items."""
    return sum_of_precisions(ranking) / sum(ranking)


def average_precision_at_k(ranking: Sequence[bool], count: int, k: int) -> float:
    return sum_of_precisions(ranking[:k]) / min(count, k)


def sherlock_average_precision_at_k(ranking: Sequence[bool], k: int) -> float:
    hits = sum(ranking[:k])
    return sum_of_precisions(ranking[:k]) / hits if hits else 0.0


def top_k_detection(ranks: Sequence[int], num_true: int, k: int) -> float:
    """Ranks, from 1, of the true facts that are averaged over."""
    return sum(rank <= k + num_true - 1 for rank in ranks) / len(ranks)


def reciprocal_rank(ranking: Sequence[bool]) -> float:
    return 1 / (list(ranking).index(True) + 1)


def reciprocal_rank_at_k(ranking: Sequence[bool], k: int) -> float:
    return reciprocal_rank(ranking) if any(ranking[:k]) else 0.0


def ndcg_at_k(ranking: Sequence[bool], k: int) -> float:
    best = sorted(ranking, reverse=True)
    gains = [sum(is_right / math.log2(place + 2) for place, is_right in enumerate(of[:k])) for of in (ranking, best)]
    return gains[0] / gains[1]


def retrieval_metrics(ranking: Sequence[bool], ks: Sequence[int]) -> dict[str, float]:
    """Every metric of one query, of the ranking of the *whole* gallery; nan where nothing is relevant."""
    names = [*(f"recall@{k}" for k in ks), "r_precision", "map@r", "mrr", "mrr@10", "ndcg@10"]
    if not any(ranking):
        return dict.fromkeys(names, math.nan)
    values = [*(recall_at_k(ranking, k) for k in ks), r_precision(ranking), map_at_r(ranking), reciprocal_rank(ranking)]
    values += [reciprocal_rank_at_k(ranking, 10), ndcg_at_k(ranking, 10)]
    return dict(zip(names, values, strict=True))


# --- facts -----------------------------------------------------------------------------------------------------------


def mean_average_precision_of_all_orders(size: int, count: int) -> float:
    """Over all permutations of `size` images of which the first `count` are relevant."""
    return fmean(average_precision([item < count for item in order]) for order in permutations(range(size)))


def fact_score(image: Sequence[float], fact: Sequence[Sequence[float]], mask: Sequence[bool]) -> float:
    """The mean over the fact's parts of the cosine."""
    dim = len(fact[0])
    own = [image[start : start + dim] for start in range(0, len(image), dim)]
    return fmean(cosine(mine, part) for mine, part, there in zip(own, fact, mask, strict=True) if there)


def score_facts(
    scores: Sequence[Sequence[float]],
    truth: Sequence[Sequence[bool]],
    orders: Sequence[int],
    asked: Sequence[bool],
    candidates: Sequence[bool],
    of_images: Sequence[bool],
) -> dict[str, float]:
    """All values, from the scores (n, f); equal scores by position."""
    n, f = len(truth), len(orders)
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for fact in range(f):
        count = sum(truth[image][fact] for image in range(n))
        if not asked[fact] or not count:
            continue
        ranking = sorted(range(n), key=lambda image: (-scores[image][fact], image))
        relevant = [truth[image][fact] for image in ranking]
        for suffix in ("", f"_{orders[fact]}"):
            add(f"map{suffix}", average_precision(relevant))
            for k in (10, 100):
                add(f"map@{k}{suffix}", average_precision_at_k(relevant, count, k))
                add(f"sherlock_map@{k}{suffix}", sherlock_average_precision_at_k(relevant, k))

    for image in range(n):
        true = [fact for fact in range(f) if truth[image][fact] and asked[fact]]
        if not of_images[image] or not true:
            continue
        ranking = [
            fact
            for fact in sorted(range(f), key=lambda fact: (-scores[image][fact], fact))
            if candidates[fact] and (asked[fact] or not truth[image][fact])
        ]
        rank = {fact: ranking.index(fact) + 1 for fact in true}
        add("hit@1", float(min(rank.values()) == 1))
        add("mrr", 1 / min(rank.values()))
        for k in (1, 5, 10):
            add(f"top@{k}", top_k_detection(list(rank.values()), len(true), k))
            for order in (1, 2, 3):
                own = [rank[fact] for fact in true if orders[fact] == order]
                if own:
                    add(f"top@{k}_{order}", top_k_detection(own, len(true), k))
    return {name: sum(values) / len(values) for name, values in found.items()}


# --- forgetting ------------------------------------------------------------------------------------------------------


def average(matrix: Tensor) -> float:
    tasks = len(matrix)
    return sum(float(matrix[tasks - 1, i]) for i in range(tasks)) / tasks


def forgetting_per_task(matrix: Tensor) -> list[float]:
    last = len(matrix) - 1
    return [max(float(matrix[row, i]) for row in range(i, last)) - float(matrix[last, i]) for i in range(last)]


def backward_transfer(matrix: Tensor) -> float:
    last = len(matrix) - 1
    return sum(float(matrix[last, i]) - float(matrix[i, i]) for i in range(last)) / last


def forward_transfer(matrix: Tensor, baseline: Tensor) -> float:
    tasks = len(matrix)
    return sum(float(matrix[i - 1, i]) - float(baseline[i]) for i in range(1, tasks)) / (tasks - 1)


def plasticity(matrix: Tensor) -> float:
    return sum(float(matrix[k, k]) for k in range(len(matrix))) / len(matrix)


def intransigence(matrix: Tensor, joint: Tensor) -> float:
    total = 0.0
    for k in range(len(matrix)):
        total += float(joint[k, k]) - float(matrix[k, k])
    return total / len(matrix)


def paired_difference(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, int, int, int]:
    """(mean, sample deviation, how often the first is greater, equal, smaller) of the seeds that both have."""
    differences = [one - other for one, other in pairs]
    mean = sum(differences) / len(differences)
    variance = sum((difference - mean) ** 2 for difference in differences) / (len(differences) - 1)
    greater = len([1 for one, other in pairs if one > other])
    smaller = len([1 for one, other in pairs if one < other])
    return mean, math.sqrt(variance), greater, len(pairs) - greater - smaller, smaller


# --- importance ------------------------------------------------------------------------------------------------------


def per_sample_sums(
    model: nn.Module,
    samples: Iterable[Any],
    scalar: Callable[[Tensor], Tensor],
    *,
    power: int = 1,
    output: Callable[[nn.Module, Any], Tensor] = lambda model, x: model(x),
) -> dict[str, Tensor]:
    """Sum of |gradient|^power: one backward pass for each sample (a batch of one)."""
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for sample in samples:
        model.zero_grad()
        scalar(output(model, sample)).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad.abs() ** power
    model.zero_grad()
    return total


def mas_importance(
    model: nn.Module, samples: Sequence[Any], output: Callable[[nn.Module, Any], Tensor] = lambda model, x: model(x)
) -> dict[str, Tensor]:
    """Omega by its definition: the mean over samples of the absolute gradient of the squared length."""
    samples = list(samples)

    def squared_length(embedding: Tensor) -> Tensor:
        return torch.stack([value * value for value in embedding.flatten()]).sum()

    sums = per_sample_sums(model, samples, squared_length, output=output)
    return {name: value / len(samples) for name, value in sums.items()}


def sums_of_products(left: Tensor, right: Tensor, power: int) -> Tensor:
    """sum_k |left_k^T right_k|^power in float64, of (n, positions, rows) and (n, positions, columns)."""
    total = torch.zeros(left.shape[2], right.shape[2], dtype=torch.float64)
    for a, b in zip(left.double(), right.double(), strict=True):
        total += (a.t() @ b).abs() ** power
    return total


def sums_of_gradients(
    function: Callable[[Tensor, Tensor], Tensor], images: Tensor, weight: Tensor, grad: Tensor, power: int
) -> Tensor:
    """sum_k |d (grad_k . function(images_k, weight)) / d weight|^power in float64, of the images (n, repeats, ...)."""
    total = torch.zeros_like(weight, dtype=torch.float64)
    for inputs, outer in zip(images.double(), grad.double(), strict=True):
        own = weight.detach().double().requires_grad_()
        total += torch.autograd.grad((function(inputs, own) * outer).sum(), own)[0].abs() ** power
    return total


def fisher_importance(
    model: nn.Module, samples: Tensor, labels: list[int], mode: str, seed: int = 0
) -> dict[str, Tensor]:
    """(1/n) sum_k of p_y (d log p_y(x_k) / d theta)^2: a backward pass for each sample, and for each class in "all"."""
    model.eval()
    draws = torch.rand(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, label, draw in zip(samples, labels, draws, strict=True):
        numbers = model(x[None])[0].tolist()
        chances = [math.exp(value) / sum(map(math.exp, numbers)) for value in numbers]
        if mode == "sampled":
            label = next(y for y in range(len(chances)) if draw < sum(chances[: y + 1]))
        for y in range(len(chances)) if mode == "all" else [label]:
            weight = chances[y] if mode == "all" else 1.0

            def log_probability(logits: Tensor, y: int = y) -> Tensor:
                return logits[0, y] - logits[0].exp().sum().log()

            for name, squares in per_sample_sums(model, [x[None]], log_probability, power=2).items():
                total[name] += weight * squares
    return {name: value / len(samples) for name, value in total.items()}


# --- drift -----------------------------------------------------------------------------------------------------------


def compensated(
    vector: Sequence[float], before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], sigma: float
) -> list[float]:
    """SDC by its sums: the vector plus the weighted mean of how the samples moved."""
    total, moved = 0.0, [0.0] * len(vector)
    for old, new in zip(before, after, strict=True):
        weight = math.exp(-sum((a - b) ** 2 for a, b in zip(old, vector, strict=True)) / (2 * sigma**2))
        total += weight
        moved = [m + weight * (n - o) for m, n, o in zip(moved, new, old, strict=True)]
    return [v + m / total for v, m in zip(vector, moved, strict=True)]


def rotated(x: Tensor, y: Tensor, vectors: Tensor, held: float, *, shift: bool) -> Tensor:
    """Procrustes by Newton's iteration R <- (R + R^-T) / 2, whose limit is the orthogonal factor of where it starts."""
    centre, target = (x.mean(dim=0), y.mean(dim=0)) if shift else (0 * x[0], 0 * x[0])
    dim = x.shape[1]
    scale = float((x - centre).square().sum()) / dim
    rotation = held * scale * torch.eye(dim, dtype=x.dtype)
    for a, b in zip(x - centre, y - target, strict=True):
        rotation = rotation + torch.outer(a, b)
    for _ in range(200):
        rotation = (rotation + torch.linalg.inv(rotation).T) / 2
    return torch.stack([(vector - centre) @ rotation + target for vector in vectors])


def shrunk_drift(x: Tensor, y: Tensor, vectors: Tensor, ridge: float, alpha: float) -> Tensor:
    """The ridge solution on rows appended for the ridge, column by column, then w of each vector as it was."""
    size, dim = x.shape
    rows = torch.cat([x, math.sqrt(ridge * float(x.square().sum()) / dim) * torch.eye(dim, dtype=x.dtype)])
    columns = [torch.linalg.lstsq(rows, torch.cat([y[:, [i]], torch.zeros(dim, 1).to(y)])).solution for i in range(dim)]
    weight = math.exp(-size / (alpha * dim))
    return torch.stack([(1 - weight) * (v @ torch.cat(columns, dim=1)) + weight * v for v in vectors])


def held_out_cosine(
    before: Tensor, after: Tensor, fit: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
) -> float:
    """The mean cosine of pairs moved by maps fitted without their fold, one pair after the other; at least five."""
    total, size = 0.0, len(before)
    for fold in range(5):
        outside = [i for i in range(size) if 5 * i // size == fold]
        inside = [i for i in range(size) if i not in outside]
        moved = fit(before[inside], after[inside])(before[outside]).tolist()
        for one, i in zip(moved, outside, strict=True):
            other = after[i].tolist()
            lengths = math.hypot(*one) * math.hypot(*other)
            total += sum(a * b for a, b in zip(one, other, strict=True)) / lengths
    return total / size


def ridge_drift(x: Tensor, y: Tensor, vectors: Tensor, ridge: float) -> Tensor:
    """Least squares on rows appended for the ridge, in place of normal equations."""
    centre, shift = x.mean(dim=0), y.mean(dim=0)
    dim = x.shape[1]
    scale = float((x - centre).square().sum()) / dim
    rows = torch.cat([x - centre, math.sqrt(ridge * scale) * torch.eye(dim, dtype=x.dtype)])
    targets = torch.cat([y - shift, torch.zeros(dim, dim, dtype=x.dtype)])
    return vectors + (vectors - centre) @ torch.linalg.lstsq(rows, targets).solution + shift


def ridge_map(x: Tensor, y: Tensor, vectors: Tensor, ridge: float, toward: Tensor) -> Tensor:
    """Least squares on rows appended for the ridge, whose targets are those of `toward`; the means as they are."""
    centre, mean = x.mean(dim=0), (y - x @ toward).mean(dim=0)
    dim = x.shape[1]
    held = math.sqrt(ridge * float((x - centre).square().sum()) / dim) * torch.eye(dim, dtype=x.dtype)
    targets = torch.cat([y - mean - centre @ toward, held @ toward])
    matrix = torch.linalg.lstsq(torch.cat([x - centre, held]), targets).solution
    return torch.stack([(v - centre) @ matrix + centre @ toward + mean for v in vectors])


def rotated_between(x: Tensor, y: Tensor, vectors: Tensor) -> Tensor:
    """Procrustes between two dimensions: M (M^T M)^(-1/2) of M = x^T y, by the eigenvalues that are not 0."""
    matrix = x.T @ y
    values, axes = torch.linalg.eigh(matrix.T @ matrix)
    root = torch.zeros(len(axes), len(axes), dtype=x.dtype)
    for value, axis in zip(values, axes.T, strict=True):
        if value > 1e-10 * values.max():
            root = root + torch.outer(axis, axis) / value.sqrt()
    return torch.stack([v @ matrix @ root for v in vectors])


# --- recognition -----------------------------------------------------------------------------------------------------


def ridge_labels(
    features: Sequence[Sequence[float]],
    labels: Sequence[int],
    asked: Sequence[Sequence[float]],
    strength: float,
    random: Tensor | None,
) -> list[int]:
    """The classes that ridge regression on one-hot targets gives, fitted to all samples at once.

    Least squares on rows appended for the ridge, in place of normal equations.

    Args:
        random: (dim, m), the random map before the ReLU; None leaves the features as they are.
    """

    def lifted(vectors: Sequence[Sequence[float]]) -> Tensor:
        rows = []
        for vector in vectors:
            length = math.sqrt(sum(x * x for x in vector))
            unit = [x / length for x in vector]
            columns = [] if random is None else random.T.tolist()
            rows.append([max(0.0, sum(x * r for x, r in zip(unit, c, strict=True))) for c in columns] or unit)
        return torch.tensor(rows, dtype=torch.float64)

    classes = sorted(set(labels))
    rows = lifted(features)
    targets = torch.tensor([[float(label == c) for c in classes] for label in labels], dtype=torch.float64)
    size = rows.shape[1]
    rows = torch.cat([rows, math.sqrt(strength) * torch.eye(size, dtype=torch.float64)])
    targets = torch.cat([targets, torch.zeros(size, len(classes), dtype=torch.float64)])
    answers = lifted(asked) @ torch.linalg.lstsq(rows, targets).solution
    return [max(zip(row, classes, strict=True))[1] for row in answers.tolist()]


# --- structured protection -------------------------------------------------------------------------------------------


def moved_responses(model: nn.Module, inputs: Tensor, changed: nn.Module) -> dict[str, float]:
    """layer -> sum of ||answer of the changed layer - its answer||^2 / sum of ||answer||^2, over all its calls, on the
    inputs that the layer of `model` has; a layer is a module that has parameters and no modules."""
    names = {id(module): name for name, module in model.named_modules()}
    modules, calls = dict(changed.named_modules()), []
    leaves = [each for each in model.modules() if not list(each.children()) and list(each.parameters())]
    handles = [
        each.register_forward_hook(lambda layer, given, answer: calls.append((names[id(layer)], given, answer.clone())))
        for each in leaves
    ]
    with torch.no_grad():
        model.eval()(inputs)
        for handle in handles:
            handle.remove()
        moved, length = {}, {}
        for name, given, answer in calls:
            now = modules[name].eval()(*given)
            moved[name] = moved.get(name, 0.0) + float((now - answer).square().sum())
            length[name] = length.get(name, 0.0) + float(answer.square().sum())
    return {name: moved[name] / length[name] for name in moved}


def low_rank(whole: Tensor, kept: float, most: int) -> tuple[Tensor, Tensor]:
    """Of symmetric (groups, n, n) the eigenvectors with the largest eigenvalues, so many that in every group they have
    this part of the trace, or so many at most; as a factor (groups, n, rank), and what every other direction has, by
    column: none in those that are 0."""
    values, vectors = torch.linalg.eigh(whole)
    values, vectors, rank = values.flip(1), vectors.flip(2), 1
    while rank < most and any(float(each[:rank].sum()) < kept * float(each.sum()) for each in values):
        rank += 1
    seen = whole.diagonal(dim1=1, dim2=2) > 0
    rest = values[:, rank:].sum(1, keepdim=True) / (seen.sum(1, keepdim=True) - rank)
    return vectors[:, :, :rank] * (values[:, :rank] - rest).sqrt().unsqueeze(1), rest * seen


def student_tail(t: float, degrees: int, *, steps: int = 200_000) -> float:
    """The chance that Student's t lies beyond |t| on either side: its density, summed at midpoints up to |t|."""
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    width = abs(t) / steps
    inside = sum((1 + ((i + 0.5) * width) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(steps))
    return 1 - 2 * scale * width * inside


def holm(values: Sequence[float]) -> list[float]:
    """For each p-value the largest, over all at most as large, of it times how many are as large; at most 1."""
    found = []
    for value in values:
        products = [other * sum(each >= other for each in values) for other in values if other <= value]
        found.append(min(1.0, max(products)))
    return found
