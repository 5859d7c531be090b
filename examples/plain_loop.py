#!/usr/bin/env python3
"""The two lines in a loop of one's own: handwritten digits, five tasks of two classes, with and without protection.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

import tripletmas as tm


def train(protected: bool, *, epochs: int = 15) -> float:
    """Learn the tasks one after the other; recall@1 of all queries among all queries, by the last model."""
    torch.manual_seed(0)
    stream, _ = tm.make_stream(tm.data.digits(), tasks=5)
    model = tm.make_model("mlp", stream[0].train.sample_shape)
    loss = tm.make_loss("triplet", dim=32, num_classes=10)
    mas = tm.MAS(model, 3.0)
    for task in stream:
        loader = DataLoader(task.train, 32, shuffle=True, collate_fn=tuple)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if protected:
            mas.attach(optimizer)  # 1: its penalty is added whenever the optimizer steps
        for _ in range(epochs):
            for images, labels in loader:
                optimizer.zero_grad()
                loss(model(images), labels).backward()
                optimizer.step()
        if protected:
            mas.consolidate(loader)  # 2: what was just learned is held from now on; labels are not looked at
    queries = [tm.embed(model, task.query) for task in stream]
    vectors = torch.cat([each.vectors for each in queries])
    return tm.evaluate(tm.Embeddings(vectors, torch.cat([each.labels for each in queries]))).values["recall@1"]


if __name__ == "__main__":
    print(f"recall@1 without protection {train(False):.3f}, with MAS {train(True):.3f}")
