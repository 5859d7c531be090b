"""Run a function in several processes that are joined by gloo, and get back what each returned; or run a program."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parent
SECONDS = 120.0  # for all of them; one that waits for another fails before


def run_in_processes(function: Callable[..., Any], num_processes: int, *args: Any) -> list[Any]:
    """What `function(*args)` returned in each process, in the order of ranks.

    The function stands at the top of a test module; arguments and answers are what `torch.save` writes. Warnings are
    errors there, too.

    Raises:
        RuntimeError: with what every process that failed has said, if one did.
    """
    # with fork from a server that has imported torch, a process starts in no time; where there is none, anew
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["torch", "tripletmas.basics.weights"])
    with tempfile.TemporaryDirectory() as folder:
        torch.save(args, Path(folder, "args"))
        where = (Path(function.__code__.co_filename), function.__name__, folder, num_processes)
        members = [context.Process(target=_member, args=(*where, rank)) for rank in range(num_processes)]
        for member in members:
            member.start()
        try:
            for member in members:
                member.join(SECONDS)
        finally:
            for member in members:
                member.kill()
        said = [Path(folder, f"error{rank}") for rank in range(num_processes)]
        errors = [f"rank {rank}: {path.read_text()}" for rank, path in enumerate(said) if path.exists()]
        answers = [Path(folder, f"answer{rank}") for rank in range(num_processes)]
        silent = [f"rank {rank} did not end" for rank, path in enumerate(answers) if not path.exists()]
        if errors or silent:
            raise RuntimeError("\n".join(errors or silent))
        return [torch.load(path, weights_only=False) for path in answers]


def run_python(*command: str) -> subprocess.CompletedProcess[str]:
    """A program of tests, or a module after -m, in a process of its own, with its words; `killed` may have ended it."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def _member(file: Path, name: str, folder: str, num_processes: int, rank: int) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_processes))
    try:
        specification = importlib.util.spec_from_file_location(file.stem, file)
        assert specification
        assert specification.loader
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=num_processes,
            timeout=timedelta(seconds=SECONDS / 2),
        )
        answer = getattr(module, name)(*torch.load(Path(folder, "args"), weights_only=False))
        torch.save(answer, Path(folder, f"partial{rank}"))
        Path(folder, f"partial{rank}").rename(Path(folder, f"answer{rank}"))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"error{rank}").write_text(traceback.format_exc())
        raise
