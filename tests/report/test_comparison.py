"""Comparisons of runs that are written by hand: what rows are called, their numbers, tables and pages."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from report_pages import MATRIX, Page, ink, terminal
from synthetic_runs import write_run

from tripletmas.report.best import RESULTS, marks, verdict
from tripletmas.report.compare import comparison
from tripletmas.report.formats import comparison_csv, comparison_json, comparison_latex
from tripletmas.report.page import write_comparison, write_report
from tripletmas.report.read import read_group, read_run
from tripletmas.report.sensitivity import Curve, Panel, draw_sensitivity
from tripletmas.report.tables import comparison_markdown


@pytest.fixture(scope="module")
def finetune(tmp_path_factory) -> Path:
    matrix = [[0.9], [0.7, 0.8], [0.4, 0.5, 0.9]]
    return write_run(tmp_path_factory.mktemp("runs") / "finetune", strategy={"name": "finetune"}, matrix=matrix)


@pytest.mark.slow
def test_the_comparison_page_and_table(run: Path, finetune: Path, tmp_path: Path):
    page = Page(write_comparison([finetune, run], tmp_path))
    # finetune: (0.4 + 0.5 + 0.9) / 3 = 0.6, forgetting ((0.9 - 0.4) + (0.8 - 0.5)) / 2 = 0.4
    for words in ("finetune 0.600 0.400 -0.400 0.867", "mas 0.750 0.200 -0.200 0.883", "0.400 0.600"):
        assert words in page.text
    assert len(page.sources) == 2 * 4
    for name in ("average", "forgetting", "per_task", "embeddings"):
        assert 0.003 < ink(tmp_path / f"{name}.png") < 0.9
    table = terminal(comparison([finetune, run]))
    assert re.search(r"finetune +0\.600 +0\.400 +-0\.400 +0\.867 +8\.7", table)
    assert re.search(r"2 +class 2,class 3 +0\.500 +0\.700", table)
    assert max(map(len, terminal(comparison([finetune, run]), 80).splitlines())) <= 80


@pytest.mark.slow
def test_names_are_shown_as_they_are(stored: Path):
    """Not as markup of rich."""
    assert "[red] a & b,$" in terminal(comparison([stored]), 400)
    assert comparison_markdown(comparison([stored])).splitlines()[2].startswith("| mas | ")


@pytest.mark.slow
def test_seeds_are_one_row_with_mean_and_sample_deviation(tmp_path: Path, undrawn):
    """Averages 0.8, 0.7, 0.6: mean 0.7, deviation sqrt((0.01 + 0 + 0.01) / 2) = 0.1; forgetting 0.1, 0.3, 0.5."""
    for seed, last in enumerate((0.8, 0.6, 0.4)):
        write_run(tmp_path / f"mas/seed{seed}", seed=seed, num_tasks=2, matrix=[[0.9], [last, 0.8]])
    row = comparison([tmp_path / "mas"]).methods[0]
    assert row.average.text() == "0.700 ± 0.100"
    assert row.forgetting.text() == "0.300 ± 0.200"
    assert row.backward_transfer.text(signed=True) == "-0.300 ± 0.200"
    assert row.learning.text() == "0.850 ± 0.000"
    assert [spread.text() for spread in row.per_task] == ["0.600 ± 0.200", "0.800 ± 0.000"]
    assert row.seconds.text(1) == "5.8 ± 0.0"
    torch.testing.assert_close(row.curves.mean(dim=0), torch.tensor([0.9, 0.7], dtype=torch.float64))
    page = Page(write_report(tmp_path / "mas"))
    assert page.text.count("0.700 ± 0.100") == 2  # in words, and in the table
    assert (tmp_path / "mas" / "seed2" / "report" / "report.html").is_file()
    assert "../seed2/report/report.html" in page.sources


@pytest.mark.slow
def test_some_seeds_of_a_group(tmp_path: Path):
    for seed in (0, 3):
        write_run(tmp_path / "same" / f"seed{seed}", seed=seed, num_tasks=2)
        write_run(tmp_path / "other" / f"seed{seed}", seed=seed, strategy={"name": "mas", "strength": seed})
    assert [run.config["seed"] for run in read_group(tmp_path / "same")] == [0, 3]
    assert [run.config["seed"] for run in comparison([tmp_path / "same"], seeds=[3]).methods[0].runs] == [3]
    for path, seeds, message in (
        ("same", [0, 1], r"no run of seed 1; it has \[0, 3\]"),
        ("same/seed3", [0], r"single run with seed 3, not one of \[0\]"),
        ("other", None, r"seed0 and seed3 differ in strategy\.strength"),
    ):
        with pytest.raises(ValueError, match=message):
            read_group(tmp_path / path, seeds=seeds)


@pytest.mark.slow
def test_a_single_run_shows_no_deviation(finetune: Path):
    markdown = comparison_markdown(comparison([finetune]))
    head = "| method | average | forgetting | backward transfer | learning | seconds | class 0,class… |"
    assert markdown.splitlines()[0].startswith(head)
    assert markdown.splitlines()[2] == "| finetune | 0.600 | 0.400 | -0.400 | 0.867 | 8.7 | 0.400 | 0.500 | 0.900 |"
    assert "±" not in markdown


def mas(**options: Any) -> dict:
    return {"strategy": {"name": "mas", **options}}


AUTO = mas(strength="auto")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([{"strategy": {"name": "finetune"}}, mas(strength=0.3)], ["finetune", "mas"]),
        ([mas(strength=0.3), mas(strength=1.0)], ["mas, strength=0.3", "mas, strength=1.0"]),
        ([{"epochs": 2}, {"epochs": 3}], ["mas, epochs=2", "mas, epochs=3"]),
        ([{"seed": 0}, {"seed": 7}], ["mas, seed=0", "mas, seed=7"]),
        ([{}, {}], ["mas ({path}/0)", "mas ({path}/1)"]),
        # how a strength was searched tells searches apart only
        ([mas(strength=0.3), {**AUTO, "search": {"drop": 0.2}}], ["mas, strength=0.3", "mas, strength=auto"]),
        (
            [{**AUTO, "search": {"start": None, "drop": drop}} for drop in (0.2, 0.1)],
            ["mas, drop=0.2", "mas, drop=0.1"],
        ),
        (
            [{"strategy": {"name": "mas+distill", "mas": {"strength": s}, "distill": {"weight": 1}}} for s in (0.3, 1)],
            ["mas+distill, mas.strength=0.3", "mas+distill, mas.strength=1"],
        ),
    ],
)
def test_rows_are_called_by_what_tells_them_apart(rows, labels, tmp_path: Path):
    runs = [write_run(tmp_path / f"{i}", num_tasks=2, **{"epochs": 1, **row}) for i, row in enumerate(rows)]
    assert [method.label for method in comparison(runs).methods] == [each.format(path=tmp_path) for each in labels]


@pytest.mark.slow
def test_what_cannot_be_compared(recognition: Path, run: Path, tmp_path: Path):
    one = write_run(tmp_path / "one", data={"name": "digits", "tasks": 3, "order_seed": None})
    two = write_run(tmp_path / "two", data={"name": "digits", "tasks": 5, "order_seed": None})
    for runs, message in (
        ([one, two], r"different streams .*\(data\.tasks: 3 and 5\)"),
        ([run, recognition], r"mas \(metric\) and .*rec \(recognition\) had different objectives"),
        ([], "at least one run directory"),
    ):
        with pytest.raises(ValueError, match=message):
            comparison(runs)


@pytest.mark.slow
def test_models_that_see_one_stream_differently_are_compared(tmp_path: Path):
    """Size, crop and interpolation are those that a model's weights were made for, augmentation is of training."""
    data = {"name": "folder", "root": "shop", "size": 64, "interpolation": "bilinear", "crop": 1.0, "augment": "none"}
    other = {**data, "size": "224x160", "interpolation": "bicubic", "crop": 0.875, "augment": "photo"}
    runs = [write_run(tmp_path / f"{i}", data=each) for i, each in enumerate((data, other))]
    labels = [method.label for method in comparison(runs).methods]
    assert labels[1] == "mas, augment=photo, crop=0.875, interpolation=bicubic, size=224x160"
    models = ({"name": "conv4", "width": 64}, {"name": "timm:resnet18", "dim": 128, "weights": "net.pth"})
    several = zip((data, other), models, strict=True)
    runs = [write_run(tmp_path / model["name"][:5], data=each, model=model) for each, model in several]
    labels = [method.label for method in comparison(runs).methods]
    # no option of theirs
    assert labels == ["mas, augment=none, model=conv4", "mas, augment=photo, model=timm:resnet18"]


@pytest.mark.slow
def test_runs_are_compared_by_what_they_learned(tmp_path: Path):
    """By the samples of their tasks, however these were asked for, and whoever made the run."""
    data = [{"name": "digits", "tasks": tasks, "order_seed": None} for tasks in (3, None)]
    one, two = (write_run(tmp_path / f"{i}", data=each, samples="a") for i, each in enumerate(data))
    program = write_run(tmp_path / "program", alone=True, samples="a", matrix=MATRIX)
    other = write_run(tmp_path / "other", alone=True, samples="b")
    labels = [method.label for method in comparison([one, two, program]).methods]
    assert labels == [f"mas ({one})", f"mas ({two})", "program"]
    assert comparison([program, one]).methods[0].average.text() == "0.750"
    words = write_run(tmp_path / "words", data={"name": "shapes-facts", "scene_seed": 1}, samples="a")
    scenes = write_run(tmp_path / "scenes", data={"name": "shapes-facts", "scene_seed": 2}, samples="a")
    later = write_run(tmp_path / "later", data={"name": "digits", "order_seed": 1}, samples="c")
    old = write_run(tmp_path / "old", data=data[0])  # without fingerprints: by its configuration
    assert len(comparison([one, old]).methods) == 2
    for runs, message in (
        ([one, other], r"not the same samples have task 1 \('class 0,class 1' and 'class 0,class 1'\), 2"),
        ([program, other], "not the same samples"),
        ([one, later], r"not the same samples .*; data\.order_seed: None and 1; data\.tasks: 3 and absent"),
        ([one, words], r"different streams .*data\.name: digits and shapes-facts"),
        ([words, scenes], r"different streams .*\(data\.scene_seed: 1 and 2\)"),
        ([two, old], r"different streams .*\(data\.tasks: None and 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            comparison(runs)


@pytest.mark.slow
def test_the_kind_of_a_run_that_does_not_say_it_is_told_by_its_scores(tmp_path: Path):
    assert read_run(write_run(tmp_path / "a", alone=True, objective="recognition")).kind.name == "recognition"
    assert read_run(write_run(tmp_path / "b", alone=True)).kind.name == "metric"


@pytest.mark.slow
def test_the_best_is_marked_and_what_is_level_with_it(several: list[Path], tmp_path: Path):
    """Over the seeds 0 and 1, mas has 0.05 and 0 more than finetune: t = 1 of one degree, p = 0.5. Joint is apart.

    Means over their own seeds: finetune (0.7 + 0.75 + 0.7) / 3 = 0.717, mas (0.75 + 0.75 + 0.8) / 3 = 0.767.
    """
    compared = comparison(several)
    markdown = comparison_markdown(compared)
    assert "| finetune | 0.717 ± 0.029 ≈ |" in markdown
    assert "| mas | **0.767 ± 0.029** |" in markdown
    assert "| joint | 0.925 ± 0.035 |" in markdown
    assert "joint has all data and is not marked." in markdown
    assert "≈: not told apart" in markdown
    single = comparison([path / "seed0" for path in several[:2]])
    # forgetting of single runs, 0.4 and 0.2: the best is marked, and that this may be noise is said
    assert marks(single, RESULTS[1]) == ["", "best"]
    assert "may be noise" in comparison_markdown(single)
    assert "**" not in comparison_markdown(comparison(several[:1]))
    equal = [write_run(tmp_path / name, matrix=MATRIX, strategy={"name": name}) for name in ("finetune", "mas")]
    assert marks(comparison(equal), RESULTS[0]) == ["", ""]
    worse = write_run(tmp_path / "worse", strategy={"name": "si"}, decay=0.5)
    assert marks(comparison([*equal, worse]), RESULTS[0]) == ["best", "best", ""]
    assert marks(comparison(equal), RESULTS[-1]) == ["", ""]  # seconds are no score


@pytest.mark.slow
def test_who_ends_highest_is_said_as_far_as_the_seeds_tell(several: list[Path], tmp_path: Path):
    compared = comparison(several)
    assert verdict(compared) == (
        "Highest at the end, joint training left out: mas, with an average recall@1 of 0.767; over the seeds that "
        "there are, not told apart from it: finetune."
    )
    single = comparison([path / "seed0" for path in several[:2]])
    assert verdict(single).startswith("Highest at the end: mas")
    assert verdict(single).endswith(
        "mas, with an average recall@1 of 0.750; whether that is more than noise, the seeds that there are do not tell."
    )
    # 0.3 - 0.0 and 0.3 - 0.01 below: t of one degree is far out
    apart = [
        _two_tasks(tmp_path, name, {0: (0.9, low, 0.9), 1: (0.9, low + more, 0.9)})
        for name, low, more in (("mas", 0.8, 0.01), ("finetune", 0.2, 0.0))
    ]
    assert verdict(comparison(apart)).endswith("above each of the others by more than the noise between seeds.")
    assert verdict(comparison(several[:1])) == ""


@pytest.mark.slow
def test_other_programs_get_the_comparison(several: list[Path], tmp_path: Path):
    compared = comparison(several)
    latex = comparison_latex(compared)
    assert r"mas & \textbf{0.767 $\pm$ 0.029} & \textbf{0.233 $\pm$ 0.058} & " in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    first, second, third = csv.DictReader(io.StringIO(comparison_csv(compared)))
    assert (first["method"], first["seeds"], first["average, difference"]) == ("finetune", "0 1 2", "")
    assert float(second["average"]) == pytest.approx(2.3 / 3)
    assert float(second["average, difference"]) == pytest.approx(0.025)
    assert float(third["task 2: class 2,class 3, deviation"]) == pytest.approx(0.1 / math.sqrt(2))
    content = json.loads(json.dumps(comparison_json(compared), allow_nan=False))
    assert content["methods"][1]["forgetting"] == pytest.approx([0.2, 0.3, 0.2])
    assert content["methods"][1]["mean"]["seconds"] == pytest.approx(5.8)
    assert content["paired"][0]["average"]["p"] == pytest.approx(0.5)
    assert content["methods"][2]["intransigence"] == []
    names = write_run(tmp_path / "names", class_names=["a_b & c", "100 %", "{x}", "\\d", "<", "…"])
    assert r"a\_b \& c,100 \% & \{x\},\textbackslash{}d & \textless{},\ldots{} \\" in comparison_latex(
        comparison([names])
    )


@pytest.mark.slow
def test_the_page_is_headed_by_what_all_rows_have_in_common(tmp_path: Path, undrawn):
    models = ({"name": "conv4", "width": 64}, {"name": "mlp"})
    runs = [write_run(tmp_path / f"{i}", model=each) for i, each in enumerate(models)]
    page = write_comparison(runs, tmp_path / "out").read_text()
    head = page[page.index("<h1") : page.index("<h2")]
    assert "model " not in head  # it was that of the first row
    assert "3 tasks" in head
    assert "mas, model=conv4" in page
    assert "model conv4" in write_comparison(runs[:1] * 2, tmp_path / "same").read_text()


@pytest.mark.slow
def test_an_unfinished_run_is_left_out_and_named(tmp_path: Path, undrawn):
    write_run(tmp_path / "mas" / "seed0", matrix=MATRIX)
    write_run(tmp_path / "mas" / "seed1", seed=1, done=2)
    none = write_run(tmp_path / "finetune", strategy={"name": "finetune"}, done=0)
    compared = comparison([tmp_path / "mas", none])
    assert [method.average.text() for method in compared.methods] == ["0.750", "–"]
    assert "mas: 1 of 2 runs did not finish" in terminal(compared)
    assert "finetune: 1 of 1 runs did not finish" in comparison_markdown(compared)
    assert "1 of 2 runs did not finish" in Page(write_comparison([tmp_path / "mas", none], tmp_path / "out")).text


@pytest.mark.slow
def test_comparison_of_recognition_says_what_it_compares(recognition: Path, tmp_path: Path, undrawn):
    strategy = {"name": "mas+distill", "mas": {"strength": 1.0}, "distill": {"weight": 1.0}}
    other = write_run(tmp_path / "other", matrix=MATRIX, objective="recognition", strategy=strategy)
    table = terminal(comparison([recognition, other]))
    assert "task-incremental accuracy" in table
    assert "recall" not in table
    text = Page(write_comparison([recognition, other], tmp_path / "out")).text
    assert "Final task-incremental accuracy of each task" in text
    assert "recall" not in text.lower()


# --- beyond one matrix: forward transfer, what was never learned, intransigence, paired differences


@pytest.mark.slow
def test_forward_transfer_is_compared_where_it_was_measured(finetune: Path, tmp_path: Path):
    compared = comparison([write_run(tmp_path / "ahead", matrix=MATRIX, baseline=0.5), finetune])
    assert re.search(r"mas +\+0\.100\n", terminal(compared).replace("  \n", "\n"))
    assert "| mas | +0.100 |" in comparison_markdown(compared)
    assert "| finetune | – |" in comparison_markdown(compared)


@pytest.mark.slow
def test_what_was_never_learned_is_compared_where_it_was_measured(finetune: Path, tmp_path: Path, run: Path, undrawn):
    path = write_run(tmp_path / "unseen", matrix=MATRIX)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line, value in zip((each for each in lines if each["kind"] == "task"), (0.5, None, 0.375), strict=True):
        line["unseen"] = {"recall@1": value}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(path).unseen == pytest.approx((0.5, math.nan, 0.375), nan_ok=True)
    compared = comparison([path, finetune])
    assert "recall@1 of what was never learned" in terminal(compared)
    assert "| mas | 0.375 |" in comparison_markdown(compared)
    assert "| finetune | – |" in comparison_markdown(compared)
    text = Page(write_comparison([path], tmp_path)).text
    assert "0.375" in text
    assert "never learned Recall@1 among classes that belong to no task" in text
    assert "never learned" not in Page(write_comparison([run], tmp_path / "without")).text


def _two_tasks(path: Path, strategy: str, scores: dict[int, tuple[float, float, float]]) -> Path:
    for seed, (learned, kept, second) in scores.items():
        given = {"matrix": [[learned], [kept, second]], "strategy": {"name": strategy}}
        write_run(path / strategy / f"seed{seed}", seed=seed, num_tasks=2, **given)
    return path / strategy


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> list[Path]:
    path = tmp_path_factory.mktemp("several")
    return [
        _two_tasks(path, "finetune", {0: (0.9, 0.5, 0.9), 1: (0.9, 0.6, 0.9), 2: (0.9, 0.6, 0.8)}),
        _two_tasks(path, "mas", {0: (0.9, 0.7, 0.8), 1: (0.9, 0.6, 0.9), 3: (0.9, 0.7, 0.9)}),
        _two_tasks(path, "joint", {0: (0.9, 0.9, 1.0), 1: (0.9, 0.9, 0.9)}),
    ]


@pytest.mark.slow
def test_paired_differences_are_those_of_the_common_seeds(several: list[Path]):
    """mas and finetune share the seeds 0 and 1.

    Averages: 0.75 - 0.7 = 0.05 and 0.75 - 0.75 = 0, mean 0.025, deviation 0.05 / sqrt(2) = 0.035. Forgetting: 0.2 - 0.4
    = -0.2 and 0.3 - 0.3 = 0, mean -0.1, deviation 0.141; less forgetting is better. Seeds 2 and 3 have no partner.
    """
    compared = comparison(several)
    mas, joint = compared.paired
    assert (mas.label, mas.seeds, joint.seeds) == ("mas", 2, 2)
    assert mas.average == pytest.approx((0.025, 0.05 / math.sqrt(2), 1, 1, 0, 2))
    assert mas.forgetting == pytest.approx((-0.1, 0.2 / math.sqrt(2), 1, 1, 0, 2))
    # t = 0.025 / (0.035 / sqrt(2)) = 1 of one degree: p = 0.5, the larger of two: it stays; joint has 0.25 and 0.15
    # more, t = 0.2 / 0.05 = 4: p = 1 - 2 atan(4) / pi = 0.156, 0.312 of two; of one degree 95 of 100 lie within 12.706
    assert (mas.average_test.p, joint.average_test.p) == pytest.approx((0.5, 0.312), abs=1e-3)
    markdown, table = comparison_markdown(compared), terminal(compared, 80)
    assert "| mas | +0.025 ± 0.035 | -0.293 to +0.343 | +0.7 | 0.500 | 1 / 1 / 0 | 2 |" in markdown
    assert "Paired differences to finetune in the average" in markdown
    assert "paired differences to finetune in forgetting" in table
    assert re.search(r"mas +\+0\.025 ±0\.035 +-0\.293 to \+0\.343 +\+0\.7 +0\.500 +1 / 1 / 0 +2", table)
    assert "independent and normally distributed" in " ".join(table.split())
    assert max(map(len, table.splitlines())) <= 80
    for text in (table, markdown):
        assert "mas: seeds left out of the differences, since only it or finetune has them: 2" in " ".join(text.split())


@pytest.mark.slow
def test_paired_differences_and_intransigence_on_the_page(several: list[Path], tmp_path: Path, undrawn):
    text = Page(write_comparison(several, tmp_path)).text
    for words in (
        "Paired differences to finetune",
        "mas +0.025 ± 0.035 -0.293 to +0.343 +0.7 0.500 1 / 1 / 0 2",
        "since only it or finetune has them: 2.",
        "Against joint, seed by seed",
    ):
        assert words in text
    one = Page(write_comparison(several[:1], tmp_path / "one")).text  # one method alone has nothing to be compared with
    assert "Paired" not in one
    assert "intransigence" not in one


@pytest.mark.slow
def test_there_are_no_paired_differences_of_single_runs(run: Path, finetune: Path):
    compared = comparison([run, finetune])
    assert compared.paired == ()
    assert compared.joint is None
    for word in ("paired", "intransigence", "forward"):
        assert word not in terminal(compared)


@pytest.mark.slow
def test_intransigence_is_against_the_joint_run_of_the_seed_else_their_mean(several: list[Path]):
    """Diagonals of joint: (0.9, 1.0) and (0.9, 0.9), mean (0.9, 0.95).

    finetune: seed 0 (0 + 0.1) / 2 = 0.05, seed 1 0, seed 2 against the mean (0 + 0.15) / 2 = 0.075.
    """
    compared = comparison(several)
    assert compared.joint == "joint"
    finetune, _, joint = compared.methods
    assert finetune.intransigence.values == pytest.approx((0.05, 0.0, 0.075))
    assert joint.intransigence.values == ()
    expected = "intransigence of 1 of 3 runs is against the mean of joint's seeds"
    assert finetune.note == expected
    assert expected in " ".join(terminal(compared, 80).split())
    assert "(against joint)" in terminal(compared)


# --- the sensitivity figure


def _panel(title: str, base: float) -> Panel:
    near, far = Curve([0.1, 1, 10], [base, base + 0.05, base - 0.2], [0.01, 0.01, 0.02]), Curve([1e3], [base], [0])
    return Panel(title, {"mas, relative unit": near, "ewc": far}, (base, 0.01))


@pytest.mark.slow
@pytest.mark.parametrize("bottom", [None, -0.1])
def test_the_sensitivity_figure(tmp_path: Path, bottom: float | None):
    """It shows the change to finetune: the same change on data sets of other difficulty is the same picture."""
    three = [_panel("digits", 0.8), _panel("Omniglot", 0.5), _panel("CIFAR-100", 0.3)]
    for name, panels in (("one", [_panel("data", 0.5)]), ("two", [_panel("data", 0.25)]), ("three", three)):
        draw_sensitivity(tmp_path / f"{name}.png", panels, bottom=bottom)
        assert ink(tmp_path / f"{name}.png") > 0.005
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert imread(tmp_path / "three.png").shape[1] > 2 * imread(tmp_path / "one.png").shape[1] * 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("curves", "message"),
    [
        (None, "at least one panel"),
        ({"mas": Curve([1, 2], [0.5], [0.1, 0.1])}, "data, mas: needs as many means"),
        ({"mas": Curve([0, 2], [0.5, 0.5], [0.1, 0.1])}, "must be > 0 for a logarithmic axis, got 0"),
    ],
)
def test_the_sensitivity_figure_refuses_what_it_cannot_draw(curves, message, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        draw_sensitivity(tmp_path / "s.png", [] if curves is None else [Panel("data", curves, (0.5, 0.0))])
