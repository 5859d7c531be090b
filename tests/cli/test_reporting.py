"""Commands that show runs, of runs that are written by hand."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from report_pages import Page
from synthetic_runs import write_run

from tripletmas.cli.live_page import LivePage
from tripletmas.report import page as page_module
from tripletmas.report.folder import write_folder_report
from tripletmas.report.read import read_run


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[Path]:
    path = tmp_path_factory.mktemp("two")
    return [write_run(path / name, strategy={"name": name}) for name in ("finetune", "mas")]


@pytest.mark.slow
def test_compare_prints_what_is_asked_for_and_writes_no_page(call, two: list[Path]):
    status, text, complaint = call("compare", *two, "--json")
    assert (status, complaint) == (0, "")
    assert [method["method"] for method in json.loads(text)["methods"]] == ["finetune", "mas"]
    assert json.loads(text)["methods"][0]["runs"] == [str(two[0])]
    rows = list(csv.DictReader(io.StringIO(call("compare", *two, "--csv")[1])))
    assert [row["method"] for row in rows] == ["finetune", "mas"]
    assert call("compare", *two, "--latex")[1].startswith(
        "% Recall@1 on the gallery of all tasks seen\n\\begin{tabular}"
    )
    assert call("compare", *two, "--markdown")[1].startswith("| method |")
    assert not (two[0].parent / "comparison").exists()


def test_compare_takes_one_form_at_a_time(call, two: list[Path], tmp_path: Path):
    for options, message in (
        (["--csv", "--json"], "give --csv or --json, not both"),
        (["--latex", "--csv"], "give --latex or --csv, not both"),
        (["--csv", "--out", tmp_path], "--csv writes no page: leave --out out"),
    ):
        status, text, complaint = call("compare", *two, *options)
        assert (status, text) == (2, "")
        assert message in complaint


@pytest.mark.slow
def test_pages_among_the_runs_are_no_runs(call, tmp_path: Path):
    """`runs/*` names them, too."""
    runs = [write_run(tmp_path / "runs" / name, strategy={"name": name}) for name in ("finetune", "mas")]
    for folder, page in (("comparison", "comparison.html"), ("report", "report.html")):
        (tmp_path / "runs" / folder).mkdir()
        (tmp_path / "runs" / folder / page).touch()
    status, text, complaint = call("compare", *sorted((tmp_path / "runs").iterdir()), "--json")
    assert (status, complaint) == (0, "")
    assert [method["runs"] for method in json.loads(text)["methods"]] == [[str(run)] for run in runs]
    status, _, complaint = call("compare", tmp_path / "runs" / "report", "--csv")
    assert (status, "no run directory" in complaint) == (2, True), complaint
    with pytest.raises(ValueError, match=re.escape(f"name those that you mean, or all: {tmp_path / 'runs'}/*")):
        read_run(tmp_path / "runs")  # which reads one


@pytest.mark.slow
def test_all_runs_of_a_folder_are_compared(call, two: list[Path], tmp_path: Path, undrawn):
    """As a sweep wrote them, also in folders of folders; the page lies in the folder that was named."""
    sweep = tmp_path / "sweep"
    runs = [
        write_run(sweep / name, strategy={"name": "mas", "strength": 1.0}) for name in ("strength=0.1", "strength=1")
    ]
    deeper = write_run(sweep / "more" / "si", strategy={"name": "si"})
    status, text, complaint = call("compare", sweep, "--json")
    assert (status, complaint) == (0, "")
    assert [method["runs"] for method in json.loads(text)["methods"]] == [[str(run)] for run in (deeper, *runs)]
    assert [method["runs"] for method in json.loads(call("compare", two[0], sweep, "--json")[1])["methods"]] == [
        [str(run)] for run in (two[0], deeper, *runs)
    ]
    status, text, complaint = call("compare", sweep)
    assert (status, complaint, text.splitlines()[-1]) == (0, "", f"page: {sweep / 'comparison' / 'comparison.html'}")
    assert call("compare", sweep, "--csv")[0] == 0  # the page is no run
    (tmp_path / "empty").mkdir()
    status, _, complaint = call("compare", tmp_path / "empty", "--csv")
    assert (status, "no run directory" in complaint) == (2, True), complaint


@pytest.mark.slow
def test_quiet_writes_the_page_and_prints_nothing(call, two: list[Path], tmp_path: Path, undrawn):
    assert call("compare", *two, "--quiet", "--out", tmp_path / "out") == (0, "", "")
    assert (tmp_path / "out" / "comparison.html").is_file()
    assert call("report", two[0], "--quiet") == (0, "", "")
    assert (two[0] / "report" / "report.html").is_file()


@pytest.mark.slow
def test_plots_are_written_as_svg_where_that_is_asked_for(call, two: list[Path], tmp_path: Path):
    """The same bytes each time, and text that is not TeX is drawn."""
    pages = [tmp_path / name for name in ("one", "two")]
    for out in pages:
        assert call("compare", *two, "--svg", "--quiet", "--out", out)[0] == 0
    names = sorted(path.name for path in pages[0].glob("*.svg"))
    assert names == ["average.svg", "embeddings.svg", "forgetting.svg", "per_task.svg"]
    for name in names:
        assert (pages[0] / name).read_bytes() == (pages[1] / name).read_bytes()
        assert (pages[0] / name).read_text().rstrip().endswith("</svg>")


@pytest.mark.slow
def test_a_folder_of_runs_has_a_page(call, two: list[Path], tmp_path: Path, undrawn):
    """Runs of one stream stand side by side, of another apart; what cannot be read is told."""
    runs = tmp_path / "runs"
    for name, samples in (("a", "x"), ("deep/b", "x"), ("c", "y")):
        write_run(runs / name, strategy={"name": "mas"}, samples=samples, data={"name": "digits"})
    for seed in (0, 1):
        write_run(
            runs / "seeds" / f"seed{seed}", seed=seed, samples="x", strategy={"name": "si"}, data={"name": "digits"}
        )
    (runs / "broken").mkdir()
    (runs / "broken" / "config.yaml").write_text("a: [1")
    status, text, complaint = call("report", runs, "--json")
    page = Path(json.loads(text)["report"])
    assert (status, complaint, page) == (0, "", runs / "report" / "report.html")
    found = Page(page)
    assert found.text.count("Fingerprint of the stream") == 2
    for words in ("seeds si, 2 seeds digits, mlp 3 of 3", "c mas digits, mlp 3 of 3", "config.yaml is no YAML"):
        assert words in found.text
    for name in ("a", "deep/b", "c", "seeds", "seeds/seed1"):
        assert (runs / name / "report" / "report.html").is_file()
    assert "../deep/b/report/report.html" in found.sources
    assert "tasks done note a mas" in found.text
    deep = write_folder_report(runs / "deep")
    assert "tasks done b mas" in Page(deep).text  # nothing is to be noted of it
    written = (runs / "a" / "report" / "report.html").stat().st_mtime_ns
    assert call("report", runs, "--quiet") == (0, "", "")
    assert (runs / "a" / "report" / "report.html").stat().st_mtime_ns == written  # nothing has changed
    status, _, complaint = call("report", tmp_path / "none")
    assert (status, "does not exist" in complaint) == (2, True)


@pytest.mark.slow
def test_a_run_that_is_called_report_stays_what_it_is(call, tmp_path: Path, undrawn):
    for name in ("report", "other"):
        write_run(tmp_path / name)
    assert json.loads(call("report", tmp_path, "--json")[1]) == {"report": f"{tmp_path}/report-of-all/report.html"}
    found = Page(tmp_path / "report-of-all" / "report.html")
    assert "../report/report/report.html" in found.sources
    assert not (tmp_path / "report" / "report.html").exists()


@pytest.mark.slow
def test_a_run_that_is_learning_can_be_looked_at(call, tmp_path: Path, undrawn, monkeypatch):
    """After each task but the last the page is written with what there is, at the end with all."""
    pages = []
    written = page_module.write_report

    def write(out: Path, *, brief: bool = False) -> Path:
        made = written(out, brief=brief)
        pages.append((brief, Page(made).text))
        return made

    monkeypatch.setattr(page_module, "write_report", write)
    monkeypatch.setattr("tripletmas.cli.live_page._SHARE", 0)
    monkeypatch.setattr("tripletmas.cli.live_page.LivePage.__init__.__kwdefaults__", {"first": 0.0})
    options = ["--data", "digits", "--data.tasks", "3", "--model.hidden", "[8]", "--training.epochs", "1"]
    status, _, complaint = call("train", *options, "--out", tmp_path / "run")
    assert status == 0, complaint
    assert [brief for brief, _ in pages] == [True, True, False]
    for (_, text), done in zip(pages, (1, 2, 3), strict=True):
        assert ("This run is still learning." in text) == (done < 3)
        assert (f"{done} of 3 tasks so far" if done < 3 else "All 3 tasks") in text
    assert "Drift" in pages[2][1]


def test_a_page_that_cannot_be_written_ends_no_training(tmp_path: Path, monkeypatch, caplog):
    path = write_run(tmp_path / "run", done=1)
    monkeypatch.setattr(page_module, "write_report", lambda out, brief: 1 / 0)
    live = LivePage(path, first=0.0)
    for _ in range(2):
        live()
    assert [record.message for record in caplog.records] == [
        "no page while the run learns: ZeroDivisionError: division by zero"
    ]
