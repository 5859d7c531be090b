"""The table of readers: every one gives a Source, has a card, and says where its data lie."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tripletmas.data.sequences import READERS

CARDS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.mark.parametrize("name", READERS)
def test_every_reader_has_a_card_and_named_options(name):
    assert (CARDS / name / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    parameters = inspect.signature(READERS[name]).parameters
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    if "download" in parameters:  # a public set: sequences give it the folder that all share
        assert parameters["root"].default == "data"
        assert parameters["download"].default is False
