"""The options of pytorch-metric-learning's losses with their defaults, as version VERSION has them.

What is read off the library itself is the same (a test compares them), but to import it takes a second: a command that
makes no loss, as a query does, need not wait for that.
"""

from __future__ import annotations

from collections.abc import Mapping

VERSION = "2.9.0"
DEFAULTS: Mapping[str, Mapping[str, bool | int | float | str]] = {
    "TripletMarginLoss": {"margin": 0.05, "swap": False, "smooth_loss": False, "triplets_per_anchor": "all"},
    "ContrastiveLoss": {"pos_margin": 0, "neg_margin": 1},
    "MultiSimilarityLoss": {"alpha": 2, "beta": 50, "base": 0.5},
    "NTXentLoss": {"temperature": 0.07},
    "SupConLoss": {"temperature": 0.1},
    "CircleLoss": {"m": 0.4, "gamma": 80},
    "MarginLoss": {"margin": 0.2, "nu": 0, "beta": 1.2, "triplets_per_anchor": "all", "learn_beta": False},
    "LiftedStructureLoss": {"neg_margin": 1, "pos_margin": 0},
    "GeneralizedLiftedStructureLoss": {"neg_margin": 1, "pos_margin": 0},
    "AngularLoss": {"alpha": 40},
    "NPairsLoss": {},
    "TupletMarginLoss": {"margin": 5.73, "scale": 64},
    "IntraPairVarianceLoss": {"pos_eps": 0.01, "neg_eps": 0.01},
    "SignalToNoiseRatioContrastiveLoss": {"pos_margin": 0, "neg_margin": 1},
    "FastAPLoss": {"num_bins": 10},
    "PNPLoss": {"b": 2, "alpha": 1, "anneal": 0.01, "variant": "O"},
    "ProxyAnchorLoss": {"margin": 0.1, "alpha": 32},
    "ProxyNCALoss": {"softmax_scale": 1},
    "NormalizedSoftmaxLoss": {"temperature": 0.05},
    "ArcFaceLoss": {"margin": 28.6, "scale": 64},
    "SubCenterArcFaceLoss": {"margin": 28.6, "scale": 64, "sub_centers": 3},
    "CosFaceLoss": {"margin": 0.35, "scale": 64},
    "SoftTripleLoss": {"centers_per_class": 10, "la": 20, "gamma": 0.1, "margin": 0.01},
}
