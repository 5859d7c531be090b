"""Whether runs learned the same: their streams, by the fingerprints of their tasks, and where it lacks these in words.

A fingerprint says which samples of which classes a task had in which part, whoever made it: the command line or a
program. It does not say what the samples are, so that of two runs that both name their data the names must be equal,
and the options that it does not cover.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from tripletmas.basics.sentences import listed
from tripletmas.report.read import Record, Run, differing_keys
from tripletmas.runs.directory import flatten

# How a model is shown the samples of a stream, which differs with the models: the stream is the same.
SHOWN = ("size", "channels", "interpolation", "crop", "augment", "in_memory")
# What decides which samples of which classes a task has, and where they lie.
_COVERED = (
    *("tasks", "by", "groups", "order_seed", "test_share", "split_seed", "per_class", "validation", "unseen"),
    *("class_from", "skip_unreadable", "root", "path", "test_path", "download", "split"),
)


def fingerprints(run: Run) -> tuple[str, ...]:
    """Of the finished tasks; () where one was not recorded, as in runs of earlier versions."""
    found = [str(task.get("data", "")) for task in run.tasks]
    return tuple(found) if all(found) else ()


def of_stream(run: Run) -> str:
    """One fingerprint of all finished tasks; "" without those of the tasks."""
    found = fingerprints(run)
    return hashlib.blake2b(" ".join(found).encode(), digest_size=4).hexdigest() if found else ""


def check_comparable(one: Run, other: Run) -> None:
    """Whether two runs learned the same.

    Raises:
        ValueError: if not, saying what differs.
    """
    if one.kind is not other.kind:
        raise ValueError(
            f"{one.path} ({one.kind.name}) and {other.path} ({other.kind.name}) had different "
            "objectives and cannot be compared; compare runs of one objective"
        )
    ours, theirs = fingerprints(one), fingerprints(other)
    names = {run.section("data").get("name") for run in (one, other)} - {None}
    if ours and theirs and len(names) < 2:
        _check_tasks(one, other, ours, theirs)
    if keys := differing_data(one, other):
        first, second = (flatten(run.section("data")) for run in (one, other))
        what = "; ".join(f"data.{key}: {first.get(key, 'absent')} and {second.get(key, 'absent')}" for key in keys)
        raise ValueError(
            f"{one.path} and {other.path} learned different streams and cannot be compared ({what}); "
            "compare runs whose `data` configuration is equal; `tripletmas report FOLDER` tells of all runs of a "
            "folder, each stream by itself"
        )


def differing_data(one: Run, other: Run) -> list[str]:
    """The options of the data in which two runs differ, and by which their streams may."""
    first, second = (flatten(run.section("data")) for run in (one, other))
    known = bool(fingerprints(one) and fingerprints(other))
    if known and not (first and second):
        return []  # a program of one's own made one of them: its samples are those that the fingerprints tell
    covered = (*SHOWN, *_COVERED) if known else SHOWN
    return [key for key in differing_keys(first, second) if key not in covered]


def _check_tasks(one: Run, other: Run, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """Whether the tasks that both have finished have the same samples, and as many are to come."""
    other_data = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if not other_data:
        return
    names = [f"{i + 1} ({one.task_name(i)!r} and {other.task_name(i)!r})" for i in other_data]
    raise ValueError(
        f"{one.path} and {other.path} learned different streams and cannot be compared: not the same samples have "
        f"task {listed(names, 3)}{_options(one, other)}"
    )


def _options(one: Run, other: Run) -> str:
    """The options by which they do, where both name them."""
    first, second = (flatten(run.section("data")) for run in (one, other))
    keys: Collection[str] = (
        [key for key in differing_keys(first, second) if key not in SHOWN] if first and second else ()
    )
    return "".join(f"; data.{key}: {_value(first, key)} and {_value(second, key)}" for key in keys)


def _value(config: Record, key: str) -> object:
    return config.get(key, "absent")
