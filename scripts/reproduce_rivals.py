#!/usr/bin/env python3
"""MAS and its rivals: every strategy, each at the strength that is best on validation data, on several streams.

    .venv/bin/python scripts/reproduce_rivals.py digits
    .venv/bin/python scripts/reproduce_rivals.py digits omniglot-5 --omniglot FOLDER --jobs 2
    .venv/bin/python scripts/reproduce_rivals.py --all --table > tables.md      # what is there, and what is missing

A strength is chosen by the final average on samples held out of the training data (`data.validation`), from the same
number of values for every strategy; where the best lies at an end, up to three more are tried there. Then the strategy
is run with it on the test queries, with several seeds. Each run's result is a JSON file below --out, named by the hash
of its configuration: runs that are there are not repeated, so the script goes on where it stopped, and the tables grow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from side_by_side import run_side_by_side

Config = dict[str, Any]
ALPHABETS = [  # the first fifteen of thirty
    *["Alphabet_of_the_Magi", "Anglo-Saxon_Futhorc", "Arcadian", "Armenian", "Asomtavruli_(Georgian)", "Balinese"],
    *["Bengali", "Blackfoot_(Canadian_Aboriginal_Syllabics)", "Braille", "Burmese_(Myanmar)", "Cyrillic"],
    *["Early_Aramaic", "Futurama", "Grantha", "Greek"],
]
CONV = {"epochs": 8, "batch_size": 64, "samples_per_class": 4, "freeze_batchnorm": True}
HEADS = {**CONV, "loss_lr": 0.01}  # new heads have to catch up with a trunk that has learned before
SLIM = {"name": "conv4", "width": 32}  # sized to two cores
OMNIGLOT = {"name": "omniglot", "size": 28, "root": "{omniglot}"}
FASHION = {"name": "fashion-mnist", "root": "{fashion_mnist}"}
CLOTHING = {"name": "folder", "root": "{clothing}", "size": 32, "channels": 3}
SEQUENCE = ["digits", {**OMNIGLOT, "groups": ALPHABETS[:5]}, FASHION, {**CLOTHING, "as": "clothing"}]


@dataclass(frozen=True)
class Setting:
    """A stream, a model and how they are trained; and the seeds of the test runs and of those on validation data.

    Attributes:
        memory: images that replay may keep: two of each class of the stream, and at least 200.
    """

    about: str
    config: Config
    seeds: tuple[int, ...] = (0, 1, 2)
    validation_seeds: tuple[int, ...] = (0,)
    memory: int = 200


SETTINGS = {
    "digits": Setting(
        "Digits, 5 tasks of 2 classes; mlp, batch-hard triplet loss, 15 epochs a task",
        {"data": {"name": "digits", "tasks": 5}, "model": "mlp", "training": {"epochs": 15, "batch_size": 32}},
        seeds=(0, 1, 2, 3, 4),
        validation_seeds=(0, 1, 2),
    ),
    "omniglot-5": Setting(
        "Omniglot, the first 15 alphabets as 5 tasks of 3; conv4 of width 32, triplet loss, 8 epochs a task",
        {"data": {**OMNIGLOT, "tasks": 5, "groups": ALPHABETS}, "model": SLIM, "training": CONV},
        memory=2 * 507,
    ),
    "fashion-mnist": Setting(
        "Fashion-MNIST, 5 tasks of 2 classes, 300 images a class; conv4 of width 32, triplet loss, 8 epochs a task",
        {"data": {**FASHION, "tasks": 5, "per_class": 300}, "model": SLIM, "training": CONV},
    ),
    "clothing": Setting(
        "Clothing, photographs at 32x32, 5 tasks of 2 classes; conv4 of width 32, triplet loss, 8 epochs a task",
        {"data": {**CLOTHING, "tasks": 5}, "model": SLIM, "training": CONV},
    ),
    "split-omniglot": Setting(
        "Recognition: Omniglot, the first 15 alphabets as 5 tasks of 3; conv4 of width 32, 8 epochs a task",
        {
            "data": {**OMNIGLOT, "tasks": 5, "groups": ALPHABETS},
            "model": SLIM,
            "training": HEADS,
            "objective": "recognition",
        },
        memory=2 * 507,
    ),
    "sequence": Setting(
        "Recognition: digits, five alphabets of Omniglot, Fashion-MNIST, clothing, a task each, at most 100 images a "
        "class, 1x28x28; "
        "conv4, 8 epochs a task",
        {
            "data": {"name": "sequence", "parts": SEQUENCE, "size": 28, "channels": 1, "per_class": 100},
            "model": SLIM,
            "training": HEADS,
            "objective": "recognition",
        },
        memory=2 * 186,
    ),
    "omniglot": Setting(
        "Omniglot, 30 alphabets as 10 tasks of 3; conv4, batch-hard triplet loss, 8 epochs a task",
        {"data": {**OMNIGLOT, "tasks": 10}, "model": "conv4", "training": CONV},
        memory=2 * 964,
    ),
}


@dataclass(frozen=True)
class Method:
    """A strategy with its options, and the values that are tried of its strength; none if it has no strength."""

    strategy: Config
    strengths: tuple[float, ...] = ()


RELATIVE, DECADES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
METHODS = {
    "finetune": Method({"name": "finetune"}),
    "frozen": Method({"name": "frozen"}),
    "joint": Method({"name": "joint"}),
    "mas": Method({"name": "mas"}, RELATIVE),
    "mas, raw unit": Method({"name": "mas", "relative": False}, DECADES),
    "mas, logits": Method({"name": "mas", "output": "logits"}, RELATIVE),
    "local_mas": Method({"name": "local_mas"}, RELATIVE),
    "l2": Method({"name": "l2"}, DECADES),
    "ewc": Method({"name": "ewc"}, tuple(1e3 * each for each in DECADES)),
    "si": Method({"name": "si"}, DECADES),
    "distill": Method({"name": "distill"}, RELATIVE),
    "ebll": Method({"name": "ebll"}, DECADES),
    "imm, mean": Method({"name": "imm", "merging": "mean"}),
    "imm, mode": Method({"name": "imm", "merging": "mode"}),
    "imm+l2, mode": Method({"name": "imm+l2", "imm": {"merging": "mode"}, "l2": {"decay": 0.0}}),
    "replay": Method({"name": "replay"}),
    "mas+distill": Method({"name": "mas+distill"}),
    "mas+replay": Method({"name": "mas+replay"}),
    "mas, batch 32": Method({"name": "mas", "batch_gradients": 32}, RELATIVE),
    "mas, batch 128": Method({"name": "mas", "batch_gradients": 128}, RELATIVE),
}
HEADS_ONLY, METRIC_ONLY = ("mas, logits",), ("mas, batch 32", "mas, batch 128")
FURTHER = 3  # values that are tried beyond the end of a sweep
SENSITIVITY = {"mas": "mas, relative unit", "mas, raw unit": "mas, raw unit", "ewc": "ewc", "si": "si"}


# --- which runs are wanted, given the results that are there


class Results:
    """The results on disk, by configuration."""

    def __init__(self, out: Path):
        self.out = out

    def path(self, config: Config) -> Path:
        return self.out / f"{_hash(json.dumps(config, sort_keys=True))}.json"

    def get(self, config: Config) -> Config | None:
        path = self.path(config)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def average(self, config: Config) -> float:
        """The final average; nan where the run is missing or failed."""
        found = self.get(config)
        return found["summary"]["average"] if found and "summary" in found else math.nan


def configured(setting: Setting, strategy: Config, seed: int, *, validation: bool) -> Config:
    """The configuration of one run."""
    data = {**setting.config["data"], "validation": validation}
    return {"objective": "metric", **setting.config, "data": data, "strategy": strategy, "seed": seed}


def swept(setting: Setting, method: Method, strength: float) -> list[Config]:
    """The runs on validation data that judge a strength."""
    return _validated(setting, {**method.strategy, "strength": strength})


def curve(results: Results, setting: Setting, method: Method) -> dict[float, list[float]]:
    """strength -> the average of each validation run, in the order of strengths, with those beyond the ends."""
    values = list(method.strengths)
    found = {value: [results.average(each) for each in swept(setting, method, value)] for value in values}
    factor = values[-1] / values[-2]
    for _ in range(FURTHER):
        means = {value: _mean(each) for value, each in sorted(found.items())}
        if any(math.isnan(mean) and not _failed(results, setting, method, value) for value, mean in means.items()):
            break  # not there yet
        best = max(means, key=lambda value: -math.inf if math.isnan(means[value]) else means[value])
        lowest, highest = min(means), max(means)
        if best not in (lowest, highest):
            break
        further = _rounded(best * factor if best == highest else best / factor)
        found[further] = [results.average(each) for each in swept(setting, method, further)]
    return dict(sorted(found.items()))


def chosen_strategy(results: Results, setting: Setting, name: str) -> Config | None:
    """The strategy with its best strength; None while that is not known."""
    method = METHODS[name]
    if method.strengths:
        values = curve(results, setting, method)
        means = {value: _mean(each) for value, each in values.items()}
        unknown = [v for v, mean in means.items() if math.isnan(mean) and not _failed(results, setting, method, v)]
        known = {value: mean for value, mean in means.items() if not math.isnan(mean)}
        return None if unknown or not known else {**method.strategy, "strength": max(known, key=lambda v: known[v])}
    strategy = dict(method.strategy)
    parts = strategy["name"].split("+")
    for part in _parts(method):  # as it is best alone
        alone = chosen_strategy(results, setting, part)
        if alone is None:
            return None
        strategy[part] = {**{key: value for key, value in alone.items() if key != "name"}, **strategy.get(part, {})}
    if "replay" in parts:
        memory = {"memory": setting.memory}
        strategy = {**strategy, **(memory if len(parts) == 1 else {"replay": memory})}
    return strategy


def wanted(results: Results, setting: Setting, names: list[str]) -> list[Config]:
    """The runs that can be made now and are not there yet."""
    runs: list[Config] = []
    for name in names:
        if name == "finetune":  # what the figure compares with
            runs += _validated(setting, METHODS[name].strategy)
        for judged in (name, *_parts(METHODS[name])):
            for strength in curve(results, setting, METHODS[judged]) if METHODS[judged].strengths else ():
                runs += swept(setting, METHODS[judged], strength)
        strategy = chosen_strategy(results, setting, name)
        if strategy:  # else its best strength is not known yet
            runs += [configured(setting, strategy, seed, validation=False) for seed in setting.seeds]
    return [run for path, run in {results.path(run): run for run in runs}.items() if not path.exists()]


def _parts(method: Method) -> list[str]:
    """Of a combination: the parts that take the strength which is best for them alone."""
    parts = method.strategy["name"].split("+")
    return [part for part in parts if len(parts) > 1 and part in METHODS and METHODS[part].strengths]


def applicable(setting: Setting, names: list[str]) -> list[str]:
    """The methods that a setting's objective allows."""
    recognition = setting.config.get("objective") == "recognition"
    return [name for name in names if name not in (METRIC_ONLY if recognition else HEADS_ONLY)]


# --- one run, in a process of its own


_streams: dict[str, Any] = {}


def execute(job: tuple[Config, Path, dict[str, str]]) -> str:
    """Train what a configuration says, and write the result; an error is a result too."""
    config, path, places = job
    from tripletmas.basics.version import versions
    from tripletmas.basics.weights import trainable
    from tripletmas.objectives.scores import summarize
    from tripletmas.runs.catalog import build_data
    from tripletmas.runs.configuration import resolve
    from tripletmas.runs.experiment import build
    from tripletmas.runs.loop import train_stream

    config = _placed(config, places)
    key = json.dumps(config["data"], sort_keys=True)
    if key not in _streams:
        data = resolve({"data": config["data"]})["data"]
        _streams[key] = build_data(data.pop("name"), data)
    result: Config = {"config": _without_places(config), "versions": versions()}
    began = time.perf_counter()
    try:
        made = build(config, data=_streams[key])
        scores = train_stream(made.model, made.stream, made.strategy, made.objective, made.training)
    except (ValueError, FloatingPointError) as error:
        result["error"] = str(error)
    else:
        recognition = config["objective"] == "recognition"
        primary = scores.matrix("accuracy", "task") if recognition else scores.matrix("recall@1", "seen")
        kept = made.strategy.state_dict()
        held = [value for name, value in kept.items() if name.rpartition("/")[2] == "held"]  # replay's, (2, samples)
        images = held[0].shape[1] if held else 0
        if config["strategy"]["name"] == "joint":
            images = sum(len(task.train) for task in made.stream[:-1])
        weights = trainable(made.model).values()
        size = made.stream[0].train.sample_shape
        result |= {
            "seconds": time.perf_counter() - began,
            "summary": summarize(primary),
            "scores": scores.to_json(),
            "memory_bytes": sum(value.numel() * value.element_size() for value in kept.values()),
            "images": images,
            "image_bytes": images * math.prod(size),
            "weight_bytes": sum(value.numel() * value.element_size() for value in weights),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    aside.rename(path)
    outcome = f"{result['summary']['average']:.3f}, {result['seconds']:.0f} s" if "summary" in result else "failed"
    return f"{json.dumps(config['strategy'])} seed {config['seed']}: {outcome}"


# --- tables


def table(results: Results, setting: Setting, names: list[str]) -> str:
    """The table of a setting; what is missing is shown as missing."""
    from tripletmas.objectives.scores import Scores
    from tripletmas.report.numbers import Spread

    recognition = setting.config.get("objective") == "recognition"
    extra = ["nearest mean, fresh", "compensated", "stale", "ridge"] if recognition else []
    head = ["method", "strength", "seeds", "average", "forgetting", "learning", "average - finetune", *extra]
    head += ["seconds", "extra memory"]
    lines = [f"| {' | '.join(head)} |", f"| --- | ---: |{' ---: |' * (len(head) - 2)}"]
    strategies = {name: chosen_strategy(results, setting, name) for name in names}
    first = setting.seeds[0]
    if not any(strategy and results.get(_test(setting, strategy, first)) for strategy in strategies.values()):
        return f"{setting.about}.\n\nMissing: no run of it is there yet.\n"
    of_finetune = {seed: results.average(_test(setting, {"name": "finetune"}, seed)) for seed in setting.seeds}
    for name, strategy in strategies.items():
        found = {seed: results.get(_test(setting, strategy, seed)) for seed in setting.seeds if strategy}
        done = {seed: each for seed, each in found.items() if each and "summary" in each}
        failed = [each["error"] for each in found.values() if each and "error" in each]
        if strategy is None and METHODS[name].strengths:
            tried = [results.get(each) for s in METHODS[name].strengths for each in swept(setting, METHODS[name], s)]
            failed = (
                [each["error"] for each in tried if each] if all(each and "error" in each for each in tried) else []
            )
        if strategy is None or not done:
            reason = f"failed: {failed[0].partition(':')[0]}" if failed else "missing"
            lines.append(f"| {name} | {reason} |{' |' * (len(head) - 2)}")
            continue
        pick = {
            key: [each["summary"][key] for each in done.values()] for key in ("average", "forgetting", "plasticity")
        }
        differences = [each["summary"]["average"] - of_finetune[seed] for seed, each in done.items()]
        shown = f"{len(done)}, {len(failed)} failed" if failed else str(len(done))
        cells = [name, _strengths(strategy), shown, *(Spread(tuple(pick[key])).text() for key in pick)]
        cells.append("" if name == "finetune" else Spread(tuple(differences)).text(signed=True))
        for kind in ("fresh", "compensated", "stale", "ridge") if recognition else ():
            matrices = [Scores.from_json(each["scores"]).matrix(f"accuracy_{kind}", "seen") for each in done.values()]
            cells.append(Spread(tuple(float(matrix[-1].mean()) for matrix in matrices)).text())
        cells.append(f"{min(each['seconds'] for each in done.values()):.0f}")  # of the run that was disturbed least
        cells.append(_memory(next(iter(done.values()))))
        lines.append(f"| {' | '.join(cells)} |")
    return f"{setting.about}.\n\n" + "\n".join(lines) + "\n"


def _validated(setting: Setting, strategy: Config) -> list[Config]:
    return [configured(setting, strategy, seed, validation=True) for seed in setting.validation_seeds]


def _test(setting: Setting, strategy: Config | None, seed: int) -> Config:
    return configured(setting, strategy or {}, seed, validation=False)


def _strengths(strategy: Config) -> str:
    own = [f"{strategy['strength']:g}"] if "strength" in strategy else []
    parts = [f"{name} {of['strength']:g}" for name, of in strategy.items() if isinstance(of, dict) and "strength" in of]
    return ", ".join(own + parts)


def _memory(result: Config) -> str:
    weights = result["memory_bytes"] / result["weight_bytes"]
    shown = f"{weights:.1f} x weights" if weights >= 0.05 else "none"
    if result["images"]:
        pictures = f"{result['images']} images ({result['image_bytes'] / result['weight_bytes']:.1f} x)"
        return pictures if weights < 0.05 else f"{shown}, {pictures}"
    return shown


def draw(results: Results, settings: list[str], path: Path) -> None:
    """The figure of how much a wrong strength costs."""
    from tripletmas.report.numbers import Spread
    from tripletmas.report.sensitivity import Curve, Panel, draw_sensitivity

    panels = []
    for name in settings:
        setting = SETTINGS[name]
        curves = {}
        for method, label in SENSITIVITY.items():
            found = curve(results, setting, METHODS[method])
            whole = {value: Spread(tuple(each)) for value, each in found.items() if not any(map(math.isnan, each))}
            if whole:
                deviations = [each.deviation or 0.0 for each in whole.values()]
                curves[label] = Curve(list(whole), [each.mean for each in whole.values()], deviations)
        finetune = Spread(tuple(results.average(each) for each in _validated(setting, {"name": "finetune"})))
        panels.append(Panel(name, curves, (finetune.mean, finetune.deviation or 0.0)))
    draw_sensitivity(path, panels, score="average score on validation data", bottom=-0.15)


# --- small things


@cache
def _hash(text: str) -> str:
    """Of the whole configuration, with all defaults: where one of them changes, a run is another."""
    from tripletmas.runs.configuration import resolve

    whole = _without_places(resolve(json.loads(text)))
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def _without_places(value: Any) -> Any:
    """A configuration without where data lie and on what device it runs, which no result should depend on."""
    if isinstance(value, dict):
        return {key: _without_places(entry) for key, entry in value.items() if key not in ("root", "device")}
    return [_without_places(entry) for entry in value] if isinstance(value, list) else value


def _placed(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _placed(entry, places) for key, entry in value.items()}
    if isinstance(value, list):
        return [_placed(entry, places) for entry in value]
    return value.format(**places) if isinstance(value, str) and value.startswith("{") else value


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _failed(results: Results, setting: Setting, method: Method, strength: float) -> bool:
    found = [results.get(each) for each in swept(setting, method, strength)]
    return any(each is not None and "error" in each for each in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--all", action="store_true", help="all settings")
    parser.add_argument("--methods", default="", help="some of them only, with ; between them")
    parser.add_argument("--omniglot", default="data", help="where Omniglot lies")
    parser.add_argument("--fashion-mnist", default="data", help="where Fashion-MNIST lies")
    parser.add_argument("--clothing", default="data/clothing", help="the folder or archive of clothing-dataset-small")
    parser.add_argument("--out", default="runs/rivals", type=Path)
    parser.add_argument("--jobs", default=1, type=int, help="runs at the same time")
    parser.add_argument("--table", action="store_true", help="only print the tables of the runs that are there")
    parser.add_argument("--figure", type=Path, help="write the figure of sensitivity to the strength there")
    options = parser.parse_args()
    settings = list(SETTINGS) if options.all else options.settings
    names = options.methods.split(";") if options.methods else list(METHODS)
    for what, given, known in (("setting", settings, SETTINGS), ("method", names, METHODS)):
        unknown = [each for each in given if each not in known]
        if unknown or not given:
            parser.error(f"unknown {what} {unknown}: there are {'; '.join(known)}")
    results = Results(options.out)
    places = {"omniglot": options.omniglot, "fashion_mnist": options.fashion_mnist, "clothing": options.clothing}
    if not options.table and not options.figure:
        for name in settings:
            setting = SETTINGS[name]
            while runs := wanted(results, setting, applicable(setting, names)):
                print(f"{name}: {len(runs)} runs", flush=True)
                jobs = [(run, results.path(run), places) for run in runs]
                run_side_by_side(execute, jobs, at_once=options.jobs, indent="  ")
    if options.figure:
        draw(results, settings, options.figure)
    for name in settings:
        print(f"## {name}\n\n{table(results, SETTINGS[name], applicable(SETTINGS[name], names))}")


if __name__ == "__main__":
    sys.exit(main())
