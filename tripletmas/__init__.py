"""Continual metric learning: embeddings learned task by task, protected by Memory Aware Synapses.

A **stream** is a tuple of **tasks**. A **model** maps inputs to raw embeddings. For each task, the training loop
minimises a **metric loss** plus what the **strategy** adds. After each task, queries are searched against galleries
and the scores fill a matrix; forgetting is read off that matrix. Two axes vary freely: the *strategy* (how the model
learns) and the *gallery* (fresh, stale, compensated).

"Triplet" is (anchor, positive, negative), the metric-learning loss; in `facts` it is <subject, predicate, object>.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tripletmas.version import __version__

if TYPE_CHECKING:
    from tripletmas.checkpoint import RunDirectory
    from tripletmas.coverage import Coverage
    from tripletmas.data import LabelledDataset, Source
    from tripletmas.drift import compensate_drift, fit_drift
    from tripletmas.embedding import Embeddings, embed
    from tripletmas.experiment import run_experiment
    from tripletmas.facts.fact import Fact, fact
    from tripletmas.facts.language import language_view
    from tripletmas.facts.losses import FactContrastive, FactDistance
    from tripletmas.facts.scoring import score_facts
    from tripletmas.facts.streams import make_fact_stream
    from tripletmas.facts.visual import make_visual_view
    from tripletmas.facts.words import hashed_words, read_word_vectors
    from tripletmas.forgetting import Scores
    from tripletmas.gallery import Galleries, GalleryConfig
    from tripletmas.image_index import ImageIndex
    from tripletmas.importance import (
        ImportanceAccumulator,
        fisher_importance,
        local_mas_importance,
        mas_importance,
        merge_importance,
    )
    from tripletmas.index import ExactIndex, FaissIndex, Index, make_index
    from tripletmas.losses import make_loss
    from tripletmas.models import make_model
    from tripletmas.optimization import TrainConfig
    from tripletmas.penalty import quadratic_penalty
    from tripletmas.protection import MAS, LocalMAS, Protection
    from tripletmas.recognition import Recognition
    from tripletmas.retrieval import RetrievalScores, evaluate
    from tripletmas.search import SearchConfig
    from tripletmas.strategies import (
        EBLL,
        IMM,
        Combine,
        Consolidate,
        Distill,
        ElasticWeightConsolidation,
        Finetune,
        Frozen,
        Joint,
        Replay,
        Strategy,
        SynapticIntelligence,
    )
    from tripletmas.tasks import Stream, Task, make_stream, split_by_class, split_by_group
    from tripletmas.training import train_stream

__all__ = [
    "EBLL",
    "IMM",
    "MAS",
    "Combine",
    "Consolidate",
    "Coverage",
    "Distill",
    "ElasticWeightConsolidation",
    "Embeddings",
    "ExactIndex",
    "Fact",
    "FactContrastive",
    "FactDistance",
    "FaissIndex",
    "Finetune",
    "Frozen",
    "Galleries",
    "GalleryConfig",
    "ImageIndex",
    "ImportanceAccumulator",
    "Index",
    "Joint",
    "LabelledDataset",
    "LocalMAS",
    "Protection",
    "Recognition",
    "Replay",
    "RetrievalScores",
    "RunDirectory",
    "Scores",
    "SearchConfig",
    "Source",
    "Strategy",
    "Stream",
    "SynapticIntelligence",
    "Task",
    "TrainConfig",
    "__version__",
    "compensate_drift",
    "embed",
    "evaluate",
    "fact",
    "fisher_importance",
    "fit_drift",
    "hashed_words",
    "language_view",
    "local_mas_importance",
    "make_fact_stream",
    "make_index",
    "make_loss",
    "make_model",
    "make_stream",
    "make_visual_view",
    "mas_importance",
    "merge_importance",
    "quadratic_penalty",
    "read_word_vectors",
    "run_experiment",
    "score_facts",
    "split_by_class",
    "split_by_group",
    "train_stream",
]

# Loaded when first used: importing torch takes seconds, and `tripletmas --help` does without.
_PUBLIC = {
    "checkpoint": ("RunDirectory",),
    "data": ("LabelledDataset", "Source"),
    "drift": ("compensate_drift", "fit_drift"),
    "embedding": ("Embeddings", "embed"),
    "experiment": ("run_experiment",),
    "facts.fact": ("Fact", "fact"),
    "facts.language": ("language_view",),
    "facts.losses": ("FactContrastive", "FactDistance"),
    "facts.scoring": ("score_facts",),
    "facts.streams": ("make_fact_stream",),
    "facts.visual": ("make_visual_view",),
    "facts.words": ("hashed_words", "read_word_vectors"),
    "forgetting": ("Scores",),
    "gallery": ("Galleries", "GalleryConfig"),
    "image_index": ("ImageIndex",),
    "index": ("ExactIndex", "FaissIndex", "Index", "make_index"),
    "coverage": ("Coverage",),
    "importance": (
        "ImportanceAccumulator",
        "fisher_importance",
        "local_mas_importance",
        "mas_importance",
        "merge_importance",
    ),
    "losses": ("make_loss",),
    "recognition": ("Recognition",),
    "search": ("SearchConfig",),
    "models": ("make_model",),
    "penalty": ("quadratic_penalty",),
    "protection": ("MAS", "LocalMAS", "Protection"),
    "retrieval": ("RetrievalScores", "evaluate"),
    "strategies": (
        "EBLL",
        "IMM",
        "Combine",
        "Consolidate",
        "Distill",
        "ElasticWeightConsolidation",
        "Finetune",
        "Frozen",
        "Joint",
        "Replay",
        "Strategy",
        "SynapticIntelligence",
    ),
    "tasks": ("Stream", "Task", "make_stream", "split_by_class", "split_by_group"),
    "optimization": ("TrainConfig",),
    "training": ("train_stream",),
}


def __getattr__(name: str) -> Any:
    for module, public in _PUBLIC.items():
        if name in public:
            return getattr(importlib.import_module(f"tripletmas.{module}"), name)
    raise AttributeError(f"module 'tripletmas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
