"""The loops of docs/distributed.md run, and all ranks hold the same."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_in_processes
from replicated import identical
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tripletmas.basics.distributed import whole
from tripletmas.basics.weights import named_parameters

PAGE = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"
BLOCKS = [
    block
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    if "init_process_group" in block
]
IMPORTS = """
import torch, tripletmas as tm
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
"""


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))


def run_block(block: int, folder: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    tasks = [TensorDataset(torch.randn(37, 3, generator=generator), torch.arange(37) % 4) for _ in range(2)]
    names: dict[str, Any] = {"make_model": make_model, "tasks": tasks, "loss": nn.functional.cross_entropy}
    lines = [line for line in BLOCKS[block].splitlines() if "init_process_group" not in line]  # they are joined already
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        exec(IMPORTS + "\n".join(lines).replace('"mas.safetensors"', f'"{folder}/mas.safetensors"'), names)
    assert names["mas"].num_protected_steps == 2  # of the second task: 19 of 37 samples in batches of 16
    return {name: whole(value.detach()) for name, value in named_parameters(names["model"]).items()} | {
        name: whole(value) for name, value in names["mas"].state_dict().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("block", range(2))
def test_the_loop_runs_and_replicas_are_the_same(block, tmp_path):
    assert len(BLOCKS) == 2
    first, second = run_in_processes(run_block, 2, block, str(tmp_path))
    assert identical(first, second)
    assert (tmp_path / "mas.safetensors").exists()
