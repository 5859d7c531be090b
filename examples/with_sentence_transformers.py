#!/usr/bin/env python3
"""A sentence encoder learns new topics in its own trainer, and what it knew before is held from the first step.

pip install "tripletmas[transformers,text]"
python examples/with_sentence_transformers.py sentence-transformers/all-MiniLM-L6-v2
"""

from __future__ import annotations

import sys

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import tripletmas as tm
from datasets import Dataset
from tripletmas.integrations.transformers import ProtectionCallback

KNOWN = ["What the model knew before", "is held from the first task on", "if texts like these are measured"]
TASKS = [
    {"anchor": ["Where is my card?", "My card is late"], "positive": ["I lost my card", "When does my card arrive?"]},
    {"anchor": ["Pay me back", "I forgot my password"], "positive": ["I want a refund", "I cannot log in"]},
]


def main(encoder: str, *, epochs: int = 1) -> None:
    model = SentenceTransformer(encoder)
    mas = tm.MAS(model, 1000.0)
    mas.consolidate([KNOWN])
    protection = ProtectionCallback(mas)
    for task in TASKS:
        SentenceTransformerTrainer(
            model,
            SentenceTransformerTrainingArguments("out", num_train_epochs=epochs, report_to=[]),
            train_dataset=Dataset.from_dict(task),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[protection],
        ).train()
    model.save_pretrained("learned")
    mas.save_pretrained("learned")  # beside its weights, for the next month
    print(f"learned {len(TASKS)} tasks; {mas.coverage().share_held:.0%} of the weights are held; see learned/")


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["sentence-transformers/all-MiniLM-L6-v2"])
