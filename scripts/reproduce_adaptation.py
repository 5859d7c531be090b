#!/usr/bin/env python3
"""Adaptation: does importance measured on only a part of the old classes keep that part better than on all of them?

    .venv/bin/python scripts/reproduce_adaptation.py fashion-mnist-related --root FOLDER --strengths 1,3,10
    .venv/bin/python scripts/reproduce_adaptation.py omniglot --root FOLDER --json docs/results

For each seed an old task of two halves is learned. From the same weights a new task is then learned under MAS, whose
importance was measured on unlabelled training images of each half alone ("part"), of all old classes, and of all with
as few images as a half has; with no protection (finetune); and not at all (frozen). Queries are held out: nothing
trains or measures on them; each is searched among all queries, old and new, or (--gallery task) among those of its own
half or of the new task. A seed draws which classes (alphabets) are in which half and which are new, the initial weights
and the batches. Each half is the part in turn. In `fashion-mnist-related` the halves are kinds of clothes, always the
same. Seeds that are done are not repeated: --out has a file for each setting.

Source: after the adaptation experiment of Aljundi et al., Memory Aware Synapses, ECCV 2018; data and measure are ours.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tables import Cell, Table, keep
from torch import Tensor, nn
from torch.optim import Optimizer

import tripletmas as tm
from tripletmas.basics.weights import Params
from tripletmas.data.batches import seed_everything
from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.source import Source
from tripletmas.models.embedding import Embedder
from tripletmas.objectives.classes import DATASETS
from tripletmas.objectives.embedded import embed_tasks
from tripletmas.objectives.objective import MetricLoss
from tripletmas.objectives.retrieval.objective import score_embedded

HALVES = ("first", "second")
WHOLES = ("all", "all, half as many")
Row = dict[str, Any]  # measured on what, strength, number of samples, recall of both halves and of the new task


@dataclass(frozen=True)
class Setting:
    """What is learned; `sizes` counts the classes, or alphabets, of the first half, the second half, the new task.

    `kinds` are these three by name, with their classes, where they are not drawn.
    """

    data: str
    model: str
    sizes: list[int]
    old_epochs: int
    new_epochs: int
    batch_size: int
    per_class: list[int] | None = None  # at most so many training images and queries of a class
    kinds: dict[str, list[str]] | None = None


SETTINGS = {
    "omniglot": Setting("omniglot", "conv4", [3, 3, 4], old_epochs=12, new_epochs=8, batch_size=64),
    "fashion-mnist": Setting("fashion-mnist", "conv4", [3, 3, 4], 12, 8, batch_size=64, per_class=[300, 200]),
    "fashion-mnist-related": Setting(
        *("fashion-mnist", "mlp", [3, 3, 4], 12, 12),
        batch_size=48,
        per_class=[400, 200],
        kinds={
            "footwear": ["Sandal", "Sneaker", "Ankle boot"],
            "tops": ["T-shirt/top", "Pullover", "Shirt"],
            "others": ["Trouser", "Dress", "Coat", "Bag"],
        },
    ),
    "digits": Setting("digits", "mlp", [3, 3, 4], old_epochs=15, new_epochs=15, batch_size=32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(SETTINGS))
    parser.add_argument("--root", help="where the data are, if not in ./data")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--strengths", default="0.3,1,3,10", help="in the relative unit")
    parser.add_argument("--gallery", default="seen", choices=["seen", "task"], help="all queries; or each part's own")
    parser.add_argument("--epochs", type=int, help="of both tasks, in place of those of the data set")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"), help="a folder: what each seed has found")
    parser.add_argument("--json", type=Path, help="a folder: the table as JSON, for fill_tables.py")
    options = parser.parse_args()

    epochs = {"old_epochs": options.epochs, "new_epochs": options.epochs} if options.epochs else {}
    setting = replace(SETTINGS[options.data], **epochs)
    strengths = [float(strength) for strength in options.strengths.split(",")]
    settings = {"setting": options.data, "gallery": options.gallery, "strengths": strengths, **asdict(setting)}
    results: dict[str, Any] = {"settings": settings, "seeds": {}}
    found = options.out / f"{options.data}.json"
    if found.exists():
        results = json.loads(found.read_text(encoding="utf-8"))
        if results["settings"] != settings:
            parser.error(f"{found} has other settings: {results['settings']}")
    todo = [seed for seed in options.seeds.split(",") if seed not in results["seeds"]]
    source = DATASETS[setting.data](**({"root": options.root} if options.root else {})) if todo else None
    for seed in todo:
        results["seeds"][seed] = run_seed(source, setting, strengths, int(seed), options.gallery)
        found.parent.mkdir(parents=True, exist_ok=True)
        found.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    measured = table(list(results["seeds"].values()), strengths, part_names(setting), options.data)
    print(f"\n{measured.text()}")
    keep(measured, options.json, f"adaptation-{options.data}", settings=settings)


def run_seed(source: Source, setting: Setting, strengths: list[float], seed: int, gallery: str = "seen") -> list[Row]:
    """A row for each importance and strength: on what it was measured, and the recall@1 that was left."""
    began = time.perf_counter()
    first, second, _ = stream = make_tasks(source, setting, seed)
    seed_everything(seed)
    model = tm.make_model(setting.model, first.train.sample_shape)
    loss = tm.make_loss("triplet", dim=1, num_classes=1)  # it has no vectors of classes: neither number matters
    config = tm.TrainConfig(epochs=setting.old_epochs, batch_size=setting.batch_size, freeze_batchnorm=True, seed=seed)
    images, queries = concatenate([first.train, second.train]), concatenate([first.query, second.query])
    old = tm.Task("old", tuple(sorted(first.classes + second.classes)), images, queries)
    tm.train_stream(model, (old,), tm.strategies.Finetune(), loss, config)

    few = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: len(images) // 2]
    measured_on = (images, images.subset(few), first.train, second.train)
    unlabelled = dict(zip((*WHOLES, *HALVES), measured_on, strict=True))
    importances = {name: tm.mas_importance(model, data.loader(), relative=True) for name, data in unlabelled.items()}
    rows: list[Row] = []

    def record(measured: str, strength: float | None, recalls: list[float]) -> None:
        recall = dict(zip((*HALVES, "new"), recalls, strict=True))
        samples = len(unlabelled.get(measured, ()))
        rows.append({"measured": measured, "strength": strength, "samples": samples, "recall": recall})
        shown = (f"{part} {value:.3f}" for part, value in recall.items())
        print(f"seed {seed}, {time.perf_counter() - began:.0f} s: {measured}, strength {strength}:", *shown, flush=True)

    record("frozen", None, score_embedded(embed_tasks(model, stream, Embedder())).values[gallery]["recall@1"])
    config = replace(config, epochs=setting.new_epochs)
    for name, strength in [("finetune", None), *((name, strength) for strength in strengths for name in unlabelled)]:
        strategy = Protected(importances.get(name, {}), strength or 0.0)
        scores = tm.train_stream(copy.deepcopy(model), stream, strategy, loss, config)
        record(name, strength, scores.matrix("recall@1", gallery)[-1].tolist())
    return rows


def make_tasks(source: Source, setting: Setting, seed: int) -> tm.Stream:
    """(first half of the old task, second half, new task): classes (alphabets) drawn by the seed."""
    train, test = source.train, source.test
    if test and setting.per_class:
        train, test = at_most(train, setting.per_class[0]), at_most(test, setting.per_class[1])
    if test and setting.kinds:
        of_kind = Source(of_kinds(train, setting.kinds), of_kinds(test, setting.kinds))
        return tm.make_stream(of_kind, groups=[*setting.kinds])[0]
    num_units = len(train.classes if train.groups is None else set(train.groups))
    unused = [num_units - sum(setting.sizes)] if num_units > sum(setting.sizes) else []
    return tm.make_stream(Source(train, test), tasks=setting.sizes + unused, order_seed=seed)[0][:3]


def at_most(data: LabelledDataset, count: int) -> LabelledDataset:
    """The first `count` samples of each class."""
    return data.subset(torch.cat([(data.labels == label).nonzero().flatten()[:count] for label in data.classes]))


def of_kinds(data: LabelledDataset, kinds: dict[str, list[str]]) -> LabelledDataset:
    """The data with a group for each class: its kind."""
    kind_of = {name: kind for kind, names in kinds.items() for name in names}
    samples, labels = data[list(range(len(data)))]
    return LabelledDataset(samples, labels, data.class_names, groups=[kind_of[name] for name in data.class_names])


class Protected(tm.Strategy):
    """Learn the last of three tasks only; the model comes with the first two learned, and their importance measured."""

    def __init__(self, importance: Params, strength: float):
        self.importance = importance
        self.strength = strength

    def prepare(self, model: nn.Module, loss: MetricLoss, stream: tm.Stream) -> None:
        self.protections = (tm.MAS(model, self.strength),)
        self.protections[0].add(self.importance)  # the present weights become the reference

    def training_data(self, task: tm.Task, earlier: tm.Stream) -> LabelledDataset | None:
        return task.train if len(earlier) == 2 else None

    def before_task(self, model: nn.Module, task: tm.Task, optimizer: Optimizer) -> None:
        self.protections[0].attach(optimizer)


def part_names(setting: Setting) -> dict[str, list[int]]:
    """What is the part in each row: drawn halves are alike and share one, kinds have their own."""
    if setting.kinds is None:
        return {"each half": [0, 1]}
    return {kind: [half] for half, kind in zip((0, 1), setting.kinds, strict=False)}


def table(seeds: list[list[Row]], strengths: list[float], parts: dict[str, list[int]], name: str) -> Table:
    """recall@1 on the part by what its importance was measured on, for each part and strength; of the differences how
    many halves are kept better, equally and worse."""
    ways = ("from all", "from half as many of all", "from the part", "from the other part")
    columns = {"part": "name", "strength": "text", **dict.fromkeys(("before", "finetune", *ways), "spread")}
    columns |= {"part - all": "change", "better, same, worse": "text", "part - other part": "change"}
    columns |= {"other classes, part - all": "change", "new task, all": "spread", "new task, part": "spread"}
    rows: list[Mapping[str, Cell]] = []
    for part, halves in parts.items():
        before, finetune = (left(seeds, way, None)[:, halves].mean(1)[:, 0] for way in ("frozen", "finetune"))
        for strength in strengths:
            whole, few, own, other = (left(seeds, way, strength)[:, halves] for way in (*WHOLES, "part", "other half"))
            gain = own - whole
            signs = [str(int((gain[..., 0].sign() == sign).sum())) for sign in (1, 0, -1)]
            cells = (before, finetune, *(each[..., 0].mean(1) for each in (whole, few, own, other, gain)))
            more = ((own - other)[..., 0], gain[..., 1], whole[..., 2], own[..., 2])
            values = [each.tolist() for each in (*cells, *(each.mean(1) for each in more))]
            told: list[Cell] = [part, f"{strength:g}", *values[:7], ", ".join(signs), *values[7:]]
            rows.append(dict(zip(columns, told, strict=True)))
    return Table(columns, rows, f"recall@1 on the part after the new task: {name}, {len(seeds)} seeds")


def left(seeds: list[list[Row]], measured: str, strength: float | None) -> Tensor:
    """recall@1 (seeds, 2, 3): each half in turn is the part; on the part, on the other old classes, on the new task."""
    found = []
    for rows in seeds:
        recalls = {row["measured"]: row["recall"] for row in rows if row["strength"] == strength}
        for part, other in (HALVES, HALVES[::-1]):
            recall = recalls[{"part": part, "other half": other}.get(measured, measured)]
            found.append([recall[part], recall[other], recall["new"]])
    return torch.tensor(found, dtype=torch.float64).view(len(seeds), 2, 3)


if __name__ == "__main__":
    main()
