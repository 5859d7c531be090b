#!/usr/bin/env python3
"""A strategy of one's own beside ours, on the same stream and the same model.

python examples/own_strategy.py
tripletmas train --data digits --strategy examples/own_strategy.py:Anchored --strategy.strength 0.1 --out runs/own
"""

from __future__ import annotations

import torch

import tripletmas as tm


class Anchored(tm.Strategy):
    """Hold every weight near where the last task left it.

    Args:
        strength: what the squared distance of all weights counts.
    """

    def __init__(self, *, strength: float = 0.01):
        self.strength, self.kept = strength, {}

    def loss(self, model, inputs, embeddings):
        moved = [(p - self.kept[name]).square().sum() for name, p in model.named_parameters() if name in self.kept]
        return self.strength * sum(moved) if moved else None

    def after_task(self, model, task):
        self.kept = {name: p.detach().clone() for name, p in model.named_parameters()}

    def state_dict(self):  # with it, a run that was interrupted goes on where it stopped
        return self.kept

    def load_state_dict(self, state):
        self.kept = state


def main(*, epochs: int = 15) -> None:
    stream, _ = tm.make_stream(tm.data.digits(), tasks=5)
    loss = tm.make_loss("triplet", dim=32, num_classes=10)
    strategies = {"finetune": tm.strategies.Finetune(), "mas": tm.strategies.MAS(), "anchored": Anchored()}
    for name, strategy in strategies.items():
        torch.manual_seed(0)
        model = tm.make_model("mlp", stream[0].train.sample_shape)
        scores = tm.train_stream(model, stream, strategy, loss, tm.TrainConfig(epochs=epochs, lr=1e-3))
        found = tm.objectives.summarize(scores.matrix("recall@1"))
        print(f"{name:9} recall@1 {found['average']:.3f}, forgetting {found['forgetting']:.3f}")


if __name__ == "__main__":
    main()
