"""Protection in the trainers of Sentence Transformers and peft."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from guest_sentence_transformers import STRENGTH, classified, classifier, pairs, texts, train
from guest_tasks import largest_difference, weights
from guest_transformers import trainer_of
from processes import TESTS, run_python
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn

from tripletmas.integrations.transformers import ProtectionCallback
from tripletmas.protection.protection import MAS

# --- Sentence Transformers


@pytest.fixture
def encoder(tiny_encoder):
    return lambda: SentenceTransformer(str(tiny_encoder), device="cpu")


@pytest.mark.slow
def test_sentence_transformers_equal_the_penalty_in_the_loss(encoder, tmp_path):
    """Both columns of texts are measured, before the normalisation at the model's end; gradients are clipped at 1."""
    found = encoder()
    protection = MAS(found, STRENGTH)
    train(found, tmp_path, 0, ProtectionCallback(protection))
    learned = weights(found)
    expected = MAS(found, STRENGTH)
    expected.consolidate(texts(0))
    assert largest_difference(protection.importance, expected.importance) < 1e-6
    train(found, tmp_path, 1, ProtectionCallback(protection, consolidate=False))
    others = {}
    for kind in ("by hand", "unprotected"):
        model = encoder()
        model.load_state_dict(learned)
        by_hand = MAS(model, STRENGTH)
        by_hand.load_state_dict(expected.state_dict())
        train(model, tmp_path, 1, penalty=by_hand if kind == "by hand" else None)
        others[kind] = weights(model)
    assert largest_difference(weights(found), others["by hand"]) < 1e-5
    assert largest_difference(others["unprotected"], others["by hand"]) > 1e-3


@pytest.mark.slow
def test_sentence_transformers_resume(encoder, tmp_path):
    """From the checkpoint of the first epoch of two, as if the process had been killed after it."""
    whole = encoder()
    protection = MAS(whole, STRENGTH)
    protection.consolidate(texts(0))
    train(whole, tmp_path, 1, ProtectionCallback(protection), save_strategy="epoch")
    resumed = encoder()
    callback = ProtectionCallback(MAS(resumed, STRENGTH))
    train(resumed, tmp_path, 1, callback, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert largest_difference(weights(resumed), weights(whole)) == 0
    assert largest_difference(callback.protection.state_dict(), protection.state_dict()) == 0


@pytest.mark.slow
def test_several_data_sets_of_other_columns(encoder, tmp_path):
    """As Sentence Transformers trains on them together: each batch is of one set, and is measured as one."""
    model = encoder()
    callback = ProtectionCallback(MAS(model, STRENGTH))
    data = {"pairs": pairs(0), "triplets": pairs(1).add_column("negative", list(pairs(0)["anchor"]))}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", per_device_train_batch_size=5,
        num_train_epochs=1, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss, callbacks=[callback]).train()
    expected = MAS(model, STRENGTH)
    expected.consolidate([list(each[column]) for each in data.values() for column in each.column_names])
    assert largest_difference(callback.protection.importance, expected.importance) < 1e-5


# --- peft


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_peft_equals_the_penalty_in_the_loss_and_resumes(tmp_path):
    """Only what is trained is held; checkpoints have the adapter and, beside it, what holds it."""

    def batches(number: int) -> list[dict[str, torch.Tensor]]:
        return [{"input_ids": torch.stack([row["input_ids"] for row in classified(number)])}]

    class ByHand(nn.Module):
        def __init__(self, model: Any, penalty: Any):
            super().__init__()
            self.model, self.penalty = model, penalty

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
            return {"loss": self.model(input_ids=input_ids, labels=labels).loss + self.penalty()}

    def learned() -> tuple[Any, MAS]:
        model = classifier()
        model.load_state_dict(after_first)
        protection = MAS(model, STRENGTH)
        protection.consolidate(batches(0))
        return model, protection

    options = {
        "learning_rate": 0.01,
        "optim": "adamw_torch_fused",
        "num_train_epochs": 2,
        "remove_unused_columns": False,
    }
    model = classifier()
    protection = MAS(model, STRENGTH)
    trainer_of(model, tmp_path, classified(0), ProtectionCallback(protection), **options).train()
    after_first = weights(model)
    assert all("lora" in name or "classifier" in name for name in protection.importance)
    found, protection = learned()
    callback = ProtectionCallback(protection)
    trainer_of(found, tmp_path, classified(1), callback, save_strategy="epoch", **options).train()
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").exists()
    by_hand, held = learned()
    trainer_of(ByHand(by_hand, held.value), tmp_path, classified(1), **options).train()
    assert largest_difference(weights(found), weights(by_hand)) < 1e-6
    unprotected, _ = learned()
    trainer_of(unprotected, tmp_path, classified(1), **options).train()
    assert largest_difference(weights(unprotected), weights(by_hand)) > 1e-4

    resumed = classifier()
    callback = ProtectionCallback(MAS(resumed, STRENGTH))
    trainer = trainer_of(resumed, tmp_path, classified(1), callback, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert largest_difference(weights(resumed), weights(found)) == 0
    assert largest_difference(callback.protection.state_dict(), protection.state_dict()) == 0


# --- killed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "adapter"])
def test_killed_and_resumed_in_a_new_process(kind, tiny_encoder, tmp_path):
    """In the second task, held by single weights and by Grams: without a difference to what ran through."""
    script = str(TESTS / "guest_sentence_transformers.py")
    for part, status in (("whole", 0), ("killed", -signal.SIGKILL), ("resumed", 0)):
        ran = run_python(script, kind, str(tmp_path / ("w" if part == "whole" else "k")), part, str(tiny_encoder))
        assert ran.returncode == status, ran.stderr
    whole, resumed = torch.load(tmp_path / "w" / "whole"), torch.load(tmp_path / "k" / "resumed")
    assert any(name.startswith("gram/") for name in whole)
    assert largest_difference(resumed, whole) == 0
