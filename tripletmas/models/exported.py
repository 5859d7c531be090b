"""A model as a folder that stands alone: weights, what the network is, how images are prepared for it, a card.

model.safetensors   the weights, under the names of the network
config.json         which model with which options, what an image becomes, the classes that it learned
README.md           a model card
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from tripletmas.basics.files import atomic_write, write_tensors
from tripletmas.basics.version import __version__
from tripletmas.basics.weights import state_of, weight_hash
from tripletmas.data.preparation import Preparation, written

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_KEY = "tripletmas"  # what tells such a config.json from those of other programs


def write_exported(
    folder: str | Path,
    model: nn.Module,
    options: Mapping[str, Any],
    prepared: Preparation,
    *,
    classes: Sequence[str],
    card: str,
) -> None:
    """Write the folder, whole or not at all.

    Args:
        options: with which the network is made without weights to start from, `name` among them.
        classes: the names of those that were learned.
        card: the text of README.md.

    Raises:
        ValueError: if something is there.
    """
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise ValueError(f"{folder} is there already: name another folder, or delete it")
    state = state_of(model)
    config = {
        _KEY: __version__,
        "model": dict(options),
        "preparation": {**asdict(prepared), "size": written(prepared.size)},
        "weights_hash": weight_hash(state),
        "classes": list(classes),
    }
    with atomic_write(folder, folder=True) as aside:
        write_tensors(aside / WEIGHTS, state)
        (aside / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (aside / CARD).write_text(card, encoding="utf-8")


def read_exported(folder: str | Path) -> dict[str, Any]:
    """What a folder says of its model: `model`, `preparation`, `weights_hash` and `classes`.

    Raises:
        ValueError: if it is none that `write_exported` wrote, or was damaged.
    """
    file = Path(folder) / CONFIG
    if (Path(folder) / "modules.json").is_file():
        raise ValueError(f"{folder} is a model of Sentence Transformers: name it sentence-transformers:{folder}")
    if not file.is_file():
        raise ValueError(f"{folder} is no exported model: it has no {CONFIG}, as tripletmas export --pretrained writes")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no exported model: {file} cannot be read ({error})") from None
    if not isinstance(content, dict) or _KEY not in content or not (Path(folder) / WEIGHTS).is_file():
        raise ValueError(f"{folder} is no model that tripletmas export --pretrained wrote")
    model, prepared = content.get("model"), content.get("preparation")
    if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not isinstance(prepared, dict):
        raise ValueError(f"{file} is damaged: export the model anew")
    return content


def options_of_exported(folder: str | Path) -> dict[str, Any]:
    """The options, `name` among them, of a model that starts from what is in a folder; errors as `read_exported`."""
    return {**read_exported(folder)["model"], "weights": os.path.abspath(Path(folder) / WEIGHTS)}


def prepared_beside(weights: object) -> dict[str, Any]:
    """How images are prepared for the weights in a file, if it is that of an exported model; {} if not."""
    if not isinstance(weights, str) or Path(weights).name != WEIGHTS:
        return {}
    try:
        prepared = read_exported(Path(weights).parent)["preparation"]
    except ValueError:
        return {}
    return {key: prepared[key] for key in ("size", "interpolation", "crop") if key in prepared}
