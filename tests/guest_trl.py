"""Tiny language models in the trainers of trl, two tasks one after the other, in processes that may be killed.

python tests/guest_trl.py dpo FOLDER killed                      # and then `resumed`, or from the start `whole`
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from guest_tasks import weights
from guest_transformers import Kill
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from datasets import Dataset
from tripletmas.integrations.transformers import ProtectionCallback
from tripletmas.protection.protection import MAS

WORDS = "abcdefgh"
STRENGTH = 10.0
CLASSES = {"sft": "SFT", "dpo": "DPO", "reward": "Reward"}


def tokenizer() -> Any:
    known = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    made = Tokenizer(models.WordLevel(known, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="[PAD]")


def make_model(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=10, n_positions=32, n_embd=16, n_layer=1, n_head=2, pad_token_id=0, eos_token_id=0, bos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    config.num_labels = 1
    return GPT2ForSequenceClassification(config) if kind == "reward" else GPT2LMHeadModel(config)


def make_protection(model: nn.Module) -> MAS:
    return MAS(model, STRENGTH, forward=lambda model, batch: model(batch["input_ids"]).logits.flatten(1)[:, -10:])


def texts(number: int) -> Dataset:
    """Letters of the alphabet in steps of one, or of two; what is rejected stands still."""

    def line(first: int, by: int) -> str:
        return "".join(WORDS[(first + k * by) % 8] + " " for k in range(3))

    rows = [(line(at, number + 1), line(at + 3 * (number + 1), number + 1), line(at, 0)) for at in range(8)]
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])


def trainer_of(
    kind: str, model: Any, folder: Path, number: int, *callbacks: Any, penalty: Callable[[], Tensor] | None = None,
    **options: Any,
) -> Any:  # fmt: skip
    """A trainer of trl's on a CPU that reports nothing, with a penalty in its loss if one is given."""
    import trl

    base, data = getattr(trl, f"{CLASSES[kind]}Trainer"), texts(number)
    if kind == "sft":
        data = data.map(lambda row: {"completion": row["chosen"]}, remove_columns=["chosen", "rejected"])

    class Trainer(base):
        def compute_loss(self, *args: Any, **given: Any) -> Any:
            loss = super().compute_loss(*args, **given)
            return loss if penalty is None else loss + penalty()

    defaults = {
        "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "num_train_epochs": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01, "lr_scheduler_type": "constant",
        "disable_tqdm": True, "dataloader_pin_memory": False, "gradient_checkpointing": False,
    }  # fmt: skip
    given: dict[str, Any] = {"ref_model": make_model(kind, seed=2)} if kind == "dpo" else {}
    return Trainer(
        model=model,
        args=getattr(trl, f"{CLASSES[kind]}Config")(str(folder), **(defaults | options)),
        train_dataset=data,
        processing_class=tokenizer(),
        callbacks=list(callbacks),
        **given,
    )


def run(kind: str, folder: Path, part: str) -> dict[str, Tensor]:
    """Both tasks, `whole`; or `killed` in the fourth epoch of the second, or from there, `resumed` in a new process."""
    model = make_model(kind, seed=1 if part == "resumed" else 0)  # nothing is left but the checkpoint
    callback = ProtectionCallback(make_protection(model))
    if part != "resumed":
        trainer_of(kind, model, folder / "first", 0, callback).train()
    callbacks = [callback, *([Kill()] if part == "killed" else [])]
    trainer = trainer_of(kind, model, folder / "second", 1, *callbacks, save_strategy="epoch")
    trainer.train(resume_from_checkpoint=part == "resumed")
    held = callback.protection.state_dict()
    return weights(model) | {f"protection/{name}": value for name, value in held.items()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _, kind, folder, part = sys.argv
    torch.save(run(kind, Path(folder), part), Path(folder, part))
