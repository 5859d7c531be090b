"""The model of a run as an ONNX file, compared with it under onnxruntime before it is kept."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tripletmas.basics.files import atomic_write
from tripletmas.basics.version import __version__
from tripletmas.data.tokens import Tokenizer
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import load_trained
from tripletmas.runs.models import RunModel, load_model

FURTHEST = 1e-5  # that an embedding may differ, as a share of its length
_BATCH = 4


def write_onnx(run: RunDirectory, file: str | Path, *, after: int | None = None) -> tuple[RunModel, float]:
    """Write the model that a run deploys after a task; (the model, how far embeddings differ under onnxruntime).

    Its input `images` is float32 (n, channels, height, width) with values in [0, 1], of any n; its output `embeddings`
    the raw ones, (n, dim). The file's metadata say how images are prepared (`preparation`, JSON), which classes were
    learned (`classes`, JSON), and which weights these are.

    Args:
        after: the number of the task; None for the last that is done.

    Raises:
        ValueError: if a package is missing; if ONNX has no operator for something in the model; if what it computes
            differs by more than FURTHEST of an embedding's length.
    """
    onnx, runtime = _packages()
    model = load_model(run, after=after, device="cpu")
    if isinstance(model.shown, Tokenizer):
        raise ValueError(f"ONNX is for models of images, and that of {run.path} reads texts: use --pretrained FOLDER")
    experiment, number = load_trained(run, model.after_task, device="cpu")
    learned = experiment.stream[: number + 1]
    few = [learned[0].query[position][0] for position in range(min(_BATCH, len(learned[0].query)))]
    images = torch.stack(few)
    names = learned[0].train.class_names
    classes = list(dict.fromkeys(names[label] for task in learned for label in task.classes))
    content = onnx.load_model_from_string(_exported(model, images))
    about = {
        "tripletmas": __version__,
        "model": model.hash,
        "preparation": json.dumps({**asdict(model.prepared), "values": [0, 1]}),
        "classes": json.dumps(classes, ensure_ascii=False),
    }
    for key, value in about.items():
        content.metadata_props.add(key=key, value=value)
    written = content.SerializeToString()
    furthest = max(_difference(runtime, written, model, images[:count]) for count in {1, len(images)})
    if not furthest <= FURTHEST:
        raise ValueError(
            f"{file} is not written: under onnxruntime embeddings differ by {furthest:.1e} of their length, more than "
            f"{FURTHEST:.0e}"
        )
    with atomic_write(file) as aside:
        aside.write_bytes(written)
    return model, furthest


def _exported(model: RunModel, images: Tensor) -> bytes:
    """The bytes of the model as ONNX, the number of images left open."""
    network = model.model.eval()
    count = torch.export.Dim("n", min=1)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                network,
                (torch.cat([images, images])[:_BATCH],),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_shapes=({0: count},),
            )
        return program.model_proto.SerializeToString()
    except Exception as error:  # what torch raises where an operator cannot be expressed has many types
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "rror" in line), lines[0] if lines else type(error).__name__)
        raise ValueError(f"the model of {model.run} cannot be expressed in ONNX: {reason}") from None


def _difference(runtime: Any, content: bytes, model: RunModel, images: Tensor) -> float:
    """How far embeddings by onnxruntime lie from the model's own, as a share of their length, at most."""
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(np.asarray(session.run(None, {"images": images.numpy()})[0]))
    with torch.inference_mode():
        expected = model.model(images.clone())
    if found.shape != expected.shape:
        raise ValueError(f"the model of {model.run} becomes another in ONNX: it returns {tuple(found.shape)}")
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
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
