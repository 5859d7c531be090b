#!/usr/bin/env python3
"""A LightningModule that learns task after task under MAS: a callback attaches, measures, logs and is checkpointed.

pip install "tripletmas[lightning]"
python examples/with_lightning.py
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

import tripletmas as tm
from tripletmas.integrations.lightning import ProtectionCallback


class Embedder(LightningModule):
    """Any network, and a metric loss on what it returns."""

    def __init__(self, sample_shape: tuple[int, ...]):
        super().__init__()
        self.net = tm.make_model("mlp", sample_shape)
        self.loss = tm.make_loss("triplet", dim=32, num_classes=10)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return self.loss(self.net(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=1e-3)


def main(*, epochs: int = 5) -> None:
    torch.manual_seed(0)
    stream, _ = tm.make_stream(tm.data.digits(), tasks=5)
    module = Embedder(stream[0].train.sample_shape)
    mas = tm.MAS(module.net)
    protection = ProtectionCallback(mas)  # one for all tasks
    for task in stream:
        trainer = Trainer(max_epochs=epochs, callbacks=[protection], accelerator="cpu", enable_progress_bar=False)
        trainer.fit(module, DataLoader(task.train, 32, shuffle=True, collate_fn=tuple))
        scores = tm.evaluate(tm.embed(module.net, stream[0].query))
        print(f"after {task.name}: recall@1 on the first task {scores.values['recall@1']:.3f}")
    mas.save("mas.safetensors")


if __name__ == "__main__":
    main()
