"""An index after any history of changes, crashes and damage, against a dict: what it holds, and what it finds.

A failure prints the shortest history that leads to it. `TRIPLETMAS_STEPS` says how many operations are tried, about
(default 400; under `long` 20,000).
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from histories import try_histories
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from torch import Tensor

from tripletmas.index import changes
from tripletmas.index.base import unit
from tripletmas.index.images import ImageIndex, Part, Settings, Transform

DIM, STEPS = 3, 25  # operations of one history
ROOTS = ("/a", "/a/b", "/c")  # one below another
SMALL = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM)  # equal and opposite vectors, and zeros, are common
CLASSES = st.sampled_from([None, "one", "two", "Ünder/score"])


@dataclass
class Row:
    """What the reference knows of an image."""

    path: str
    name: str
    label: str | None
    vector: Tensor
    part: Part


class Stopped(Exception):
    """The process ends here."""


class History(RuleBasedStateMachine):
    """Each rule does the same to an index and to a dict from ids to rows."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "photographs.index"
        self.rows: dict[int, Row] = {}
        self.next_id, self.model = 0, 0

    def teardown(self):
        self.folder.cleanup()

    @initialize(
        metric=st.sampled_from(["inner_product", "l2"]),
        normalize=st.booleans(),
        kind=st.sampled_from(["exact", "Flat", "HNSW8"]),
    )
    def begin(self, metric: str, normalize: bool, kind: str):
        self.settings = Settings(DIM, Transform(8, 1), metric=metric, normalize=normalize, kind=kind)
        self.index = ImageIndex.empty(self.settings, run="/run")
        self.index.save(self.path)

    # --- changes

    @rule(vectors=st.lists(SMALL, min_size=1, max_size=6), label=CLASSES, root=st.sampled_from(ROOTS))
    def add(self, vectors: list[list[int]], label: str | None, root: str):
        rows = torch.tensor(vectors).float()
        names = [f"{self.next_id + number}.png" for number in range(len(rows))]
        part = Part(f"model{self.model}", self.model, f"model{self.model}")
        self.index = changes.add_images(self.index, rows, names, [label] * len(rows), part, root=root)
        for name, vector in zip(names, self.stored(rows), strict=True):
            self.rows[self.next_id] = Row(f"{root}/{name}", name, label, vector, part)
            self.next_id += 1

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def add_again(self, data: st.DataObject):
        row = self.rows[data.draw(st.sampled_from(sorted(self.rows)))]
        part = Part("other", 0, "other")
        with pytest.raises(ValueError, match="in the index already"):
            changes.add_images(self.index, torch.ones(1, DIM), [row.path], [None], part)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data: st.DataObject):
        ids = data.draw(st.sets(st.sampled_from(sorted(self.rows)), min_size=1))
        self.index = changes.remove_images(self.index, self.positions(ids))
        self.rows = {number: row for number, row in self.rows.items() if number not in ids}

    @rule()
    def train_on(self):
        self.model += 1

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def embed_anew(self, data: st.DataObject):
        ids = sorted(data.draw(st.sets(st.sampled_from(sorted(self.rows)), min_size=1)))
        vectors = torch.tensor(data.draw(st.lists(SMALL, min_size=len(ids), max_size=len(ids)))).float()
        part = Part(f"model{self.model}", self.model, f"model{self.model}")
        self.index = changes.replace_vectors(self.index, self.positions(ids), vectors, part)
        for number, vector in zip(ids, self.stored(vectors), strict=True):
            self.rows[number] = replace(self.rows[number], vector=vector, part=part)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def move(self, data: st.DataObject):
        part = data.draw(st.sampled_from(sorted({row.part for row in self.rows.values()}, key=repr)))
        matrix, to = torch.tensor(data.draw(st.lists(SMALL, min_size=DIM, max_size=DIM))).float(), f"model{self.model}"
        number = self.index.parts.index(part)
        self.index = changes.move_parts(self.index, {number: lambda vectors: vectors @ matrix}, to, ["linear"])
        for row in self.rows.values():
            if row.part == part:
                row.vector = self.stored((row.vector @ matrix).unsqueeze(0))[0]
                row.part = replace(part, moved_to=to, maps=(*part.maps, "linear"))

    @precondition(lambda self: self.rows)
    @rule(root=st.sampled_from((*ROOTS, "/d")))
    def relocate(self, root: str):
        ids = [number for number, row in self.rows.items() if row.path == f"/a/{row.name}"]
        self.index = changes.relocate_images(self.index, self.positions(ids), root)
        for number in ids:
            self.rows[number].path = f"{root}/{self.rows[number].name}"

    # --- the file

    @rule()
    def save_and_open(self):
        self.index.save(self.path)
        self.index = ImageIndex.open(self.path)

    @rule(at=st.integers(0, 8), call=st.sampled_from(["fsync", "replace", "chmod", "open"]))
    def die_while_it_is_saved(self, at: int, call: str):
        """What was there is there, or what was to be; never a third."""
        before, real, left = ImageIndex.open(self.path), getattr(os, call), [at]

        def dying(*arguments, **keywords):
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            return real(*arguments, **keywords)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, dying)
            with suppress(Stopped):
                self.index.save(self.path)
        found = ImageIndex.open(self.path)
        assert same(found, before) or same(found, self.index)
        self.index.save(self.path)

    @rule(data=st.data())
    def one_bit_flips(self, data: st.DataObject):
        """The index of damaged files is the same as before, or none."""
        self.index.save(self.path)
        content = self.path.read_bytes()
        place = data.draw(st.integers(0, 8 * len(content) - 1))
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        self.path.write_bytes(damaged)
        with suppress(ValueError):
            assert same(ImageIndex.open(self.path), self.index)
        self.path.write_bytes(content)

    # --- what is asked

    @rule(queries=st.lists(SMALL, min_size=1, max_size=3), k=st.integers(1, 8))
    def search(self, queries: list[list[int]], k: int):
        asked = torch.tensor(queries).float()
        scores, positions = self.index.search(asked, k)
        assert scores.shape == positions.shape == (len(asked), k)
        ids = sorted(self.rows)
        truth = self.scores(asked, torch.stack([self.rows[number].vector for number in ids])) if ids else None
        for query in range(len(asked)):
            there = [position for position in positions[query].tolist() if position >= 0]
            assert len(set(there)) == len(there)
            assert scores[query, len(there) :].isneginf().all()
            assert len(there) == min(k, len(ids)) or self.settings.kind == "HNSW8"  # which may not reach all
            if truth is None or not there:
                continue
            found = scores[query, : len(there)]
            assert torch.allclose(found, truth[query, there], atol=1e-5)
            assert bool((found.diff() <= 1e-6).all())
            if self.settings.kind != "HNSW8":
                assert torch.allclose(found, truth[query].sort(descending=True).values[: len(there)], atol=1e-5)

    @invariant()
    def it_holds_what_the_dict_holds(self):
        if not hasattr(self, "index"):
            return
        ids = sorted(self.rows)
        assert self.index.ids.tolist() == ids
        assert self.index.next_id == self.next_id
        for position, number in enumerate(ids):
            row = self.rows[number]
            assert self.index.paths[position] == row.path
            assert self.index.name_of(position) == row.path.removeprefix(f"{self.index.root_of(position)}/")
            assert self.index.label_of(position) == row.label
            assert self.index.parts[int(self.index.part[position])] == row.part
            assert torch.allclose(self.index.vectors[position], row.vector, atol=1e-6)
        now = f"model{self.model}"
        assert {self.index.parts[each] for each in self.index.stale(now)} == {
            row.part for row in self.rows.values() if row.part.moved_to != now
        }

    # --- the reference's own

    def positions(self, ids) -> Tensor:
        order = {number: position for position, number in enumerate(sorted(self.rows))}
        return torch.tensor([order[number] for number in sorted(ids)], dtype=torch.int64)

    def stored(self, vectors: Tensor) -> Tensor:
        return unit(vectors) if self.settings.normalize else vectors

    def scores(self, asked: Tensor, gallery: Tensor) -> Tensor:
        """One by one, in double precision."""
        asked, gallery = self.stored(asked).double(), gallery.double()
        if self.settings.metric == "l2":
            return -(asked[:, None] - gallery[None]).square().sum(dim=2).float()
        return (asked[:, None] * gallery[None]).sum(dim=2).float()


def same(one: ImageIndex, other: ImageIndex) -> bool:
    """Whether two indexes answer everything alike."""
    named = ("settings", "paths", "parts", "class_names", "roots", "run", "next_id")
    tensors = ("vectors", "ids", "part", "labels")
    serialized = (one.serialized is None) == (other.serialized is None)
    if serialized and one.serialized is not None and other.serialized is not None:
        serialized = torch.equal(one.serialized, other.serialized)
    return (
        serialized
        and all(getattr(one, name) == getattr(other, name) for name in named)
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
    )


@pytest.mark.slow
def test_some_histories():
    try_histories(History, 400, length=STEPS)


@pytest.mark.long
def test_many_histories():
    try_histories(History, 20_000, length=STEPS)
