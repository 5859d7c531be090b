"""A collapse in the report's head and in comparisons, of runs that are written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report_pages import Page, terminal
from synthetic_runs import write_run

from tripletmas.report.compare import comparison
from tripletmas.report.page import write_comparison, write_report
from tripletmas.report.tables import comparison_markdown


def collapsed(path: Path, *, score: float, signs: dict[str, str]) -> Path:
    """A run of which each task's record tells so much; of 100 queries a task guessing gets 0.25 right."""
    write_run(path, strategy={"name": "finetune"}, matrix=[[score], [score, score], [score] * 3])
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    told = {
        "embedding": {"spread": 1e-9, "rank": 1.0},
        "guess": {"metric": "recall@1", "score": score, "chance": 0.25, "queries": 100},
        **({"collapse": signs} if signs else {}),
    }
    lines = [{**line, **told} if line["kind"] == "task" else line for line in lines]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_a_collapse_opens_the_page_and_forgetting_says_nothing(tmp_path: Path, undrawn):
    """Forgetting 0.000 of what was never learned must not look like a success."""
    signs = {"equal": "embeddings are nearly equal <b>", "chance": "recall@1 is 0.240, and guessing gives 0.250"}
    page = write_report(collapsed(tmp_path / "run", score=0.24, signs=signs))
    text, source = Page(page).text, page.read_text()
    assert "The embedding has collapsed: 3 of 3 tasks" in text
    assert text.index("has collapsed") < text.index("What happened Learned") < text.index("0.000 forgetting")
    assert text.count("nearly equal <b>; recall@1 is 0.240, and guessing gives 0.250.") == 3
    assert text.count("what was never learned cannot be forgotten") == 3  # two tiles, and the words at the head
    assert source.count('class="tile void"') == 2
    assert '<td class="void">0.000</td>' in source


def test_a_score_at_chance_alone_is_no_collapse_but_said(tmp_path: Path, undrawn):
    text = Page(write_report(collapsed(tmp_path / "run", score=0.24, signs={"chance": "it is chance"}))).text
    assert "Learned no better than by guessing: 3 of 3 tasks" in text
    assert "has collapsed" not in text


def test_what_was_learned_all_the_same_is_forgotten(tmp_path: Path, undrawn):
    """A collapse is told, and forgetting stands: 0.4 of 300 is not chance."""
    page = write_report(collapsed(tmp_path / "run", score=0.4, signs={"margin": "the loss sits at its margin"}))
    assert "The embedding has collapsed: 3 of 3 tasks" in Page(page).text
    assert 'class="tile void"' not in page.read_text()


@pytest.mark.slow
def test_a_run_that_learned_says_nothing_of_a_collapse(run: Path, tmp_path: Path, undrawn):
    for page in (run / "report" / "report.html", write_report(collapsed(tmp_path / "run", score=0.9, signs={}))):
        assert 'class="collapse"' not in page.read_text()
        assert "void" not in re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_a_comparison_marks_what_learned_nothing(run: Path, tmp_path: Path, undrawn):
    path = collapsed(tmp_path / "run", score=0.24, signs={"equal": "nearly equal"})
    compared = comparison([run, path])
    table = terminal(compared)
    assert re.search(r"finetune +0\.240 +\(0\.000\) +\(0\.000\)", table)
    assert "finetune: the embedding collapsed in 1 of 1 runs; 1 of 1 runs learned no better" in " ".join(table.split())
    assert "| finetune | 0.240 | (0.000) | (0.000) |" in comparison_markdown(compared)
    source = write_comparison([run, path], tmp_path / "page").read_text()
    assert source.count('<td class="void">(0.000)</td>') == 2
