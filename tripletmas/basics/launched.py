"""What torchrun tells a process that it started; without torch, so that whoever asks need not wait for it."""

from __future__ import annotations

import os
from typing import NamedTuple

_SAYS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launched(NamedTuple):
    """Which process this is, from 0, of how many; and which on its machine, where it has the GPU of this number."""

    rank: int
    local_rank: int
    world_size: int


def launched() -> Launched | None:
    """This process among those that torchrun, or another launcher that says the same, started; None for a single one.

    Raises:
        ValueError: where the environment says something else than numbers.
    """
    said = [os.environ.get(name) for name in _SAYS]
    if None in said:
        return None
    try:
        rank, local_rank, world_size = (int(each or "") for each in said[:3])
    except ValueError:
        named = ", ".join(f"{name}={value}" for name, value in zip(_SAYS, said, strict=True))
        raise ValueError(f"the environment names no process of a launcher ({named}): start by torchrun") from None
    return Launched(rank, local_rank, world_size) if world_size > 1 else None
