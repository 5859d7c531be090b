"""What every integration is tried against: the same training without a protection, of which the protection warns."""

from __future__ import annotations

from pathlib import Path

import pytest

TOLD = ("ignore:.* and is not attached, so that nothing:UserWarning", "ignore:.* holds have changed since:UserWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for each in TOLD:
                item.add_marker(pytest.mark.filterwarnings(each))
