"""Freed memory that stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_large_blocks_are_not_mapped_anew_each_time():
    """A tensor of 40 MiB made and freed 20 times: by default its 10240 pages are mapped anew each time."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc's allocator can be told")
    script = (
        "import resource, sys, torch\n"
        "if sys.argv[1] == 'keep':\n"
        "    from tripletmas.cli.train import keep_freed_memory\n"
        "    assert keep_freed_memory()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): torch.ones(10 * 2**20)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = {
        way: int(subprocess.run([sys.executable, "-c", script, way], capture_output=True, text=True, check=True).stdout)
        for way in ("leave", "keep")
    }
    assert faults["leave"] > 19 * 10240
    assert faults["keep"] < 0.6 * faults["leave"]
