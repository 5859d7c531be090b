"""Any model that can have made the vectors of a gallery, by the name that a user gives it, ready to embed.

runs/mas                                 a run directory: the model after its last task, or another one
exported                                 a folder that `tripletmas export --pretrained` wrote
timm:NAME, resnet18                      a model of timm or torchvision, with the weights that they know, or of a file:
                                         timm:NAME?weights=FILE&size=224, which is how such a model is noted
sentence-transformers:NAME_OR_FOLDER     a sentence encoder; the folder of one needs no prefix
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from torch import nn

from tripletmas.basics.files import read_tensors
from tripletmas.basics.weights import load_state, state_of, weight_hash
from tripletmas.data.preparation import Preparation, Size, height_and_width
from tripletmas.models import from_torchvision
from tripletmas.models.exported import CONFIG, WEIGHTS, read_exported
from tripletmas.models.from_timm import PREFIX as TIMM
from tripletmas.models.making import NORMALISED, is_built_in, made_for, make_model, model_names, unknown_model
from tripletmas.models.networks import embedding_dim
from tripletmas.models.text import PREFIX as TEXTS
from tripletmas.models.text import text_encoder_of
from tripletmas.runs.directory import RunDirectory, is_run
from tripletmas.runs.experiment import choose_device
from tripletmas.runs.models import RunModel, load_model, normalisation_of

OF_NO_RUN = -1  # after which task a model was, that is of no run
_IMAGES, _TEXTS = 64, 64  # embedded at once


def load_deployed(
    name: str | Path,
    *,
    after: int | None = None,
    weights: str | Path | None = None,
    size: Size | None = None,
    device: str = "auto",
    option: str = "--",
) -> RunModel:
    """The model of this name (see the head of this module), in eval mode; it reads images in this process.

    Args:
        after: the task of a run whose model it is; None for the last that is done.
        weights: a file of weights, for a model of timm or torchvision; None for those that they know, which are
            downloaded on first use.
        size: of the images, for the same; None for what the weights were made for.
        option: what the names of these begin with where the user gives them, as "--old-".

    Raises:
        ValueError: if there is no such model, its weights cannot be had or are another's, a task is not done yet, or
            an option is not for such a model.
    """
    folder = Path(name)
    given = {"weights": weights is not None, "size": size is not None}
    if is_run(folder):
        _refuse(given, option, f"{name} is a run, which has its own")
        found = load_model(RunDirectory.open(folder), after=after, device=device)
        return replace(found, run=str(name), model=found.model.eval(), num_workers=0)
    _refuse({"after": after is not None}, option, f"a task is of a run, and {name} is none")
    if folder.is_dir() or str(name).startswith(TEXTS):
        _refuse(given, option, f"{name} has its own")
        is_text = str(name).startswith(TEXTS) or (folder / "modules.json").is_file()
        found = _of_texts(str(name)) if is_text else from_pretrained(folder)
    elif _is_of_library(str(name)):
        plain, weights, size = _parts(str(name), weights, size)
        found = _of_library(plain, weights, size)
        name = _whole(plain, weights, size)
    else:
        raise _unknown(str(name))
    found.model.eval().to(choose_device(device))
    return replace(found, run=str(name), after_task=OF_NO_RUN, num_workers=0)


def from_pretrained(folder: str | Path) -> RunModel:
    """The model in a folder that `pretrained.save_pretrained` wrote, in eval mode, with how images are prepared for it.

    Raises:
        ValueError: if there is no such folder, if its weights are damaged or another network's, or if the network is
            made by code of somebody's own, which is not executed here.
    """
    config = read_exported(folder)
    options, shown = dict(config["model"]), config["preparation"]
    name = options.pop("name")
    if not is_built_in(name):
        raise ValueError(
            f"{folder} needs the code {name!r}, which is not executed: make the network yourself, and load {WEIGHTS}"
        )
    file = Path(folder) / WEIGHTS
    try:
        prepared = Preparation(**{**shown, "size": height_and_width(shown["size"])})
        model = make_model(name, prepared.shape, options=options).eval()
    except (LookupError, TypeError) as error:
        raise ValueError(f"{Path(folder) / CONFIG} is damaged ({error}): export the model anew") from None
    state, _ = read_tensors(file, "export the model anew")
    load_state(model, state, str(file))
    mean, deviation = normalisation_of(options)
    dim = embedding_dim(model, prepared.shape)
    made = (weight_hash(state), model, prepared, mean, deviation, dim)
    return RunModel(str(folder), 0, *made, batch_size=256, num_workers=0)


def _refuse(given: Mapping[str, bool], option: str, why: str) -> None:
    """Raises ValueError where an option is given that a model does not take."""
    for name in (name for name, is_given in given.items() if is_given):
        raise ValueError(f"{option}{name} is not for this model: {why}")


def _is_of_library(name: str) -> bool:
    return name.startswith(TIMM) or from_torchvision.has(name.partition("?")[0])


def _parts(name: str, weights: str | Path | None, size: Size | None) -> tuple[str, str | Path | None, Size | None]:
    """(the name alone, the file of weights, the size): those that are given, else those behind its question mark."""
    plain, _, behind = name.partition("?")
    said = dict(parse_qsl(behind))
    for key in said.keys() - {"weights", "size"}:
        raise ValueError(f"{name}: behind the question mark stand weights=FILE and size=PIXELS, not {key!r}")
    return plain, said.get("weights") if weights is None else weights, said.get("size") if size is None else size


def _whole(plain: str, weights: str | Path | None, size: Size | None) -> str:
    """The name by which a model is found again."""
    said = {} if weights is None else {"weights": os.path.abspath(weights)}
    said |= {} if size is None else {"size": "x".join(str(each) for each in height_and_width(size))}
    return plain + ("?" if said else "") + urlencode(said, safe="/")


def _unknown(name: str) -> ValueError:
    if "/" in name or ".py" in name or name in model_names():  # which have no weights that are known by a name
        return ValueError(
            f"{name} is no model that has learned anything: name a run directory, a folder that tripletmas export "
            "--pretrained wrote, timm:NAME, a model of torchvision, or sentence-transformers:NAME"
        )
    return unknown_model(name)


def _of_texts(name: str) -> RunModel:
    model = make_model(name if name.startswith(TEXTS) else f"{TEXTS}{name}", ())
    encoder = text_encoder_of(model)
    assert encoder is not None
    return _run_model(name, model, encoder.tokenizer, embedding_dim(model.eval(), ()))


def _of_library(name: str, weights: str | Path | None, size: Size | None) -> RunModel:
    """A model of timm or torchvision, without its classifier."""
    of_timm = name.startswith(TIMM)
    options: dict[str, Any] = {} if of_timm else {"dim": 0}
    options |= {"pretrained": True} if weights is None else {"weights": str(weights)}
    shown = made_for(name, options)
    kept = {key: shown[key] for key in ("interpolation", "crop") if key in shown}
    if size is not None:
        kept["crop"] = 1.0  # the share that is cut off belongs to a size
    prepared = Preparation(height_and_width(shown["size"] if size is None else size), 3, **kept)
    options |= {key: shown[key] for key in NORMALISED}
    model = make_model(name, prepared.shape, options=options)
    found = _run_model(name, model, prepared, embedding_dim(model.eval(), prepared.shape))
    return replace(found, mean=tuple(shown["mean"]), deviation=tuple(shown["deviation"]))


def _run_model(name: str, model: nn.Module, shown: Any, dim: int) -> RunModel:
    batch = _IMAGES if isinstance(shown, Preparation) else _TEXTS
    return RunModel(name, OF_NO_RUN, weight_hash(state_of(model)), model, shown, None, None, dim, batch, 0)
