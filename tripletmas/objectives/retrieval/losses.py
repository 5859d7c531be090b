"""Metric losses by name: pytorch-metric-learning's losses with its miners, their own options checked.

A metric loss compares raw embeddings (batch, dim) by their labels (batch,); "triplet" here means (anchor, positive,
negative). These losses normalise the embeddings themselves, so they do not see their length; only `angular`, as the
library writes it, does. `train_stream` takes any MetricLoss: a library loss whose options are objects (a distance, a
reducer, a regularizer) is passed to it as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tripletmas.basics.sentences import suggestion
from tripletmas.objectives.retrieval import library

# What a miner may leave to the loss: see make_loss.
MININGS = ("none", "all", "semihard", "hard", "batch_hard", "multi_similarity", "distance_weighted")

# All triplets of b samples are found in a (b, b, b) array and held as three index lists: 1 GiB and more beyond this.
LARGEST_BATCH_OF_ALL_TRIPLETS = 1024


@dataclass(frozen=True)
class LossEntry:
    """One row of the table: the class's name, the mining that its paper uses, our defaults where they depart from it.

    `minable` is false where samples are compared with the loss's own class vectors, or where the loss ranks the whole
    batch: there are no pairs or triplets to choose among.
    """

    name: str
    mining: str = "none"
    minable: bool = True
    defaults: Mapping[str, object] = field(default_factory=dict)

    @property
    def constructor(self) -> type[nn.Module]:
        """The class itself."""
        from pytorch_metric_learning import losses  # here and below: most commands make no loss, and it takes a second

        return getattr(losses, self.name)


# Left out: losses that keep state outside their state dict (dynamic soft margin), give nan or inf on batches that may
# occur (NCA, P2SGrad), demand even batches (smooth AP), use deprecated calls (histogram, large-margin softmax,
# SphereFace), or compare other things than labelled embeddings (instance, manifold, VICReg).
LOSSES: dict[str, LossEntry] = {
    "triplet": LossEntry("TripletMarginLoss", "batch_hard", defaults={"margin": 0.2}),
    "contrastive": LossEntry("ContrastiveLoss"),
    "multi_similarity": LossEntry("MultiSimilarityLoss", "multi_similarity"),
    "ntxent": LossEntry("NTXentLoss"),
    "supcon": LossEntry("SupConLoss"),
    "circle": LossEntry("CircleLoss"),
    "margin": LossEntry("MarginLoss", "distance_weighted"),
    "lifted_structure": LossEntry("LiftedStructureLoss"),
    "generalized_lifted_structure": LossEntry("GeneralizedLiftedStructureLoss"),
    "angular": LossEntry("AngularLoss"),
    "n_pairs": LossEntry("NPairsLoss"),
    "tuplet_margin": LossEntry("TupletMarginLoss"),
    "intra_pair_variance": LossEntry("IntraPairVarianceLoss"),
    "signal_to_noise_ratio": LossEntry("SignalToNoiseRatioContrastiveLoss"),
    "fast_ap": LossEntry("FastAPLoss", minable=False),
    "pnp": LossEntry("PNPLoss", minable=False),
    "proxy_anchor": LossEntry("ProxyAnchorLoss", minable=False),
    "proxy_nca": LossEntry("ProxyNCALoss", minable=False),
    "normalized_softmax": LossEntry("NormalizedSoftmaxLoss", minable=False),
    "arcface": LossEntry("ArcFaceLoss", minable=False),
    "subcenter_arcface": LossEntry("SubCenterArcFaceLoss", minable=False),
    "cosface": LossEntry("CosFaceLoss", minable=False),
    "soft_triple": LossEntry("SoftTripleLoss", minable=False),
}

# Options that count something; the library writes the defaults of many real-valued options as integers, too.
_COUNTS = ("num_bins", "centers_per_class", "sub_centers")
_CHOICES = {"variant": ("Ds", "Dq", "Iu", "Ib", "O")}
# Without an object to weigh, which these tables do not offer, they would do nothing.
_WITHOUT_EFFECT = ("embedding_reg_weight", "weight_reg_weight")


def make_loss(
    name: str, *, dim: int, num_classes: int, mining: str | None = None, options: Mapping[str, object] | None = None
) -> MinedLoss:
    """The loss `name` with its miner.

    Args:
        dim: length of the embeddings, which sets the length of a loss's class vectors (proxies).
        num_classes: of the whole stream; labels are codes in [0, num_classes). A loss with class vectors has one for
            each class from the start, those of later tasks included.
        mining: which pairs or triplets of a batch the loss sees. None is the loss's own default. `none`: every one;
            `all`: every triplet that violates the margin; `semihard`: those of them whose negative is farther than the
            positive; `hard`: those whose negative is not; `batch_hard`: for each anchor the farthest positive and the
            nearest negative; `multi_similarity` and `distance_weighted` (drawn at random): the papers' own. The margin
            is the triplet loss's own, 0.2 for others, in the unit of the loss's distance.
        options: of the loss, as `loss_options` lists them.

    Raises:
        ValueError: an unknown loss, mining or option, or a value of the wrong type.
    """
    entry = _entry(name)
    given = dict(options or {})
    values = _option_values(name, given)
    mining = _mining(name, mining, given)
    sizes = {"num_classes": num_classes, "embedding_size": dim}
    # MarginLoss takes num_classes only to learn one beta per class, and keeps an unlearned one on the CPU.
    if name != "margin" or values["learn_beta"]:
        parameters = _parameters(entry.constructor)
        values |= {size: value for size, value in sizes.items() if size in parameters}
    loss = entry.constructor(**values)
    margin: Any = values["margin"] if name == "triplet" else 0.2
    miner = _make_miner(mining, margin, loss.get_submodule("distance"))
    every_triplet = mining == "none" and values.get("triplets_per_anchor") == "all"
    forms_all = every_triplet or mining in ("all", "semihard", "hard")
    return MinedLoss(loss, miner, largest_batch=LARGEST_BATCH_OF_ALL_TRIPLETS if forms_all else None)


def loss_options(name: str) -> dict[str, inspect.Parameter]:
    """The options of loss `name` by name, with default and type; those that are numbers, truth values or strings."""
    entry = _entry(name)
    options: dict[str, inspect.Parameter] = {}
    for option, of_library in _defaults(entry).items():
        default = entry.defaults.get(option, of_library)
        annotation: object = type(default)
        if option == "triplets_per_anchor":
            annotation = int | Literal["all"]
        elif option in _CHOICES:
            annotation = Literal[_CHOICES[option]]
        elif isinstance(default, int) and not isinstance(default, bool) and option not in _COUNTS:
            annotation, default = float, float(default)
        kind = inspect.Parameter.KEYWORD_ONLY
        options[option] = inspect.Parameter(option, kind, default=default, annotation=annotation)
    return options


def _defaults(entry: LossEntry) -> Mapping[str, object]:
    """What `read_defaults` gives; the library is imported for it where another version of it is installed."""
    is_known = metadata.version("pytorch-metric-learning") == library.VERSION
    return library.DEFAULTS[entry.name] if is_known else read_defaults(entry)


def read_defaults(entry: LossEntry) -> dict[str, object]:
    """The options of the class of a loss with the library's defaults.

    They are read from the constructors along the class's bases, because the library passes options up as `**kwargs`.
    """
    defaults = {option: parameter.default for option, parameter in _parameters(entry.constructor).items()}
    return {
        option: default
        for option, default in defaults.items()
        if option not in _WITHOUT_EFFECT and isinstance(default, (bool, int, float, str))
    }


def margin_of(loss: object) -> float | None:
    """The margin of a triplet loss of unit vectors, which is its value where all are equal; None for other losses."""
    from pytorch_metric_learning import losses

    inner = loss.loss if isinstance(loss, MinedLoss) else loss
    if type(inner) is not losses.TripletMarginLoss or inner.smooth_loss:
        return None
    plain = inner.distance.normalize_embeddings and not inner.distance.is_inverted
    return float(inner.margin) if plain else None


def default_mining(name: str) -> str:
    """The mining of loss `name` when none is asked for."""
    return _entry(name).mining


class MinedLoss(nn.Module):
    """A loss on the pairs or triplets that a miner picks from the batch; one without any gives a zero with gradient.

    It is computed in float32 (or more) outside autocast: in half precision distances of near neighbours vanish, and the
    library would round its class vectors to the embeddings' type for good.

    Args:
        loss: pytorch-metric-learning's; called as loss(embeddings, labels, indices).
        miner: called as miner(embeddings, labels) without gradient; None leaves every pair or triplet to the loss.
        largest_batch: a larger one is an error; None for no bound.

    Attributes:
        softened: by `soften`; batches of more than 1024 samples are mined all the same.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None, *, largest_batch: int | None = None):
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.largest_batch = largest_batch
        self.softened = False

    def soften(self) -> bool:
        """From now on take all triplets, where it was the hardest alone; whether it was.

        Of vectors that are nearly one, the farthest positive is farther than the nearest negative almost surely, so
        that the hardest triplets draw all of them together further. Over all triplets both are as far on average.
        """
        from pytorch_metric_learning import miners

        softened, self.softened = self.softened, isinstance(self.miner, miners.BatchHardMiner)
        return self.softened and not softened

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of raw embeddings (batch, dim) with integer labels (batch,)."""
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"labels must be integers, got {labels.dtype}")
        if self.largest_batch is not None and len(embeddings) > self.largest_batch:
            raise ValueError(
                f"a loss over all triplets takes batches of at most {self.largest_batch} samples, "
                f"got {len(embeddings)}: use mining batch_hard, or smaller batches"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            if embeddings.dtype in (torch.float16, torch.bfloat16):
                embeddings = embeddings.float()
            all_triplets = self.softened and len(embeddings) <= LARGEST_BATCH_OF_ALL_TRIPLETS
            indices = None if self.miner is None or all_triplets else self.miner(embeddings, labels)
            return self.loss(embeddings, labels, indices)


def _make_miner(mining: str, margin: float, distance: nn.Module) -> nn.Module | None:
    # The miner measures with the loss's own distance, so that both mean the same by near and by a margin.
    if mining == "none":
        return None
    from pytorch_metric_learning import miners

    if mining == "batch_hard":
        return miners.BatchHardMiner(distance=distance)
    if mining == "multi_similarity":
        return miners.MultiSimilarityMiner()
    if mining == "distance_weighted":
        return miners.DistanceWeightedMiner()
    return miners.TripletMarginMiner(margin=margin, type_of_triplets=mining, distance=distance)


def _option_values(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """All options of a loss, those given checked."""
    known = loss_options(name)
    for option, value in given.items():
        if option not in known:
            raise ValueError(f"loss '{name}' has no option '{option}'{suggestion(option, known)}")
        _check_value(name, known[option], value)
    return {option: given.get(option, parameter.default) for option, parameter in known.items()}


def _entry(name: str) -> LossEntry:
    if name not in LOSSES:
        raise ValueError(f"unknown loss '{name}'{suggestion(name, LOSSES)}")
    return LOSSES[name]


def _parameters(constructor: type) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for base in constructor.__mro__:
        if "__init__" in vars(base) and base.__module__.startswith("pytorch_metric_learning"):
            for name, parameter in list(inspect.signature(vars(base)["__init__"]).parameters.items())[1:]:
                if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    found.setdefault(name, parameter)
    return found


def _mining(name: str, mining: str | None, given: Mapping[str, object]) -> str:
    """The mining that is asked for, or the loss's own; checked."""
    mining = default_mining(name) if mining is None else mining
    if mining not in MININGS:
        raise ValueError(f"unknown mining '{mining}'{suggestion(mining, MININGS)}")
    if mining != "none" and not LOSSES[name].minable:
        raise ValueError(f"loss '{name}' chooses its own pairs and takes no mining, got mining '{mining}'")
    if mining != "none" and given.get("triplets_per_anchor", "all") != "all":
        raise ValueError(f"triplets_per_anchor has no effect with mining '{mining}'; set mining to none")
    return mining


def _check_value(name: str, parameter: inspect.Parameter, value: object) -> None:
    kind = parameter.annotation
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if parameter.name in _CHOICES:
        good, expected = value in _CHOICES[parameter.name], f"one of {', '.join(_CHOICES[parameter.name])}"
    elif parameter.name == "triplets_per_anchor":
        good, expected = whole or value == "all", "'all' or a whole number >= 1"
    elif kind is bool:
        good, expected = isinstance(value, bool), "true or false"
    elif kind is int:
        good, expected = whole, "a whole number >= 1"
    else:
        good, expected = number, "a number"
    if not good:
        raise ValueError(f"option '{parameter.name}' of loss '{name}' must be {expected}, got {value!r}")
