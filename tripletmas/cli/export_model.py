"""What `export` does with the model itself: a folder that stands alone, or ONNX."""

from __future__ import annotations

from tripletmas.cli.outputs import check_output, check_place
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.onnx_file import write_onnx
from tripletmas.runs.pretrained import save_pretrained


def write_folder(run: RunDirectory, folder: str, after: int | None) -> None:
    """Write the model as a folder, and say how to go on."""
    check_place("--pretrained", folder)
    model = save_pretrained(run, folder, after=after)
    print(
        f"{folder}: the model of {run.path} after task {model.after_task}, dim {model.dim}, with a card of its scores"
    )
    print(f"go on from it: tripletmas train --model {folder} ...; in Python: tripletmas.from_pretrained({folder!r})")


def write_file(run: RunDirectory, file: str, after: int | None) -> None:
    """Write the model as ONNX, and say what its input is."""
    check_output("--onnx", file, ".onnx")
    model, furthest = write_onnx(run, file, after=after)
    shape = ", ".join(map(str, ("n", *model.prepared.shape)))
    print(
        f"{file}: the model of {run.path} after task {model.after_task}, images ({shape}) with values in [0, 1] to "
        f"embeddings (n, {model.dim}); under onnxruntime they differ by at most {furthest:.1e} of their length"
    )
