"""An index put into a store of every engine, and taken out again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from store_engines import COUNT, DIM, ENGINES, SHOWN, fill, points

from tripletmas.index.changes import add_images, remove_images
from tripletmas.index.images import ImageIndex, Part, Settings
from tripletmas.stores.identity import Notes, read_notes, write_notes
from tripletmas.stores.opening import created, opened
from tripletmas.stores.store import VectorField
from tripletmas.stores.transfer import (
    columns_of_index,
    field_for,
    identity_of_index,
    pull_points,
    push_points,
)


@pytest.fixture(params=[name for name, engine in ENGINES.items() if engine.inserts])
def url(request, tmp_path):
    return ENGINES[request.param].url(tmp_path)


@pytest.fixture
def index():
    """An index of 49 images, one without a label, whose ids have a gap."""
    part = Part("0123456789abcdef", 2, "0123456789abcdef")
    names = [f"{number:02}, ü.jpg" for number in range(COUNT)]
    labels = [None, *(f"c{number % 3}" for number in range(1, COUNT))]
    empty = ImageIndex.empty(Settings(DIM, SHOWN), "runs/old")
    whole = add_images(empty, points(), names, labels, part, root="/photos")
    return remove_images(whole, torch.tensor([7]))


def put(index, url):
    identity = identity_of_index(index, "it")
    with created(url, field_for(identity), columns_of_index(index)) as store:
        return push_points(index, store, identity)


def test_there_and_back(url, index):
    assert put(index, url) == (COUNT - 1, 0)
    with opened(url) as store:
        assert push_points(index, store, identity_of_index(index, "it")) == (COUNT - 1, 0), "the same again"
        back = pull_points(store)
    assert torch.equal(back.ids, index.ids)
    assert torch.allclose(back.vectors, index.vectors, atol=1e-6)
    assert (back.paths, back.run, back.settings) == (index.paths, index.run, index.settings)
    assert [back.label_of(row) for row in range(len(back))] == [index.label_of(row) for row in range(len(index))]
    assert back.parts == index.parts
    queries = points(seed=3)
    assert torch.equal(back.search(queries, 5)[1], index.search(queries, 5)[1])


def test_vectors_of_another_model_are_refused(url, index):
    put(index, url)
    other = replace(index, parts=(Part("fedcba9876543210", 1, "fedcba9876543210"),), run="runs/new")
    with opened(url) as store:
        with pytest.raises(ValueError, match=r"of the model 0123456789ab \(runs/old\), not fedcba987654.*upgrade"):
            push_points(other, store, identity_of_index(other, "it"))
        assert len(store) == COUNT - 1
        write_notes(store, Notes({}))
        for refused in (lambda: pull_points(store), lambda: push_points(index, store, identity_of_index(index, "it"))):
            with pytest.raises(ValueError, match="is not known"):
                refused()


def test_points_of_somebody_else_are_no_index(url):
    fill(url)
    with opened(url) as store, pytest.raises(ValueError, match="is not known"):
        pull_points(store)


def test_an_index_with_vectors_of_several_models_is_refreshed_first(index):
    part = index.part.clone()
    part[:3] = 1
    mixed = replace(index, parts=(*index.parts, Part("fedcba9876543210", 3, "fedcba9876543210")), part=part)
    with pytest.raises(ValueError, match="spaces of 2 models: tripletmas index refresh"):
        identity_of_index(mixed, "it")
    with pytest.raises(ValueError, match="holds no vectors"):
        identity_of_index(replace(index, parts=()), "it")


def test_what_was_moved_is_told(url, index):
    moved = replace(index, parts=(Part("0123456789abcdef", 2, "fedcba9876543210", ("linear",)),))
    put(moved, url)
    with opened(url) as store:
        identity = read_notes(store).identities["vector"]
        assert (identity.model, identity.embedded_by) == ("fedcba9876543210", "0123456789abcdef")
        assert pull_points(store).parts == (Part("0123456789abcdef", 2, "fedcba9876543210", ("upgrade",)),)


def test_a_collection_of_another_width_is_told_so(url, index):
    with created(url, VectorField("vector", DIM + 1, "cosine"), columns_of_index(index)) as store:
        with pytest.raises(ValueError, match=f"holds vectors of dim {DIM + 1}, and the index those of dim {DIM}"):
            push_points(index, store, identity_of_index(index, "it"))
        assert read_notes(store) == Notes({})
