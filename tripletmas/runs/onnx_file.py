"""The model of a run as an ONNX file, compared with it under onnxruntime before it is kept."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tripletmas.basics.files import atomic_write
from tripletmas.basics.logs import errors_only
from tripletmas.basics.version import __version__
from tripletmas.data.preparation import Preparation
from tripletmas.data.tasks import learned_classes
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.models import RunModel, load_with_tasks

FURTHEST = 1e-5  # that an embedding may differ, as a share of its length
_BATCH = 4


@dataclass(frozen=True)
class _Asked:
    """What a model is exported as.

    Args:
        network: called with tensors of these names.
        inputs: name -> of a few samples; all begin with their number.
        open: name -> which of its dimensions may be of any size, and what these are called.
        about: how such inputs are made, as the file's metadata say it.
    """

    network: nn.Module
    inputs: dict[str, Tensor]
    open: dict[str, dict[int, Any]]
    about: dict[str, Any]


def write_onnx(run: RunDirectory, file: str | Path, *, after: int | None = None) -> tuple[RunModel, float]:
    """Write the model that a run deploys after a task; (the model, how far embeddings differ under onnxruntime).

    Of images its input `images` is float32 (n, channels, height, width) with values in [0, 1]; of texts `input_ids` and
    `attention_mask` are int64 (n, length), as the model's tokenizer gives them. The output `embeddings` is raw,
    (n, dim); n and length are free. The file's metadata say how inputs are made (`preparation`, JSON), which classes
    were learned (`classes`, JSON), and which weights these are.

    Args:
        after: the number of the task; None for the last that is done.

    Raises:
        ValueError: if a package is missing; if ONNX has no operator for something in the model; if what it computes
            differs by more than FURTHEST of an embedding's length.
    """
    onnx, runtime = _packages()
    model, learned = load_with_tasks(run, after=after, device="cpu")
    query = learned[0].query
    asked = _asked(model, query[list(range(min(_BATCH, len(query))))][0])
    content = onnx.load_model_from_string(_exported(asked, model.run))
    about = {
        "tripletmas": __version__,
        "model": model.hash,
        "preparation": json.dumps(asked.about),
        "classes": json.dumps(learned_classes(learned), ensure_ascii=False),
    }
    for key, value in about.items():
        content.metadata_props.add(key=key, value=value)
    written = content.SerializeToString()
    furthest = max(_difference(runtime, written, asked, count) for count in {1, min(_BATCH, len(query))})
    if not furthest <= FURTHEST:
        raise ValueError(
            f"{file} is not written: under onnxruntime embeddings differ by {furthest:.1e} of their length, more than "
            f"{FURTHEST:.0e}"
        )
    with atomic_write(file) as aside:
        aside.write_bytes(written)
    return model, furthest


def _asked(model: RunModel, samples: Tensor) -> _Asked:
    """What a model is exported as, given a few samples of its run."""
    network, count = model.model.eval(), torch.export.Dim("n", min=1)
    if isinstance(model.shown, Preparation):
        about = {**asdict(model.shown), "values": [0, 1]}
        return _Asked(network, {"images": samples}, {"images": {0: count}}, about)
    ids, mask = (each.contiguous() for each in samples.unbind(dim=1))
    length = torch.export.Dim("length", min=1, max=model.shown.max_length)
    about = {"tokenizer": model.shown.identity, "max_length": model.shown.max_length}
    free = {"input_ids": {0: count, 1: length}, "attention_mask": {0: count, 1: length}}
    return _Asked(_OfTwo(network), {"input_ids": ids, "attention_mask": mask}, free, about)


class _OfTwo(nn.Module):
    """A model of texts whose ids and mask are two inputs."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.network(torch.stack([input_ids, attention_mask], dim=1))


def _exported(asked: _Asked, run: str) -> bytes:
    """The bytes of the model as ONNX."""
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                asked.network,
                tuple(torch.cat([each, each])[:_BATCH] for each in asked.inputs.values()),  # of one, n would be 1
                dynamo=True,
                verbose=False,
                input_names=list(asked.inputs),
                output_names=["embeddings"],
                dynamic_shapes=tuple(asked.open.values()),
            )
        return program.model_proto.SerializeToString()
    except Exception as error:  # what torch raises where an operator cannot be expressed has many types
        raise ValueError(f"the model of {run} cannot be expressed in ONNX: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """What went wrong at first, in a line; torch puts advice to its own developers around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "data-dependent" not in lines[0]:
        return lines[0]
    where = next((f" ({line})" for line in reversed(lines) if line.startswith("File ")), "")
    return f"what it does, or how large a tensor is, depends on values of its input{where}"


def _difference(runtime: Any, content: bytes, asked: _Asked, count: int) -> float:
    """How far the embeddings of the first `count` samples by onnxruntime lie from the model's own, in their length."""
    few = {name: each[:count].clone() for name, each in asked.inputs.items()}
    try:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        given = {each.name: few[each.name].numpy() for each in session.get_inputs()}
        found = torch.from_numpy(np.asarray(session.run(None, given)[0]))
    except Exception as error:  # onnxruntime has types of its own
        raise ValueError(
            f"onnxruntime cannot run the model with {count} samples, as where it loops over them, or draws numbers for "
            f"so many: {str(error).splitlines()[0]}"
        ) from None
    with torch.inference_mode():
        expected = asked.network(*few.values())
    if found.shape != expected.shape:
        raise ValueError(f"the model becomes another in ONNX: it returns {tuple(found.shape)}")
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter uses it)
    except ImportError as error:
        raise ValueError(f'ONNX needs {error.name}: pip install "tripletmas[onnx]"') from None
    return onnx, onnxruntime


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter tells of its own steps."""
    nowhere = io.StringIO()
    with errors_only("torch"), redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
