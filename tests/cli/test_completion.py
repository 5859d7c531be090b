"""What completes words in a shell knows the commands, their options and the names of parts."""

from __future__ import annotations

import shutil
import subprocess

import pytest


@pytest.mark.slow
def test_bash_completes(call):
    status, script, _ = call("completion", "bash")
    assert status == 0
    bash = shutil.which("bash")
    if not bash:
        pytest.skip("there is no bash")

    def completed(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in ("tripletmas", *words))
        asked = f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _tripletmas; echo "${{COMPREPLY[@]}}"'
        return set(subprocess.run([bash, "-c", asked], capture_output=True, text=True, check=True).stdout.split())

    assert completed("tra") == {"train"}
    assert completed("train", "--strategy", "di") == {"distill"}
    assert completed("index", "re") == {"remove", "refresh"}
    assert completed("index", "refresh", "--reem") == {"--reembed"}
    assert {"--training.lr", "--training.epochs"} <= completed("train", "--training.")
    assert completed("list", "str") == {"strategies"}


def test_others_are_refused(call):
    status, _, complaint = call("completion", "tcsh")
    assert status == 2
    assert "bash" in complaint
