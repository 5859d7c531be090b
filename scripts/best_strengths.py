"""Strategies, each at the strength that is best on validation data: which runs are wanted, and what they gave."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

Config = dict[str, Any]
FURTHER = 3  # values that are tried beyond the end of a sweep


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


@dataclass(frozen=True)
class Method:
    """A strategy with its options, and the values that are tried of its strength; none if it has no strength.

    Attributes:
        training: options of training that are its own.
    """

    strategy: Config
    strengths: tuple[float, ...] = ()
    training: Config = field(default_factory=dict)


# --- which runs are wanted, given the results that are there


def final_average(result: Config) -> float:
    """The primary score after the last task, mean over tasks."""
    return result["summary"]["average"]


class Results:
    """The results on disk, by configuration.

    Attributes:
        methods: by the names of the tables' rows.

    Args:
        score: of a result, by which a strength is judged; the higher the better.
    """

    def __init__(self, out: Path, methods: Mapping[str, Method], score: Callable[[Config], float] = final_average):
        self.out, self.methods, self._score = out, methods, score

    def path(self, config: Config) -> Path:
        return self.out / f"{_hash(json.dumps(config, sort_keys=True))}.json"

    def get(self, config: Config) -> Config | None:
        path = self.path(config)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def versions(self) -> Config | None:
        """Of what the newest run was made with."""
        newest = max(self.out.glob("*.json"), key=lambda path: path.stat().st_mtime, default=None)
        return json.loads(newest.read_text(encoding="utf-8"))["versions"] if newest else None

    def score(self, config: Config) -> float:
        """That of a run; nan where it is missing or failed."""
        found = self.get(config)
        return self._score(found) if found and "summary" in found else math.nan


def configured(
    setting: Setting, strategy: Config, seed: int, *, validation: bool, training: Config | None = None
) -> Config:
    """The configuration of one run; `training` is what differs from that of the setting."""
    data = {**setting.config["data"], "validation": validation}
    trained = {"training": {**setting.config["training"], **training}} if training else {}
    return {"objective": "metric", **setting.config, **trained, "data": data, "strategy": strategy, "seed": seed}


def swept(setting: Setting, method: Method, strength: float) -> list[Config]:
    """The runs on validation data that judge a strength."""
    return validated(setting, method, {**method.strategy, "strength": strength})


def validated(setting: Setting, method: Method, strategy: Config) -> list[Config]:
    """The runs on validation data of a method with these options."""
    return [
        configured(setting, strategy, seed, validation=True, training=method.training)
        for seed in setting.validation_seeds
    ]


def tested(setting: Setting, method: Method, strategy: Config) -> dict[int, Config]:
    """seed -> the run on test queries of a method with these options."""
    return {
        seed: configured(setting, strategy, seed, validation=False, training=method.training) for seed in setting.seeds
    }


def curve(results: Results, setting: Setting, method: Method) -> dict[float, list[float]]:
    """strength -> the score of each validation run, in the order of strengths, with those beyond the ends."""
    values = list(method.strengths)
    found = {value: [results.score(each) for each in swept(setting, method, value)] for value in values}
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
        found[further] = [results.score(each) for each in swept(setting, method, further)]
    return dict(sorted(found.items()))


def chosen_strategy(results: Results, setting: Setting, name: str) -> Config | None:
    """The strategy with its best strength; None while that is not known."""
    method = results.methods[name]
    if method.strengths:
        values = curve(results, setting, method)
        means = {value: _mean(each) for value, each in values.items()}
        unknown = [v for v, mean in means.items() if math.isnan(mean) and not _failed(results, setting, method, v)]
        known = {value: mean for value, mean in means.items() if not math.isnan(mean)}
        return None if unknown or not known else {**method.strategy, "strength": max(known, key=lambda v: known[v])}
    strategy = dict(method.strategy)
    parts = strategy["name"].split("+")
    for part in _parts(results, method):  # as it is best alone
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
        method = results.methods[name]
        if name == "finetune":  # what strengths are compared with
            runs += validated(setting, method, method.strategy)
        for judged in (method, *(results.methods[part] for part in _parts(results, method))):
            for strength in curve(results, setting, judged) if judged.strengths else ():
                runs += swept(setting, judged, strength)
        strategy = chosen_strategy(results, setting, name)
        if strategy:  # else its best strength is not known yet
            runs += tested(setting, method, strategy).values()
    return [run for path, run in {results.path(run): run for run in runs}.items() if not path.exists()]


def _parts(results: Results, method: Method) -> list[str]:
    """Of a combination: the parts that take the strength which is best for them alone."""
    parts = method.strategy["name"].split("+")
    return [part for part in parts if len(parts) > 1 and part in results.methods and results.methods[part].strengths]


# --- one run, in a process of its own


_streams: dict[str, Any] = {}


def execute(
    job: tuple[Config, Path, dict[str, str]],
    *,
    resumable: bool = False,
    measure: Callable[[Any], Config] | None = None,
) -> str:
    """Train what a configuration says, and write the result; an error is a result too.

    Args:
        measure: what else the result says of the model that is deployed after the last task.
        resumable: keep a run directory beside the result until that is there, so that a run that was interrupted goes
            on where it stopped.
    """
    config, path, places = job
    from tripletmas.basics.version import versions
    from tripletmas.basics.weights import trainable
    from tripletmas.objectives.scores import summarize
    from tripletmas.runs.catalog import build_data
    from tripletmas.runs.configuration import resolve
    from tripletmas.runs.directory import RunDirectory
    from tripletmas.runs.experiment import build
    from tripletmas.runs.loop import train_stream

    config, folder = placed(config, places), path.with_suffix("")
    key = json.dumps(config["data"], sort_keys=True)
    if key not in _streams:
        data = resolve({"data": config["data"]})["data"]
        _streams[key] = build_data(data.pop("name"), data)
    result: Config = {"config": _without_places(config), "versions": versions()}
    began = time.perf_counter()
    try:
        made = build(config, data=_streams[key])
        run = RunDirectory.create(folder, {"version": versions(), **made.config}) if resumable else None
        parts = (made.model, made.stream, made.strategy, made.objective, made.training)
        scores = train_stream(*parts, run, gallery=made.gallery)
    except (ValueError, FloatingPointError) as error:
        result["error"] = str(error)
    else:
        recognition = config["objective"] == "recognition"
        primary = scores.matrix("accuracy", "task") if recognition else scores.matrix("recall@1", "seen")
        kept = made.strategy.state_dict()
        held = [
            value for name, value in kept.items() if name.rpartition("/")[2] == "held"
        ]  # (2, samples) or (samples,)
        images = sum(each.shape[-1] for each in held)  # of replay and of anchors
        if config["strategy"]["name"] == "joint":
            images = sum(len(task.train) for task in made.stream[:-1])
        if measure:
            result |= measure(made.strategy.deployed(made.model))
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
    if resumable:
        shutil.rmtree(folder, ignore_errors=True)
    outcome = f"{result['summary']['average']:.3f}, {result['seconds']:.0f} s" if "summary" in result else "failed"
    return f"{json.dumps(config['strategy'])} seed {config['seed']}: {outcome}"


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
        kept = {_bare(key): entry for key, entry in value.items() if key not in ("root", "device", "file")}
        return {key: _without_places(entry) for key, entry in kept.items()}
    return [_without_places(entry) for entry in value] if isinstance(value, list) else _bare(value)


def _bare(value: Any) -> Any:
    """The name of a part of one's own, or of a model in a folder, without the folder in which it lies."""
    lies_somewhere = isinstance(value, str) and (".py:" in value or value.startswith("sentence-transformers:"))
    return value.rpartition("/")[2] if lies_somewhere else value


def placed(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: placed(entry, places) for key, entry in value.items()}
    if isinstance(value, list):
        return [placed(entry, places) for entry in value]
    return value.format(**places) if isinstance(value, str) and value.startswith("{") else value


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _failed(results: Results, setting: Setting, method: Method, strength: float) -> bool:
    found = [results.get(each) for each in swept(setting, method, strength)]
    return any(each is not None and "error" in each for each in found)
