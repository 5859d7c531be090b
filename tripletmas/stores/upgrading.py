"""Vectors of a new model beside the old ones in a store: written block by block, switched to, taken back.

What was begun is noted in the store before anything is done, and what is done twice is done once. So whenever a
process is killed, the same call goes on, and ends with the same bytes: blocks begin at the same points. How far writing
has come lies in a directory, beside the map that moves the vectors.

Shapes: n points, dim of the old vectors, new dim of the new ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tripletmas.basics.files import append_text
from tripletmas.basics.locks import locked
from tripletmas.stores.identity import Identity, Notes, Upgrade, read_notes, write_notes
from tripletmas.stores.store import ROWS, Id, Store, VectorField, check_vectors, field_of
from tripletmas.stores.writing import Applied, Move, Unusable, Writing, count_without

logger = logging.getLogger(__name__)

APPLYING, APPLIED, SWITCHING, SWITCHED, RETURNING, FINISHING = (
    "applying",
    "applied",
    "switching",
    "switched",
    "returning",
    "finishing",
)
_PROGRESS, _ANEW = "progress.json", "anew.jsonl"


def name_of_new(old: str, identity: Identity) -> str:
    """What the field of the new vectors is called until the switch: letters, digits and underscores."""
    return f"{old}_{identity.model[:8]}"


@contextmanager
def changing(store: Store, directory: str | Path) -> Iterator[None]:
    """Keeps other processes from an upgrade.

    Raises:
        ValueError: if another one is at it.
    """
    with locked(Path(directory) / "lock", f"the upgrade of {store.place}"):
        yield


def begin(store: Store, name: str, *, old: str, was: Identity, becomes: Identity, directory: str | Path) -> Upgrade:
    """The upgrade of this name, noted in the store, with a field for its vectors; goes on where it has begun already.

    Args:
        name: tells it from others: of its map.
        old: the field of the old vectors.
        was, becomes: what made the vectors of this field, and what the new ones will be.
        directory: of its map and its progress.

    Raises:
        ValueError: if another upgrade is under way, or the vectors are not those of `was` (any more).
    """
    notes = read_notes(store)
    if notes.upgrade is not None:
        if notes.upgrade.name == name:
            if notes.upgrade.stage in (APPLYING, APPLIED):
                store.add_field(_field(notes.upgrade.new, becomes))
            return notes.upgrade
        raise ValueError(
            f"{store.place} has another upgrade under way, to {notes.upgrade.new!r}, {notes.upgrade.stage}, of "
            f"{notes.upgrade.directory}: go on with that, or take it back by --rollback"
        )
    noted, dim = notes.identities.get(old), field_of(store, old).dim
    if dim != was.dim or (noted is not None and noted.model != was.model):
        now = f"of dim {dim}" if dim != was.dim or noted is None else f"by {noted.model[:8]} ({noted.source})"
        raise ValueError(
            f"the vectors {old!r} of {store.place} are {now}, and the upgrade is from {was.model[:8]} ({was.source}) "
            f"of dim {was.dim}: make the plan anew"
        )
    new = name_of_new(old, becomes)
    if new in store.fields():
        raise ValueError(f"{store.place} has a vector {new!r} already, which no upgrade has made: rename or drop it")
    upgrade = Upgrade(name, old, new, APPLYING, str(Path(directory).absolute()))
    _forget_progress(upgrade)  # of an upgrade of a store that is gone, or was put back from a copy
    write_notes(store, replace(notes.with_identity(old, was).with_identity(new, becomes), upgrade=upgrade))
    store.add_field(_field(new, becomes))
    return upgrade


def _field(name: str, identity: Identity) -> VectorField:
    return VectorField(name, identity.dim, identity.compared_by)


def upgrade_of(store: Store) -> tuple[Notes, Upgrade]:
    """What is noted in a store, and the upgrade that is under way.

    Raises:
        ValueError: if none is.
    """
    notes = read_notes(store)
    if notes.upgrade is None:
        raise ValueError(f"{store.place} has no upgrade under way: --apply begins one")
    return notes, notes.upgrade


# --- writing


def apply_move(store: Store, move: Move, *, size: int = ROWS, leave_unusable: bool = False) -> Applied:
    """Write the moved vector of every point, then look at all of them, for the store may have changed meanwhile.

    Memory holds a few blocks. Killed and called again, it goes on behind the last block that was noted.

    Args:
        size: points of a block.
        leave_unusable: points whose old vector holds NaN, or is zero, get no new one; else the first is an error, and
            of an upgrade that this call began nothing stays in the store.

    Raises:
        ValueError: naming such a point; if no upgrade is under way, or it is beyond that.
    """
    notes, upgrade = upgrade_of(store)
    if upgrade.stage not in (APPLYING, APPLIED):
        raise ValueError(f"the upgrade of {store.place} is {upgrade.stage} already: nothing is left to be applied")
    directory = Path(upgrade.directory)
    is_first = not (directory / _PROGRESS).exists()
    writing = Writing(store, upgrade, move, directory / _PROGRESS, size, embedded_anew(upgrade), leave_unusable)
    try:
        done = writing.run()
    except Unusable as error:
        leaves = "--leave-unusable leaves such points as they are"
        if not is_first:  # hours of work may lie in what is there
            raise ValueError(f"{error}: {leaves}, --rollback takes back what was written before") from None
        rollback(store)
        raise ValueError(f"{error}; nothing was changed ({leaves})") from None
    write_notes(store, replace(notes, upgrade=replace(upgrade, stage=APPLIED)))
    return done


# --- points embedded anew


def embedded_anew(upgrade: Upgrade) -> set[Id]:
    """The points whose new vector is of the new model itself, and not moved."""
    path = Path(upgrade.directory) / _ANEW
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # a last line without an end was being written when the process was killed
    return {each for line in lines if line.endswith("\n") for each in json.loads(line)}


def write_anew(store: Store, upgrade: Upgrade, ids: Sequence[Id], vectors: Tensor) -> None:
    """Give points the vector (n, new dim) that the new model itself made; no map overwrites it any more."""
    new = store.fields()[upgrade.new]
    rows = check_vectors(new, ids, vectors, store.place)
    store.write(upgrade.new, ids, rows)
    append_text(Path(upgrade.directory) / _ANEW, json.dumps(list(ids)) + "\n")


# --- from one to the other, and back


def switch(store: Store) -> Upgrade:
    """Let those who search the store find the new vectors; the old ones stay beside them.

    Raises:
        ValueError: if not every point has its new vector, as far as a map can move its old one; after the switch.
    """
    notes, upgrade = upgrade_of(store)
    if upgrade.stage == APPLYING:
        raise ValueError(f"not every point of {store.place} has its new vector yet: --apply first")
    if upgrade.stage not in (APPLIED, SWITCHING):
        raise ValueError(f"the upgrade of {store.place} is {upgrade.stage} already")
    if upgrade.stage == APPLIED and (missing := count_without(store, upgrade.old, upgrade.new)):
        raise ValueError(
            f"{missing} points of {store.place} came after --apply and have no new vector: --apply once more, then "
            "--switch"
        )
    kept = f"{upgrade.old}_{notes.identities[upgrade.old].model[:8]}"
    before = store.fields()
    write_notes(store, replace(notes, upgrade=replace(upgrade, stage=SWITCHING)))
    try:
        done = store.switch(upgrade.old, upgrade.new, kept)
    except (ValueError, OSError):
        if upgrade.stage == APPLIED and store.fields() == before:  # refused, and nothing was changed
            write_notes(store, notes)
        raise
    was, becomes = notes.identities[upgrade.old], notes.identities[upgrade.new]
    others = replace(notes.with_identity(upgrade.old, None).with_identity(upgrade.new, None), upgrade=None)
    switched = replace(upgrade, stage=SWITCHED, active=done.active, kept=done.kept)
    now = others.with_identity(done.active, becomes).with_identity(done.kept, was)
    write_notes(store, replace(now, upgrade=switched))
    if done.say:
        logger.warning("%s", done.say)
    return switched


def rollback(store: Store, *, force: bool = False) -> int:
    """Bring the store to where it was before the upgrade, and say how many points have no old vector.

    Args:
        force: although there are such: those that came after the switch.

    Raises:
        ValueError: if there are; if no upgrade is under way, or its old vectors are dropped.
    """
    notes, upgrade = upgrade_of(store)
    if upgrade.stage == FINISHING:
        raise ValueError(f"the old vectors of {store.place} are being dropped: --drop-old finishes that")
    lost = 0
    if upgrade.stage in (SWITCHING, SWITCHED, RETURNING):
        if upgrade.stage == SWITCHING:  # killed in the middle: it is finished, then taken back
            switch(store)
            notes, upgrade = upgrade_of(store)
        kept_there = upgrade.kept in store.fields()
        if kept_there:
            lost = count_without(store, upgrade.active, upgrade.kept)
        if lost and not force:
            raise ValueError(
                f"{lost} points of {store.place} have no old vector, for they came after the switch: embed them by the "
                "old model first, or --force leaves them without"
            )
        write_notes(store, replace(notes, upgrade=replace(upgrade, stage=RETURNING)))
        store.switch(upgrade.active, upgrade.kept, upgrade.new)
    store.drop_field(upgrade.new)
    was = notes.identities.get(upgrade.kept or upgrade.old)
    others = notes
    for name in (upgrade.old, upgrade.new, upgrade.active, upgrade.kept):
        others = others.with_identity(name, None)
    write_notes(store, replace(others.with_identity(upgrade.old, was), upgrade=None))
    _forget_progress(upgrade)
    return lost


def drop_old(store: Store) -> Upgrade:
    """Let go of the old vectors, after the switch: from then on it cannot be taken back.

    Raises:
        ValueError: if there was no switch yet.
    """
    notes, upgrade = upgrade_of(store)
    if upgrade.stage not in (SWITCHED, FINISHING):
        raise ValueError(f"the upgrade of {store.place} is {upgrade.stage}: its old vectors can go after --switch")
    write_notes(store, replace(notes, upgrade=replace(upgrade, stage=FINISHING)))
    store.drop_field(upgrade.kept)
    write_notes(store, replace(notes.with_identity(upgrade.kept, None), upgrade=None))
    _forget_progress(upgrade)
    return upgrade


def _forget_progress(upgrade: Upgrade) -> None:
    for name in (_PROGRESS, _ANEW):
        (Path(upgrade.directory) / name).unlink(missing_ok=True)
