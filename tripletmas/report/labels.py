"""What the rows of a comparison are called: the strategy, and what tells it from the other rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tripletmas.report.read import Record, Run, comparable, differing_keys
from tripletmas.report.streams import SHOWN, differing_data


def labels_of(groups: Sequence[tuple[Run, ...]], directories: Sequence[Path | str]) -> list[str]:
    """The strategy and what tells the rows apart; the seed or the directory where the configurations are equal.

    A run whose strategy was not recorded, being made by a program, is called by its directory.
    """
    first = [runs[0] for runs in groups]
    labels = [", ".join([_name(run), *_options(comparable(run.config), _telling(run, first))]) for run in first]
    told_apart = list(labels)
    for i, label in enumerate(labels):
        same = [groups[j] for j, other in enumerate(labels) if other == label]
        if len(same) > 1:
            seeds = {run.config.get("seed") for run, *others in same if not others} - {None}
            seed = first[i].config.get("seed")
            told_apart[i] += f", seed={seed}" if len(seeds) == len(same) else f" ({Path(directories[i])})"
    return told_apart


def _name(run: Run) -> str:
    return run.strategy if run.strategy != "?" else run.name


def _telling(run: Run, rows: Sequence[Run]) -> set[str]:
    """The keys of the configuration that tell a row from the others.

    Across strategies only what lies outside their own options tells anything: mas has a strength, joint has none. So
    it is across models. How a strength was searched tells searches apart; a run without one needs no such words. Of a
    part that the other run says nothing of, as one that a program made, nothing is known to differ; and options of the
    data that made no other stream tell nothing. That one strategy moves stored vectors and another does not, its column
    shows.
    """
    own = comparable(run.config)
    return {key for row in rows for key in differing_keys(own, comparable(row.config)) if _tells(key, run, row)}


def _tells(key: str, run: Run, row: Run) -> bool:
    """Whether an option that differs between two rows tells one from the other."""
    own, other = comparable(run.config), comparable(row.config)
    part, _, option = key.partition(".")
    if part == "strategy":
        return row.strategy == run.strategy
    if part == "search":
        return key in own and key in other
    if _is_of_a_strategy(key, run, row):
        return False
    if _is_of_a_model(key) and own.get("model.name") != other.get("model.name"):
        return False
    if part == "data" and option not in (*differing_data(run, row), *SHOWN):
        return False
    return any(each.partition(".")[0] == part for each in other)


def _is_of_a_strategy(key: str, run: Run, row: Run) -> bool:
    """Whether it says only that one strategy moves stored vectors and the other does not."""
    maps = [comparable(each.config).get(key) for each in (run, row)]
    return key == "gallery.compensate" and run.strategy != row.strategy and None in maps


def _is_of_a_model(key: str) -> bool:
    """Whether an option, such as its width or the size of its images, differs since models do."""
    section, _, option = key.partition(".")
    return (section == "model" and option != "name") or (section == "data" and option in SHOWN and option != "augment")


def _options(config: Record, keys: set[str]) -> list[str]:
    """`strength=1`: the last part of a key, its whole where two keys end alike; `model=conv4` of a name.

    Of a combined strategy the part that the option belongs to stays: `mas.strength=1`.
    """
    ends = Counter(key.removesuffix(".name").split(".")[-1] for key in keys)

    def name(key: str) -> str:
        if re.fullmatch(r"strategy\.\w+\..+", key):
            return key.removeprefix("strategy.")
        end = key.removesuffix(".name").split(".")[-1]
        return end if ends[end] == 1 else key

    return [f"{name(key)}={config[key]}" for key in sorted(keys) if key in config and key != "strategy.name"]
