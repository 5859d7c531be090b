"""A report that is there as it would be written again is not drawn again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from report_pages import MATRIX
from synthetic_runs import write_run

from tripletmas.basics import version
from tripletmas.report import kept
from tripletmas.report.page import write_report


@pytest.fixture(scope="module")
def reported(tmp_path_factory, without_drawing) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "mas", matrix=MATRIX, galleries=True)
    with without_drawing():
        write_report(run)
    return run


@pytest.fixture
def run(reported, tmp_path) -> Path:
    return Path(shutil.copytree(reported, tmp_path / "mas"))


@pytest.mark.slow
def test_the_page_is_kept_wherever_the_run_lies(run):
    assert kept.kept_page(run) == run / "report" / "report.html"


@pytest.mark.slow
def test_what_is_no_part_of_a_report_does_not_count(run):
    (run / "lock").touch()
    for name in ("checkpoint", "log"):
        (run / name).mkdir(exist_ok=True)
        (run / name / "new").write_text("new")
    for path in run.rglob("*"):
        os.utime(path, (0, 0))
    assert kept.kept_page(run) is not None


def files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.slow
def test_one_changed_bit_or_a_lost_file_has_it_drawn_again(run):
    for path in files(run):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert kept.kept_page(run) is None, path
        path.unlink()
        assert kept.kept_page(run) is None, path
        path.write_bytes(content)
        assert kept.kept_page(run) is not None, path


@pytest.mark.slow
def test_a_new_file_and_another_version_have_it_drawn_again(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(version, "__version__", "of another day")
        assert kept.kept_page(run) is None
    (run / "forecast.json").write_text("[]")
    assert kept.kept_page(run) is None


def test_no_report_is_none_that_is_kept(run):
    shutil.rmtree(run / "report")
    assert kept.kept_page(run) is None
