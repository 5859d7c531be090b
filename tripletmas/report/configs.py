"""Configurations of runs side by side: their parts, and the keys in which they differ."""

from __future__ import annotations

from typing import Any

from tripletmas.report.primary import primary_of
from tripletmas.runs.galleries import GalleryConfig

Record = dict[str, Any]


def section(config: Record, name: str) -> Record:
    """A part of the configuration, such as "strategy", as a dict: empty where absent, a bare name as {"name": it}."""
    value = config.get(name)
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"name": value}


def comparable(config: Record) -> Record:
    """The flat configuration without what tells no method apart: seed, device, versions, where the run lies.

    Runs of earlier versions name no objective: it is filled in. They name no drift map either: the default is dropped.
    """
    dropped = ("seed", "device", "version", "out", "objective")
    kept = {key: value for key, value in flatten(config).items() if key.split(".")[0] not in dropped}
    if kept.get("gallery.compensate") == GalleryConfig().compensate:
        del kept["gallery.compensate"]
    return {**kept, "objective": primary_of(config).objective}


def flatten(config: Record, prefix: str = "") -> Record:
    """Nested keys joined by dots: {"data": {"name": "digits"}} -> {"data.name": "digits"}."""
    flat: Record = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing_keys(one: Record, other: Record) -> list[str]:
    """The keys whose values differ between two flat configurations; a key that only one has differs."""
    absent = object()
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key, absent) != other.get(key, absent)]
