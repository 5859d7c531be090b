"""Protection over two processes in the trainer of Sentence Transformers, and of a model of peft in the Trainer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from guest_tasks import largest_difference, weights
from guest_transformers import trainer_of
from peft import LoraConfig, get_peft_model
from processes import run_in_processes
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from tiny_texts import sentences
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from datasets import Dataset
from tripletmas.integrations.transformers import ProtectionCallback
from tripletmas.protection.protection import MAS

STRENGTH = 0.1
GLOBAL_BATCH = 8
EVEN, ODD = 24, 21  # samples: three global batches; and so many that the shares of two processes differ
Run = tuple[list[dict[str, Tensor]], dict[str, Tensor]]  # weights after each of two tasks, and what is held at the end


def trained(model: Any, train: Callable[[int, ProtectionCallback], Any]) -> Run:
    """Two tasks one after the other, the second one protected."""
    callback = ProtectionCallback(MAS(model, STRENGTH))
    after = []
    for number in range(2):
        train(number, callback)
        after.append(weights(model))
    assert callback.protection.num_protected_steps > 0
    return after, callback.protection.state_dict()


def join() -> None:
    """What accelerate asks for, though the process group is there; and what torch says of accelerate's arguments."""
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29400")


def share() -> int:
    """Samples of a batch on this process."""
    return GLOBAL_BATCH // (torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)


# --- Sentence Transformers


def pairs(number: int, count: int) -> Dataset:
    """Texts of a class with texts of it (similarity 1) or of another (0), in turn."""
    one, other = (("card", "parcel"), ("refund", "login"))[number]
    own, close, far = sentences(one, count), sentences(one, count, first=1), sentences(other, count)
    second = [(far if each % 2 else close)[each] for each in range(count)]
    return Dataset.from_dict({"one": own, "other": second, "label": [float(each % 2 == 0) for each in range(count)]})


def encoder(source: str) -> SentenceTransformer:
    """Without dropout, which each process draws for itself."""
    model = SentenceTransformer(source, device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def train_encoder(source: str, folder: str, count: int) -> Run:
    model = encoder(source)

    def train(number: int, callback: ProtectionCallback) -> None:
        arguments = SentenceTransformerTrainingArguments(
            folder, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            num_train_epochs=2, per_device_train_batch_size=share(), learning_rate=0.1, optim="sgd",
            lr_scheduler_type="constant", dataloader_pin_memory=False,
        )  # fmt: skip
        SentenceTransformerTrainer(
            model, arguments, train_dataset=pairs(number, count), loss=CosineSimilarityLoss(model), callbacks=[callback]
        ).train()

    return trained(model, train)


def encoders_in_each_process(source: str, folder: str) -> list[Run]:
    join()
    return [train_encoder(source, folder, count) for count in (EVEN, ODD)]


@pytest.mark.slow
def test_sentence_transformers_over_two_processes(tiny_encoder, tmp_path):
    """The similarity's loss is a mean over pairs: two processes have the loss of one with their batches together.

    Over processes its trainer leaves out what fills no batch on all of them, of ODD another five in each epoch: there
    importance is that of the pairs of an epoch, and what these are is not known here.
    """
    arguments = str(tiny_encoder), str(tmp_path)
    one, other = run_in_processes(encoders_in_each_process, 2, *arguments)
    check(one, other, train_encoder(*arguments, EVEN))

    def batches(number: int, count: int) -> list[list[str]]:
        return [list(pairs(number, count)[column]) for column in ("one", "other")]

    check_importance(one[0], encoder(str(tiny_encoder)), lambda number: batches(number, EVEN))


# --- peft


def classifier() -> Any:
    """A tiny BERT with a classifier, of which low-rank changes and the classifier are trained."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, max_position_embeddings=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    config.num_labels = 4
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = BertForSequenceClassification(config)
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))


def classified(number: int, count: int) -> list[dict[str, Any]]:
    words = torch.randint(0, 32, (count, 6), generator=torch.Generator().manual_seed(number))
    return [{"input_ids": each, "labels": int(each[0]) % 4} for each in words]


def train_classifier(folder: str, count: int) -> Run:
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks for it
    model = classifier()

    def train(number: int, callback: ProtectionCallback) -> None:
        trainer_of(
            model, Path(folder), classified(number, count), callback, num_train_epochs=2, learning_rate=0.1,
            per_device_train_batch_size=share(), remove_unused_columns=False, average_tokens_across_devices=False,
        ).train()  # fmt: skip

    return trained(model, train)


def classifiers_in_each_process(folder: str) -> list[Run]:
    join()
    return [train_classifier(folder, count) for count in (EVEN, ODD)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_over_two_processes(tmp_path):
    """What is trained, the adapter and the classifier, is held on both, and each sample is measured once.

    Without `average_tokens_across_devices=False` the Trainer takes the loss times the number of processes, for a model
    that says it divides by all labels, and this one does not: then one process has another loss.
    """
    one, other = run_in_processes(classifiers_in_each_process, 2, str(tmp_path))
    check(one, other, train_classifier(str(tmp_path), EVEN))

    def batches(number: int, count: int) -> list[dict[str, Tensor]]:
        return [{"input_ids": torch.stack([row["input_ids"] for row in classified(number, count)])}]

    for run, count in zip(one, (EVEN, ODD), strict=True):
        check_importance(run, classifier(), lambda number, count=count: batches(number, count))
    _, held = one[0]
    assert all("lora" in name or "classifier" in name for name in held)


# --- what is expected of both


def check(one: list[Run], other: list[Run], alone: Run) -> None:
    """Ranks have the same bits; of whole batches one process learns the same up to rounding.

    Where the last batch is not whole there is nothing to compare to: samples are repeated to make the shares equal,
    and one process does not train on these.
    """
    for (mine, my_held), (its, its_held) in zip(one, other, strict=True):
        for number in range(2):
            assert largest_difference(mine[number], its[number]) == 0
        assert largest_difference(my_held, its_held) == 0
    (after, held), (expected, expected_held) = one[0], alone
    assert largest_difference(after[0], after[1]) > 1e-2
    assert largest_difference(after[1], expected[1]) < 1e-5
    assert largest_difference(held, expected_held) < 1e-4


def check_importance(found: Run, model: Any, batches: Callable[[int], list[Any]]) -> None:
    """It is that of each sample once, as one process measures with the weights after each task."""
    after, held = found
    protection = MAS(model, STRENGTH)
    for number in range(2):
        model.load_state_dict(after[number])
        protection.consolidate(batches(number))
    assert largest_difference(held, protection.state_dict()) < 1e-4
