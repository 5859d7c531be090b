"""Trainers of Sentence Transformers and of peft on two tasks, in processes that may be killed.

python tests/guest_sentence_transformers.py encoder FOLDER killed ENCODER     # and then `resumed`, or `whole`
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from guest_tasks import weights
from guest_transformers import Kill, trainer_of
from peft import LoraConfig, get_peft_model
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny_texts import sentences
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from datasets import Dataset
from tripletmas.integrations.transformers import ProtectionCallback
from tripletmas.protection.protection import MAS
from tripletmas.protection.structured.gram import Gram

STRENGTH = 300.0
TASKS = (("card", "parcel"), ("refund", "login"))


class WithPenalty(nn.Module):
    """A loss, and a protection's penalty if there is one, as Sentence Transformers logs several."""

    def __init__(self, model: SentenceTransformer, protection: MAS | None):
        super().__init__()
        self.loss, self.protected = MultipleNegativesRankingLoss(model), [protection]  # a list is no submodule

    def forward(self, features: Any, labels: Any) -> Any:
        loss = self.loss(features, labels)
        (protection,) = self.protected
        return loss if protection is None else {"loss": loss, "penalty": protection.value()}


def pairs(number: int) -> Dataset:
    """Questions and others of their class; 16 rows."""
    rows = [(one, other) for name in TASKS[number] for one, other in _neighbours(sentences(name, 9))]
    return Dataset.from_dict({"anchor": [one for one, _ in rows], "positive": [other for _, other in rows]})


def _neighbours(texts: list[str]) -> list[tuple[str, str]]:
    return list(pairwise(texts))


def train(model: Any, folder: Path, number: int, *callbacks: Any, penalty: MAS | None = None, **options: Any) -> Any:
    defaults = {
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    resumed = options.pop("resume_from_checkpoint", None)
    arguments = SentenceTransformerTrainingArguments(str(folder), **(defaults | options))
    loss = WithPenalty(model, penalty)
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=pairs(number), loss=loss, callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resumed)
    return trainer


def texts(number: int) -> list[list[str]]:
    """The columns of a task as batches."""
    return [list(pairs(number)[column]) for column in ("anchor", "positive")]


def classifier(seed: int = 0) -> Any:
    """A tiny BERT with a classifier, of which low-rank changes and the classifier are trained."""
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=32, max_position_embeddings=16, num_labels=4, **size)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = BertForSequenceClassification(config)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))


def classified(number: int) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(number)
    words = torch.randint(0, 32, (24, 6), generator=random)
    return [{"input_ids": each, "labels": int(each[0]) % 4} for each in words]


def run(kind: str, folder: Path, part: str, encoder: str) -> dict[str, Tensor]:
    """Both tasks, `whole`; or `killed` in the second, or from there, `resumed` in a new process."""
    model = SentenceTransformer(encoder, device="cpu") if kind == "encoder" else classifier()
    guards = [ProtectionCallback(Gram(model, 0.02), name="gram"), ProtectionCallback(MAS(model, STRENGTH))]
    options: dict[str, Any] = {"num_train_epochs": 4, "save_strategy": "epoch"}

    def learn(place: Path, number: int, *callbacks: Any, resumed: bool = False) -> None:
        if kind == "encoder":
            train(model, place, number, *callbacks, resume_from_checkpoint=resumed, **options)
        else:
            rest = {"learning_rate": 0.01, "optim": "adamw_torch_fused", "remove_unused_columns": False}
            trainer = trainer_of(model, place, classified(number), *callbacks, **options, **rest)
            trainer.train(resume_from_checkpoint=resumed)

    if part != "resumed":
        learn(folder / "first", 0, *guards)
    learn(folder / "second", 1, *guards, *([Kill()] if part == "killed" else []), resumed=part == "resumed")
    held = {f"{each.name}/{key}": value for each in guards for key, value in each.protection.state_dict().items()}
    return weights(model) | held


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, kind, folder, part, encoder = sys.argv
    torch.save(run(kind, Path(folder), part, encoder), Path(folder, part))
