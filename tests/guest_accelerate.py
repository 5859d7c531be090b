"""A loop of accelerate over two tasks, in processes that may be killed.

python tests/guest_accelerate.py FOLDER killed                    # and then `resumed`, or from the start `whole`
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from guest_tasks import make_net, make_protection, make_task, metric_loss, weights
from torch import Tensor
from torch.utils.data import DataLoader

from tripletmas.protection.structured.gram import Gram

EPOCHS = 4


def run(folder: Path, part: str, count: int = 48) -> dict[str, Tensor]:
    """Both tasks, `whole`; or `killed` in the third epoch of the second, or from there, `resumed` in a new process.

    Held by single weights and by Grams at once.
    """
    accelerator = Accelerator(cpu=True)
    net = make_net(seed=1 if part == "resumed" else 0)  # nothing is left but the checkpoint
    guards = {"gram": Gram(net, 0.02), "mas": make_protection(net)}
    accelerator.register_for_checkpointing(*guards.values())
    model = accelerator.prepare(net)
    for number in range(part == "resumed", 2):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        optimizer, loader = accelerator.prepare(optimizer, DataLoader(make_task(number, count=count), batch_size=16))
        for guard in guards.values():
            guard.attach(optimizer, clip="before")
        first = 0
        if part == "resumed":
            accelerator.load_state(str(folder / "checkpoint"))
            first = 2
        for epoch in range(first, EPOCHS):
            for step, (inputs, labels) in enumerate(loader):
                if part == "killed" and (number, epoch, step) == (1, 2, 1):
                    os.kill(os.getpid(), signal.SIGKILL)
                optimizer.zero_grad()
                accelerator.backward(metric_loss(model(inputs), labels))
                for guard in guards.values():
                    guard.add_gradients(optimizer)
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
            if number == 1 and epoch == 1:
                accelerator.save_state(str(folder / "checkpoint"))
        for guard in guards.values():
            guard.consolidate(loader)
        accelerator._optimizers.clear()  # of this task: it is in no checkpoint of the next
        accelerator._dataloaders.clear()
    held = {f"{kind}/{name}": value for kind, guard in guards.items() for name, value in guard.state_dict().items()}
    return weights(net) | held


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, folder, part = sys.argv
    torch.save(run(Path(folder), part), Path(folder, part))
