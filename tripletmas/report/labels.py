"""What the rows of a comparison are called: the strategy, and what tells them apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tripletmas.report.configs import Record, comparable, differing_keys
from tripletmas.report.read import Run


def labels_of(groups: Sequence[tuple[Run, ...]], directories: Sequence[Path]) -> list[str]:
    """The strategy and what tells the rows apart; the seed or the directory where the configurations are equal."""
    configs = [comparable(runs[0].config) for runs in groups]
    strategies = [runs[0].strategy for runs in groups]
    labels = []
    for config, strategy in zip(configs, strategies, strict=True):
        rivals = [other for other, name in zip(configs, strategies, strict=True) if name == strategy]
        keys = {key for other in rivals for key in differing_keys(config, other)}
        # Across strategies only what lies outside their own options tells anything: mas has a strength, joint has none.
        keys |= {key for other in configs for key in differing_keys(config, other) if not key.startswith("strategy")}
        # How a strength was searched tells searches apart; a run without one needs no such words.
        searches = {key for key in keys if key.startswith("search.")}
        keys -= {key for key in searches if len({str(other[key]) for other in configs if key in other}) < 2}
        labels.append(", ".join([strategy, *_options(config, keys)]))
    for label in {label for label in labels if labels.count(label) > 1}:
        same = [i for i, other in enumerate(labels) if other == label]
        seeds = [groups[i][0].config.get("seed") if len(groups[i]) == 1 else None for i in same]
        by_seed = None not in seeds and len(set(seeds)) == len(same)
        for i, seed in zip(same, seeds, strict=True):
            labels[i] += f", seed={seed}" if by_seed else f" ({directories[i]})"
    return labels


def _options(config: Record, keys: set[str]) -> list[str]:
    """`strength=1`: the last part of a key, its whole where two keys end alike.

    Of a combined strategy the part that the option belongs to stays: `mas.strength=1`.
    """
    last = [key.split(".")[-1] for key in keys]
    names = {key: key.split(".")[-1] if last.count(key.split(".")[-1]) == 1 else key for key in keys}
    names |= {key: key.removeprefix("strategy.") for key in keys if re.fullmatch(r"strategy\.\w+\..+", key)}
    return [f"{names[key]}={config[key]}" for key in sorted(keys) if key in config and key != "strategy.name"]
