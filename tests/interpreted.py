"""Kernels without a GPU: run by Triton's interpreter on the CPU, and compiled for GPUs that are not there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from tripletmas.protection.engine import fused

KERNELS = Path(fused.__file__).with_name("kernels.py")


@contextmanager
def interpreted_kernels() -> Iterator[list[str]]:
    """Inside it every sum for which there is a kernel is done by it, in Triton's interpreter.

    Gives a list, to which the name of each kernel that ran is added.
    """
    ran: list[str] = []
    run = fused.run

    def noted(launch: fused.Launch, total: Any) -> None:
        ran.append(launch.kernel)
        run(launch, total)

    with pytest.MonkeyPatch.context() as patch, fused.used("always"):
        patch.setenv("TRITON_INTERPRET", "1")
        module = _copy_of_kernels()
        patch.setattr(fused, "_kernels", lambda: module)
        patch.setattr(fused, "run", noted)
        yield ran


def _copy_of_kernels() -> ModuleType:
    """The file anew: whether a kernel is interpreted is decided where it is decorated."""
    spec = importlib.util.spec_from_file_location("interpreted_kernels", KERNELS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Compiled(NamedTuple):
    """Attributes:
    ptx: for the assembler.
    registers: that a thread has.
    spilled: bytes that a thread keeps in memory in place of registers.
    shared: bytes of fast memory that a program takes.
    """

    ptx: str
    registers: int
    spilled: int
    shared: int


def compiled(launch: fused.Launch, capability: int, *, is_added: bool, out: dict[str, int]) -> Compiled:
    """What a launch is compiled to for GPUs of a compute capability (80 for 8.0), as Triton would do it there.

    Args:
        is_added, out: whether the kernel adds to the weight itself, and the strides of what it writes.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tripletmas.protection.engine import kernels

    kernel = getattr(kernels, launch.kernel)
    tile = dict(zip(("ROWS", "COLUMNS", "POSITIONS"), launch.tile, strict=False))
    constants = launch.constants | tile | {"IS_ADDED": is_added}
    types = {"torch.float32": "*fp32", "torch.bfloat16": "*bf16", "torch.float16": "*fp16"}
    sizes, signature, aligned = launch.sizes | out, {}, {}
    for place, parameter in enumerate(kernel.params):
        name, is_any = parameter.name, parameter.do_not_specialize
        if place < 3:
            signature[name] = types[str(launch.tensors[place].dtype)] if place < 2 else "*fp32"
        elif sizes.get(name) == 1 and not is_any:
            constants[name] = 1
        if name in constants:
            signature[name] = "constexpr"
        signature.setdefault(name, "i32")
        if place < 3 or (signature[name] == "i32" and not is_any and sizes[name] % 16 == 0):
            aligned[(place,)] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=places, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.tile.options())
    registers, spilled = _resources(made.asm["cubin"], Path(triton.__file__).parent / "backends" / "nvidia" / "bin")
    return Compiled(made.asm["ptx"], registers, spilled, made.metadata.shared)


def _resources(binary: bytes, tools: Path) -> tuple[int, int]:
    """Registers, and bytes of the stack, that a thread takes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [tools / "cuobjdump", "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])
