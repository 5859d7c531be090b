"""The pages about frameworks are true: their Python runs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the frameworks', about what a page of ten lines leaves out
@pytest.mark.parametrize("page", ["lightning", "transformers", "accelerate"])
def test_python_runs(page, tmp_path, monkeypatch, tiny_encoder):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    assert blocks
    for block in blocks:
        code = block.replace("sentence-transformers/all-MiniLM-L6-v2", tiny_encoder.as_posix())
        with warnings.catch_warnings():
            exec(compile(code, f"{page}.md", "exec"), {"__name__": page})


def test_all_pages_are_listed():
    """Every framework that has a page is in the list of them, with its measured row."""
    listed = (DOCS / "integrations.md").read_text(encoding="utf-8")
    for page in ("lightning", "transformers", "accelerate", "avalanche", "metric_learning"):
        assert f"({page}.md)" in listed
