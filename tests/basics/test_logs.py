"""Loggers that are quiet for a while."""

from __future__ import annotations

import logging

import pytest

from tripletmas.basics.logs import errors_only


def talk_until_it_breaks() -> None:
    with errors_only("shop"):
        logging.getLogger("shop.shelf").warning("dusty")
        logging.getLogger("shop.shelf").error("broken")
        raise RuntimeError


def test_only_errors_are_told_and_the_level_is_as_it_was_even_after_an_error(caplog):
    logging.getLogger("shop").setLevel(logging.INFO)
    with pytest.raises(RuntimeError):
        talk_until_it_breaks()
    logging.getLogger("shop.shelf").info("open again")
    assert [record.message for record in caplog.records] == ["broken", "open again"]
