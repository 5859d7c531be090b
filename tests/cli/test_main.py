"""The command line, end to end, on small runs."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from commands import SMALL, earlier_version, failed, interrupt_after
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from tripletmas.basics.version import __version__
from tripletmas.basics.weights import load_state, state_of
from tripletmas.cli.main import COMMANDS, main
from tripletmas.index import drift
from tripletmas.models.networks import mlp
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.runs import catalog
from tripletmas.runs import task as task_training
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import load_trained
from tripletmas.strategies.mas import MAS


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the finished runs mas, finetune, and seeds (mas with seeds 0 and 1)."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("mas", "finetune"):
        assert main(["train", "--strategy", name, "--out", str(folder / name), "--report", "false", *SMALL]) == 0
    assert main(["train", "--out", str(folder / "seeds"), "--seeds", "0,1", "--report", "false", *SMALL]) == 0
    return folder


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    """A copy of the runs, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


# --- without a command


def test_help_lists_every_command(call):
    status, text, _ = call("--help")
    assert status == 0
    assert all(f"  {name} " in text for name in COMMANDS)
    assert call("help")[:2] == call("-h")[:2] == (0, text)
    assert call() == (2, text, "")
    assert call("--version")[:2] == (0, f"tripletmas {__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, call, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: tripletmas {name}" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["--help", "--version", "tain"])
def test_torch_is_not_imported_for_what_needs_no_torch(argument):
    """It takes seconds. An unknown command is told as fast."""
    script = (
        "import sys; from tripletmas.cli.main import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'numpy', 'faiss', 'jsonargparse', 'yaml', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_a_process_of_its_own_imports_is_not_looked_through_for_garbage():
    program = """
import gc, sys
from tripletmas.cli.main import main
seen = lambda: print("seen", gc.get_freeze_count(), gc.get_threshold()[0])
seen()
main(sys.argv[1:])
seen()
main()
seen()
"""
    words = [sys.executable, "-c", program, "completion", "bash"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    before, called, alone = re.findall(r"^seen (\d+) (\d+)$", done.stdout, re.MULTILINE)
    assert called == before
    assert int(alone[0]) > int(before[0]) + 1000
    assert alone[1] == "10000"


def test_an_unknown_command_comes_with_a_suggestion(call):
    failed(call("tran"), r"unknown command 'tran' \(did you mean 'train'\?\)")
    failed(call("xyz"), r"unknown command 'xyz' \(known: train, .*\); see: tripletmas --help")


def test_the_package_can_be_run_and_its_status_is_the_exit_code():
    done = subprocess.run([sys.executable, "-m", "tripletmas", "tran"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'train'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--training.lr", "fast"), "--training.lr takes float, not 'fast'"),
        (("train", "--training.sampler", "any"), "--training.sampler takes class_balanced or shuffled, not 'any'"),
        (("train", "--strategy.strength", "high"), "--strategy.strength takes float or auto, not 'high'"),
        (("train", "--data.tasks", "[1, a]"), "--data.tasks takes int or list[int] or null, not \"[1, 'a']\""),
        (("query", "shop.index", "one.png", "-k", "all"), "-k takes int, not 'all'; see: tripletmas query --help"),
        (("query", "shop.index"), "the following arguments are required: images; see: tripletmas query --help"),
        (("index", "build", "--out"), "argument --out: expected one argument; see: tripletmas index build --help"),
        (("train", "--training.lr="), "--training.lr takes float, not ''"),
        (("train", "--model.hidden", "wide"), "--model.hidden takes list, not 'wide'"),
        (("train", "--data", "folder", "--out", "here"), "--data.root is needed"),
        (("train", "--strategy"), "argument --strategy.name: expected one argument"),
        (("train", "--objective"), "argument --objective: expected one argument"),
        (("doctor", "--fix", "me"), "doctor takes a run or an index, and --repair, got --fix"),
        (("export", "run", "--embedings", "x"), "unrecognized arguments: --embedings x; see: tripletmas export --help"),
    ],
)
def test_arguments_that_do_not_fit_are_told_in_one_line(arguments, message, call):
    assert call(*arguments) == (2, "", f"tripletmas: error: {message}\n")


@pytest.mark.parametrize(
    ("what", "part"), [("strategies", "strategy"), ("losses", "loss"), ("models", "model"), ("data", "data")]
)
def test_what_there_is_is_listed_a_line_each(what, part, call):
    lines = [line.split(maxsplit=1) for line in call("list", what)[1].splitlines()]
    assert {name for name, _ in lines} == catalog.built_in(part)
    assert len(lines) == len(catalog.built_in(part))
    assert all(len(text) > 10 and "http" not in text for _, text in lines)


def test_kinds_of_task_are_listed(call):
    assert call("list", "objectives")[1].splitlines()[0] == "metric       a metric loss"
    failed(call("list", "modles"), r"there is no list of 'modles' \(did you mean 'models'\?\)")


# --- train


@pytest.mark.slow
def test_train_prints_the_scores_and_writes_a_report(call, tmp_path):
    status, text, complaint = call("train", "--out", tmp_path / "run", *SMALL)
    assert (status, complaint) == (0, "")
    assert "mas" in text
    assert "forgetting" in text
    assert f"report: {tmp_path / 'run' / 'report' / 'report.html'}" in text.replace("\n", "")
    assert (tmp_path / "run" / "report" / "report.html").stat().st_size > 10_000
    shown = float(re.search(r"mas +(0\.\d+)", text)[1])  # pyright: ignore[reportOptionalSubscript]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["matrices"]["seen"]["recall@1"]
    assert shown == pytest.approx(sum(scores[2]) / 3, abs=5e-4)


@pytest.mark.slow
def test_train_again_retrains_nothing_and_refuses_another_configuration(runs, call):
    before = (runs / "mas" / "metrics.jsonl").read_bytes()
    status, text, _ = call("train", "--out", runs / "mas", "--report", "false", *SMALL)
    assert status == 0
    assert "mas" in text
    assert (runs / "mas" / "metrics.jsonl").read_bytes() == before
    other = ["train", "--out", runs / "mas", *SMALL, "--strategy.strength", "1"]
    failed(call(*other), r"holds a run with another configuration \(strategy\.strength: 0\.3 -> 1\.0\): choose another")
    failed(call("train", "--out", runs / "seeds" / "seed0", "--seeds", "0,1", *SMALL), "holds a single run")
    failed(call("train", "--out", runs, *SMALL), "holds something that is no run")
    assert (runs / "mas" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_train_writes_where_it_says_by_default(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("train", "--strategy", "frozen", "--report", "false", *SMALL)[0] == 0
    assert (tmp_path / "runs" / "frozen" / "config.yaml").exists()


def test_print_config_is_read_back(call, tmp_path):
    arguments = ["--strategy", "joint", "--loss", "contrastive", "--loss.pos_margin", "0.1", "--seed", "3", *SMALL]
    status, text, _ = call("train", "--print_config", *arguments)
    assert status == 0
    assert yaml.safe_load(text)["loss"]["pos_margin"] == 0.1
    (tmp_path / "config.yaml").write_text(text)
    assert call("train", "--config", tmp_path / "config.yaml", "--print_config")[1] == text
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]  # and nothing was trained


REFUSED = [
    ("train --strategy mass", r"unknown strategy 'mass' \(did you mean 'mas'\?\)"),
    ("train --strategy mas+distil", r"unknown strategy 'distil' in 'mas\+distil' \(did you mean 'distill'\?\)"),
    ("train --strategy joint+replay", "'joint' and 'replay' cannot be combined: they both define the training data"),
    ("train --strategy replay --strategy.memory 7", "memory must be >= 16, two samples for each of 8 earlier classes"),
    ("train --strategy.strenght 1", r"did you mean 'strength'\?"),
    ("train --strategy.strength -1", "strength must be >= 0"),
    ("train --strategy.output logits", "output 'logits' is nothing that this objective measures"),
    ("train --strategy finetune --strategy.strength auto", "strategy 'finetune' has no option 'strength'"),
    (
        "train --strategy mas+l2 --strategy.mas.strength auto --strategy.l2.strength auto",
        "one strength can be searched, not those of mas and l2",
    ),
    ("train --data.tasks 11", "11 tasks need at least 11 classes, got 10"),
    ("train --model conv4", "conv4 needs images of 16x16 or more, got 8x8"),
    ("train --training.batch_size 4", r"batch_size must be >= 2 \* samples_per_class"),
    ("train --training.lr 0", "lr and clip must be > 0"),
    ("train --training.backbone_lr 0.01y", "backbone_lr must be a rate > 0 .* or a multiple of lr such as 0.01x"),
    ("train --training.backbone_lr nan", "backbone_lr must be a rate > 0 .*, got 'nan'"),
    ("train --training.backbone_lr 0.1x --model.hidden []", "this model has only 'embedding' to train: set lr"),
    ("train --training.freeze hiden1", r"freeze: the model has no 'hiden1' \(did you mean 'hidden1'\?\)"),
    ("train --training.freeze *", "freeze leaves nothing of the model to train"),
    ("train --training.freeze hidden1,hidden2 --training.backbone_lr 0.1x", "only 'embedding' to train: set lr"),
    ("train --training.warmup -1", "warmup must be a share of a task's steps"),
    ("train --training.warmup 100000", "a warmup of 100000 steps is no shorter than the task, which has"),
    ("train --device gpu", "unknown device 'gpu'"),
    ("train --seed -1", "seed must be >= 0"),
    ("train --seeds 0,x", "--seeds must be whole numbers with commas between them, such as 0,1,2; got '0,x'"),
    ("train --seed 1 --seeds 0,1", "give --seed or --seeds, not both"),
    ("train --config none.yaml", "'none.yaml' cannot be read"),
    ("train --objective recogniton", r"unknown objective 'recogniton' \(did you mean 'recognition'\?\)"),
    ("train --objective recognition --loss triplet", "loss 'triplet' does not fit objective 'recognition'"),
    ("train --loss cross_entropy", "loss 'cross_entropy' does not fit objective 'metric'"),
    ("train --search.drop 0.3", r"--search\.drop is for a strength that is searched: set a strength to auto"),
    ("train --sweep strategy.strenght=1,2", r"strategy 'mas' has no option 'strenght' \(did you mean 'strength'\?\)"),
    ("train --sweep strategy.strength=1,x", "strength"),
    ("train --trials 2", "--trials needs a --sweep"),
    ("search --strategy finetune", "strategy 'finetune' has no strength to search"),
    ("search --strategy mas+distill", r"say whose strength is searched: such as --strategy\.mas\.strength auto"),
    ("search --strategy.strength 1", "a search chooses the strength itself"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line for line, _ in REFUSED])
def test_what_is_refused_before_anything_is_trained(line, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed(call(*line.split(), "--out", "out"), message)
    assert not Path("out/metrics.jsonl").exists()


@pytest.mark.slow
def test_a_search_where_nothing_is_learned(call, tmp_path):
    hopeless = ("--objective", "recognition", "--training.lr", "1e-9")
    result = call("search", *hopeless, "--out", tmp_path / "out", *SMALL)
    failed(result, "finetune reaches .* where guessing gives .*it does not learn")


def test_no_cuda_where_it_is_asked_for(call, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    failed(call("train", "--device", "cuda", "--out", tmp_path / "run"), "torch sees no CUDA device: use --device auto")
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_that_is_far_too_high(call, tmp_path):
    result = call("train", "--training.lr", "1e30", "--out", tmp_path / "run")
    failed(result, r"the loss is nan in task 0 \(0,1\), epoch 0, step 1: lower lr")


def test_an_importance_of_zero_everywhere_is_told(call, tmp_path, monkeypatch):
    """As of a model that ends in a normalisation."""

    class Normalised(torch.nn.Sequential):
        def forward(self, input):
            return torch.nn.functional.normalize(super().forward(input))

    model = Normalised(torch.nn.Flatten(), torch.nn.Linear(64, 8))
    monkeypatch.setattr("tripletmas.objectives.kind.make_model", lambda *arguments, **options: model)
    failed(call("train", "--out", tmp_path / "run", *SMALL), "the importance is zero everywhere: .*layer='NAME'")


# --- several seeds


@pytest.mark.slow
def test_seeds_are_runs_of_their_own(trained):
    configs = [RunDirectory.open(trained / "seeds" / f"seed{seed}").config() for seed in (0, 1)]
    assert [config.pop("seed") for config in configs] == [0, 1]
    assert configs[0] == configs[1]
    first, second = ((trained / "seeds" / f"seed{seed}" / "scores.json").read_text() for seed in (0, 1))
    assert first != second
    assert first == (trained / "mas" / "scores.json").read_text()  # seed 0 is the default


@pytest.mark.slow
def test_mean_and_deviation_over_seeds(trained, call):
    values = [
        sum(json.loads((trained / "seeds" / f"seed{s}" / "scores.json").read_text())["matrices"]["seen"]["recall@1"][2])
        / 3
        for s in (0, 1)
    ]
    mean, deviation = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5  # of two values, with ddof=1
    _, text, _ = call("compare", trained / "seeds", "--markdown")
    assert f"{mean:.3f} ± {deviation:.3f}" in text
    _, text, _ = call("compare", trained / "seeds", "--markdown", "--seeds", "1")
    assert f"{values[1]:.3f}" in text
    assert "±" not in text


# --- resume


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(call, tmp_path, trained, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr("tripletmas.report.page.write_report", lambda path: path)
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=1)
        status, text, complaint = call("train", "--out", out, "--report", "false", *SMALL)
    assert status == 130
    assert text == ""
    assert complaint == f"\ninterrupted: saved up to the last whole epoch; go on with: tripletmas resume {out}\n"
    assert call("resume", out)[0] == 0
    for name in ("weights/task02.safetensors", "importance/task02.safetensors", "scores.json"):
        assert (out / name).read_bytes() == (trained / "mas" / name).read_bytes()


def test_ctrl_c_elsewhere_is_quiet(call, runs, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tripletmas.runs.catalog.build_data", interrupt)
        assert call("train", "--out", tmp_path / "new", *SMALL) == (130, "", "\ninterrupted\n")
    importlib.import_module("tripletmas.report.folder")  # first imported now, it would keep what is put there
    monkeypatch.setattr("tripletmas.report.page.write_report", interrupt)
    assert call("report", runs / "mas") == (130, "", "\ninterrupted\n")


@pytest.mark.slow
def test_resume_takes_all_runs_of_a_folder_of_seeds(call, tmp_path, trained, monkeypatch):
    out = tmp_path / "seeds"
    real = task_training._train_epoch
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=4)  # the three tasks of the first seed, and one of the second
        assert call("train", "--out", out, "--seeds", "0,1", "--report", "false", *SMALL)[0] == 130
        patch.setattr("tripletmas.report.page.write_report", lambda path, **_: f"{path}/report.html")
        patch.setattr(task_training, "_train_epoch", real)
        status, text, _ = call("resume", out)
    assert status == 0
    assert text.count("report: ") == 2
    for seed in (0, 1):
        scores = f"seeds/seed{seed}/scores.json"
        assert (tmp_path / scores).read_bytes() == (trained / scores).read_bytes()


REFUSED_RUNS = [
    ("resume .", r"is no run directory \(it has no config.yaml: train --out writes it\)"),
    ("evaluate mas --task 9", r"no task '9'; there are 0 \(0,1\), 1 \(2,3\)"),
    ("evaluate mas --task 1 --after 0", "no task '1'"),
    ("evaluate mas --after 3", "no model after task 3"),
    ("evaluate mas --gallery stale,fresch", r"unknown gallery 'fresch' \(did you mean 'fresh'"),
    ("evaluate mas --gallery stale --data digits --data.tasks 2", "leave --data out"),
    ("evaluate mas --data folders", r"unknown data 'folders' \(did you mean 'folder'\?\)"),
    ("compare none", "none does not exist"),
    ("compare", "the following arguments are required: runs; see: tripletmas compare --help"),
    ("compare seeds --seeds 0,7", "no run of seed 7"),
    ("compare seeds --seeds one", "--seeds must be whole numbers"),
    ("report none", "none does not exist"),
    ("importance finetune --images .", "the strategy 'finetune' protects no weights"),
    ("importance mas --images none", "no such folder or zip archive: none"),
    ("importance mas --images . --weight 0", "weight must be > 0"),
    ("importance mas --images . --weight -1", "weight must be > 0"),
    ("importance mas --images . --weight 1e300", "weight must be > 0 and at most 1e[+]06"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED_RUNS, ids=[line for line, _ in REFUSED_RUNS])
def test_what_a_run_cannot_be_asked(line, message, call, trained, monkeypatch):
    monkeypatch.chdir(trained)
    failed(call(*line.split()), message)


def test_resume_after_damage_names_the_file(call, runs):
    (folder,) = (runs / "mas" / "checkpoint").iterdir()
    (folder / "model.safetensors").write_bytes(b"cut")
    failed(call("resume", runs / "mas"), r"model\.safetensors cannot be read")


@pytest.fixture
def task_folders(write_images, tmp_path):
    """Writes `<task>/<class>/<image>`, two classes a task; gives the folder and the options for it."""
    root = tmp_path / "images"

    def add(*tasks: str) -> Path:
        for task in tasks:
            for number, name in enumerate("xy"):
                write_images(root / task / name, seed=ord(task[0]) + 100 * number)
        return root

    options = ["--data", "folder", "--data.root", root, "--data.size", "8", "--data.channels", "1"]
    model = ["--model", "mlp", "--model.hidden", "[16]", "--training.epochs", "2", "--report", "false"]
    return add, [*options, *model]


@pytest.mark.slow
def test_a_new_task_folder_is_learned_by_resume(call, task_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("tripletmas.report.page.write_report", lambda path: path)
    add, options = task_folders
    add("b", "c")
    out = tmp_path / "run"
    assert call("train", "--out", out, *options)[0] == 0
    before = (out / "metrics.jsonl").read_text()
    kept = (out / "weights" / "task01.safetensors").read_bytes()
    add("d")
    assert call("resume", out)[0] == 0
    after = (out / "metrics.jsonl").read_text()
    assert after.startswith(before)
    added = [json.loads(line) for line in after[len(before) :].splitlines()]
    assert [(record["kind"], record["task"], record.get("name")) for record in added] == [
        ("ahead", 2, None),
        ("epoch", 2, "d"),
        ("epoch", 2, "d"),
        ("task", 2, "d"),
    ]
    assert (out / "weights" / "task01.safetensors").read_bytes() == kept
    # what is held out of the earlier tasks is what was held out before: a run over all three from the start is equal
    assert call("train", "--out", tmp_path / "whole", *options)[0] == 0
    for name in ("weights/task02.safetensors", "importance/task02.safetensors", "scores.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


FIRST = "task 0 of the run in .* was 'b', but the data now give 'a'"  # its classes would take over the earlier labels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("first", f"{FIRST}: tasks may be added at the end, where new ones come if their names sort last"),
        # more images of a class draw other queries: what was a query would be trained on
        ("more", "the data of task 'b' have changed since the run"),
        ("gone", "task 1 .* was 'c', but the data now give no such task"),
    ],
)
def test_other_data_of_earlier_tasks_are_refused(change, message, call, task_folders, tmp_path):
    """Also as stored galleries: these belong to other queries. Nothing is changed then."""
    add, options = task_folders
    root, out = add("b", "c"), tmp_path / "run"
    assert call("train", "--out", out, *options)[0] == 0
    assert call("evaluate", out, "--gallery", "stale")[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    if change == "first":
        add("a")
    elif change == "more":
        shutil.copy(next(root.glob("b/*/*.png")), next(root.glob("b/*")) / "another.png")
        add("d")
    else:
        shutil.rmtree(root / "c")
    failed(call("resume", out), message)
    if change == "first":
        failed(call("evaluate", out, "--gallery", "stale"), FIRST)
        failed(call("evaluate", out, "--compatibility"), FIRST)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


# --- evaluate


def test_evaluate_gives_the_scores_of_training(call, runs, tmp_path):
    for after in (None, 1):
        choice = [] if after is None else ["--after", after]
        status, text, _ = call("evaluate", runs / "mas", "--json", tmp_path / "scores.json", *choice)
        assert status == 0
        row = 2 if after is None else after
        recorded = json.loads((runs / "mas" / "scores.json").read_text())["matrices"]
        found = json.loads((tmp_path / "scores.json").read_text())
        assert found["after"] == row
        assert found["tasks"] == ["0,1", "2,3", "4,5,6,7,8,9"][: row + 1]
        for gallery in ("seen", "task"):
            for metric, matrix in recorded[gallery].items():
                assert found[gallery][metric] == pytest.approx(matrix[row][: row + 1])
        assert f"model after task {row} ({found['tasks'][-1]}): the gallery of all tasks" in " ".join(text.split())
        assert f"{recorded['seen']['recall@1'][row][0]:.3f}" in text
        assert "mean" in text


def test_evaluate_one_task_by_number_and_by_name(call, runs, tmp_path):
    _, by_number, _ = call("evaluate", runs / "mas", "--task", "1", "--json", tmp_path / "one.json")
    _, by_name, _ = call("evaluate", runs / "mas", "--task", "2,3")
    assert by_number == by_name
    assert "mean" not in by_number
    recorded = json.loads((runs / "mas" / "scores.json").read_text())["matrices"]
    found = json.loads((tmp_path / "one.json").read_text())
    for gallery in ("seen", "task"):  # one row, but searched in the gallery of all tasks nevertheless
        assert found[gallery]["mrr"] == [pytest.approx(recorded[gallery]["mrr"][2][1])]


@pytest.mark.slow
def test_evaluate_galleries(call, runs, tmp_path):
    file = tmp_path / "scores.json"
    names = ["fresh", "stale", "compensated", "sdc", "linear", "mlp", "procrustes", "shrunk", "auto", "query"]
    status, text, _ = call("evaluate", runs / "mas", "--gallery", ",".join(names), "--compatibility", "--json", file)
    assert status == 0
    found = json.loads(file.read_text())["galleries"]
    assert list(found) == names
    assert found["compensated"] == found["linear"]
    matrices = json.loads((runs / "mas" / "scores.json").read_text())["matrices"]
    for name, gallery in (("fresh", "seen"), ("stale", "seen_stale"), ("compensated", "seen_compensated")):
        last = matrices[gallery]["recall@1"][-1]
        assert found[name]["seen recall@1"] == pytest.approx(sum(last) / len(last))
    content = json.loads(file.read_text())
    assert found["query"]["seen recall@1"] == pytest.approx(sum(content["seen_query"]["recall@1"]) / 3)
    assert 0 <= found["query"]["negative"] <= 1
    assert all(name in text for name in (*names, "average compatibility", "negative flips", "map chosen when each"))
    chosen = re.findall(r"^ *(?:2,3|4,5,6,7,8,9) +(\w+) +\d+ +(-?0\.\d+) ", text, re.MULTILINE)
    assert len(chosen) == 2  # the maps of the second and the third task, and how near stored vectors are without
    maps = {name for name, _ in chosen}
    if len(maps) == 1 and maps <= {*names}:
        assert found["auto"] == found[maps.pop()]
    kept = json.loads((runs / "mas" / "compatibility.json").read_text())["matrix"]
    assert [sum(value is not None for value in row) for row in kept] == list(range(1, len(kept) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["finetune", "gram"])
def test_images_of_ones_own_join_the_fit(strategy, call, write_images, tmp_path, monkeypatch, undrawn):
    """An interrupted run that goes on ends with the same pairs and records as one that was not.

    Under a budget of a thousandth the layers say that old vectors stay where they are, whatever new images do.
    """
    own = ["--gallery.images", write_images(tmp_path / "own"), "--gallery.compensate", "auto", *SMALL]
    monkeypatch.setattr(drift, "_STEPS", 5)
    budget = ("--strategy.budget", "0.001") if strategy == "gram" else ()
    train = ("train", "--strategy", strategy, *budget, "--report", "false", *own)
    assert call(*train, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        assert call(*train, "--out", tmp_path / "stopped")[0] != 0
    assert call("resume", tmp_path / "stopped")[0] == 0
    whole, stopped = (RunDirectory(tmp_path / name) for name in ("whole", "stopped"))
    for number in (1, 2):
        one, other = whole.galleries.read(number), stopped.galleries.read(number)
        assert all(torch.equal(one[name], other[name]) for name in one)
        task = load_trained(whole, number)[0].stream[number]
        assert len(one["before"]) == len(task.train) + 6
    chosen = [[record.get("compensated_by") for record in run.records("task")] for run in (whole, stopped)]
    assert chosen[0] == chosen[1]
    refused = [each.get("refused", []) for each in chosen[0][1:]]
    assert any(refused) == (strategy == "gram")
    assert all(each["map"] not in each.get("refused", []) for each in chosen[0][1:])
    shutil.rmtree(tmp_path / "own")
    assert call("evaluate", tmp_path / "whole", "--gallery", "auto")[0] == 0


def test_a_run_whose_own_images_are_not_there_is_not_begun(call, tmp_path):
    result = call("train", "--out", tmp_path / "run", "--gallery.images", tmp_path / "none", *SMALL)
    failed(result, "gallery.images: no such folder or zip archive: .*none")
    assert not (tmp_path / "run").exists()


def test_evaluate_on_other_data(call, runs, write_images, tmp_path):
    for number, name in enumerate("ab"):
        write_images(tmp_path / "images" / name, seed=number)
    other = ["--data", "folder", "--data.root", tmp_path / "images", "--data.tasks=1", "--data.channels", "1"]
    status, text, _ = call("evaluate", runs / "mas", *other, "--data.size", "8")
    assert status == 0
    assert "a,b" in text
    failed(
        call("evaluate", runs / "mas", *other, "--data.size", "16"),
        r"takes samples of shape \(1, 8, 8\), the data have \(1, 16, 16\): set --data.size or --data.channels",
    )


def test_evaluate_writes_null_where_nothing_can_be_found(call, runs, write_images, tmp_path):
    """One query for each class has no other item of its class to find."""
    for number, name in enumerate("ab"):
        write_images(tmp_path / "images" / "train" / name, seed=number)
        write_images(tmp_path / "images" / "test" / name, seed=number, count=1)
    other = ["--data=folder", f"--data.root={tmp_path / 'images'}", "--data.size=8", "--data.channels=1"]
    status, text, _ = call("evaluate", runs / "mas", *other, "--data.tasks=1", "--json", tmp_path / "scores.json")
    assert status == 0
    assert "2 queries have no other item of their class in the gallery and are not counted" in text

    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    found = json.loads((tmp_path / "scores.json").read_text(), parse_constant=refuse)
    assert found["seen"]["recall@1"] == [None]


def test_evaluate_of_a_run_that_has_not_come_far(call, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=0)
        assert call("train", "--out", tmp_path / "run", *SMALL)[0] == 130
    failed(call("evaluate", tmp_path / "run"), "no task is done yet; go on with: tripletmas resume")


# --- compare and report


@pytest.mark.slow
def test_compare_prints_a_table_and_writes_a_page(call, runs):
    status, text, _ = call("compare", runs / "finetune", runs / "mas")
    assert status == 0
    assert "finetune" in text
    assert "mas" in text
    page = Path(text.rpartition("page: ")[2].strip())
    assert page.parent == runs / "comparison"
    assert page.stat().st_size > 10_000
    shutil.rmtree(runs / "comparison")
    status, text, _ = call("compare", runs / "finetune", runs / "mas", "--markdown")
    assert status == 0
    assert re.search(r"^\| *finetune *\| *(\*\*)?0\.\d{3}", text, re.MULTILINE)
    assert not (runs / "comparison").exists()


def test_compare_writes_where_it_is_told(call, runs, tmp_path, monkeypatch):
    asked = []

    def write_comparison(directories, out, *, seeds=None, svg=False):
        asked.append((directories, out, seeds, svg))
        return out / "page.html"

    monkeypatch.setattr("tripletmas.report.page.write_comparison", write_comparison)
    status, text, _ = call("compare", runs / "seeds", "--out", tmp_path / "elsewhere", "--seeds", "0,1")
    assert status == 0
    assert asked == [([runs / "seeds"], tmp_path / "elsewhere", [0, 1], False)]
    assert text.endswith(f"page: {tmp_path / 'elsewhere' / 'page.html'}\n")


@pytest.mark.slow
def test_compare_of_what_cannot_be_compared(call, runs, tmp_path):
    other = ["--data.tasks", "2", "--model.hidden", "[8]", "--training.epochs", "1", "--report", "false"]
    assert call("train", "--out", tmp_path / "other", *other)[0] == 0
    failed(call("compare", runs / "mas", tmp_path / "other"), "data.tasks")


@pytest.mark.slow
def test_report_is_rebuilt_from_the_run_alone(call, runs):
    assert not (runs / "mas" / "report").exists()
    status, text, _ = call("report", runs / "mas")
    assert status == 0
    assert text == f"report: {runs / 'mas' / 'report' / 'report.html'}\n"
    assert (runs / "mas" / "report" / "report.html").exists()


# --- importance


@pytest.fixture
def photos(write_images, tmp_path) -> Path:
    write_images(tmp_path / "photos" / "here" / "deeper", count=5)
    write_images(tmp_path / "photos" / "there", count=4, seed=1)
    return tmp_path / "photos"


def checkpoint_of(run: Path):
    found = RunDirectory.open(run).load_checkpoint()
    assert found is not None
    return found


def importance_of(state) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("importance/"): value
        for name, value in state.strategy.items()
        if name.startswith("importance/")
    }


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("invert", [False, True])
def test_importance_is_added_to_the_protection(weight, invert, call, runs, photos):
    """By definition: the mean over the images of |d ||F||^2 / d theta|, here relative to the mean squared length."""
    before = checkpoint_of(runs / "mas")
    options = ["--weight", weight, *(["--invert"] if invert else [])]
    status, text, _ = call("importance", runs / "mas", "--images", photos, *options)
    assert status == 0
    assert "importance of 9 images added" in text
    assert "hidden1" in text
    after = checkpoint_of(runs / "mas")
    assert all(torch.equal(value, after.model[name]) for name, value in before.model.items())

    model = mlp((1, 8, 8), dim=8, hidden=(16,))
    load_state(model, after.model)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    lengths = 0.0
    for path in sorted(photos.rglob("*.png")):
        image = pil_to_tensor(Image.open(path)).float() / 255
        model.zero_grad()
        length = model((1 - image if invert else image).unsqueeze(0)).square().sum()
        length.backward()
        lengths += length.item()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            sums[name] += parameter.grad.abs()
    old, new = importance_of(before), importance_of(after)
    for name, total in sums.items():
        torch.testing.assert_close(new[name], old[name] + weight * total / lengths, rtol=1e-4, atol=1e-6)
        assert torch.equal(after.strategy[f"reference/{name}"], before.strategy[f"reference/{name}"])
    saved = RunDirectory.open(runs / "mas").read_tensors("importance/task02.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in new.items())


@pytest.mark.slow
def test_importance_of_images_that_were_added_before_is_not_added_again(call, runs, photos, tmp_path):
    assert call("importance", runs / "mas", "--images", photos)[0] == 0
    once = checkpoint_of(runs / "mas")
    copies = Path(shutil.copytree(photos, tmp_path / "copies"))
    status, text, _ = call("importance", runs / "mas", "--images", copies)
    assert (status, text) == (0, f"{runs / 'mas'}: 9 of 9 images were added before: --again counts them\n")
    after = importance_of(checkpoint_of(runs / "mas"))
    assert all(torch.equal(after[name], value) for name, value in importance_of(once).items())
    Image.new("L", (8, 8), 99).save(copies / "new.png")
    status, text, _ = call("importance", runs / "mas", "--images", copies)
    assert "9 of 10 images were added before" in text
    assert "importance of 1 image added" in text
    records = RunDirectory.open(runs / "mas").records("importance")
    assert [record["samples"] for record in records] == [9, 1]


@pytest.mark.slow
def test_importance_is_taken_back_to_the_bit(call, runs, photos, tmp_path):
    """The last addition alone, and not twice; afterwards its images count as new."""
    run = runs / "mas"
    failed(call("importance", run, "--undo"), "there is nothing to take back")
    assert call("importance", run, "--images", photos)[0] == 0
    once, file = checkpoint_of(run), run / "importance" / "task02.safetensors"
    kept = {name: value.clone() for name, value in RunDirectory.open(run).importance().read(2).items()}
    more = tmp_path / "more"
    more.mkdir()
    Image.new("L", (8, 8), 99).save(more / "new.png")
    assert call("importance", run, "--images", more, "--weight", "0.3")[0] == 0
    assert not all(torch.equal(value, once.strategy[name]) for name, value in checkpoint_of(run).strategy.items())
    assert len(list(file.parent.glob("before*"))) == 1
    status, text, _ = call("importance", run, "--undo")
    assert (status, f"importance of 1 image of {more} (weight 0.3) taken back" in text) == (0, True)
    after = checkpoint_of(run)
    assert after.strategy.keys() == once.strategy.keys()
    assert all(torch.equal(value, once.strategy[name]) for name, value in after.strategy.items())
    assert all(torch.equal(value, kept[name]) for name, value in RunDirectory.open(run).importance().read(2).items())
    assert not list(file.parent.glob("before*"))
    failed(
        call("importance", run, "--undo"), rf"9 images of {photos} \(weight 1\) cannot be taken back: a run keeps what"
    )
    assert "importance of 1 image added" in call("importance", run, "--images", more)[1]
    assert call("doctor", run)[0] == 0


@pytest.mark.slow
def test_importance_that_a_task_was_learned_with_stays(call, tmp_path, photos):
    out = tmp_path / "run"
    options = ["--report", "false", *SMALL]
    assert call("train", "--out", out, *options)[0] == 0
    assert call("importance", out, "--images", photos)[0] == 0
    run, state = RunDirectory.open(out), checkpoint_of(out)
    run.append({"kind": "task", "task": 3, "name": "later"})
    run.save_checkpoint(replace(state, task=4))
    run.weights.write(3, run.weights.read(2))
    failed(call("importance", out, "--undo"), "were added before the last task was learned, which they held: they stay")


def test_importance_wants_images_or_undo(call, runs, photos):
    for options in ([], ["--undo", "--images", photos]):
        failed(call("importance", runs / "mas", *options), "give --images FOLDER, to add what they need, or --undo")


@pytest.mark.slow
def test_importance_holds_when_the_run_goes_on(call, runs, photos, monkeypatch):
    monkeypatch.setattr("tripletmas.report.page.write_report", lambda path: path)
    assert call("importance", runs / "mas", "--images", photos)[0] == 0
    with open(runs / "mas" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "importance", "samp')  # of a measurement that was killed
    assert call("importance", runs / "mas", "--images", photos, "--weight", "2", "--again")[0] == 0
    twice = importance_of(checkpoint_of(runs / "mas"))
    assert call("resume", runs / "mas")[0] == 0
    kept = importance_of(checkpoint_of(runs / "mas"))
    assert all(torch.equal(value, kept[name]) for name, value in twice.items())
    records = RunDirectory.open(runs / "mas").records()
    assert [(r["samples"], r["weight"]) for r in records if r["kind"] == "importance"] == [(9, 1.0), (9, 2.0)]


@pytest.mark.slow
def test_importance_in_the_middle_of_a_task(call, photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=3)
        assert call("train", "--out", tmp_path / "run", *SMALL, "--training.epochs", "2")[0] == 130
    result = call("importance", tmp_path / "run", "--images", photos)
    failed(result, "stopped in the middle of a task; first: tripletmas resume")


@pytest.mark.slow
def test_importance_names_an_unreadable_image(call, runs, photos, caplog):
    (photos / "there" / "broken.png").write_bytes(b"no image")
    before = checkpoint_of(runs / "mas")
    failed(call("importance", runs / "mas", "--images", photos), r"there/broken\.png cannot be read: not an image")
    after = checkpoint_of(runs / "mas")
    assert all(torch.equal(value, after.strategy[name]) for name, value in before.strategy.items())
    status, text, _ = call("importance", runs / "mas", "--images", photos, "--skip-unreadable")
    assert status == 0
    assert "importance of 9 images added" in text
    assert "skipped 1 of 10 images" in caplog.text
    shutil.rmtree(photos)
    photos.mkdir()
    (photos / "broken.png").write_bytes(b"no image")
    failed(call("importance", runs / "mas", "--images", photos, "--skip-unreadable"), "no image in it can be read")


# --- rivals, recognition, searches, sweeps


@pytest.mark.slow
def test_a_combination_has_the_options_of_its_parts(call, tmp_path):
    out = tmp_path / "both"
    options = ("--strategy", "mas+distill", "--strategy.mas.strength", "2", "--strategy.distill.distance", "squared")
    assert call("train", "--out", out, *options, "--report", "false", *SMALL)[0] == 0
    config = RunDirectory.open(out).config()["strategy"]
    assert (config["name"], config["mas"]["strength"], config["distill"]["distance"]) == ("mas+distill", 2.0, "squared")
    assert call("train", "--config", out / "config.yaml", "--out", out, "--report", "false")[0] == 0  # it is done


@pytest.mark.slow
def test_recognition_from_training_to_the_report(call, tmp_path):
    out = tmp_path / "recognition"
    status, text, _ = call("train", "--out", out, "--objective", "recognition", *SMALL)
    assert status == 0
    assert "task-incremental accuracy" in text
    page = (out / "report" / "report.html").read_text(encoding="utf-8")
    assert "Class-incremental accuracy" in page
    assert "heads" in page
    scores = tmp_path / "scores.json"
    assert call("evaluate", out, "--json", scores)[0] == 0
    found = json.loads(scores.read_text())
    recorded = RunDirectory.open(out).records()[-1]["scores"]
    for gallery, metric in (("task", "accuracy"), ("seen", "accuracy_fresh"), ("seen", "accuracy_ridge")):
        assert found[gallery][metric] == recorded[gallery][metric]
    assert call("evaluate", out, "--after", "0", "--json", scores)[0] == 0
    assert len(json.loads(scores.read_text())["task"]["accuracy"]) == 1


@pytest.mark.slow
def test_runs_of_different_objectives_cannot_be_compared(call, runs, tmp_path):
    out = tmp_path / "recognition"
    assert call("train", "--out", out, "--objective", "recognition", "--report", "false", *SMALL)[0] == 0
    failed(call("compare", out, runs / "mas"), "objective")


@pytest.mark.slow
def test_a_search_shows_its_trials(call, tmp_path):
    out = tmp_path / "search"
    status, text, _ = call("search", "--out", out, "--search.start", "4", *SMALL)
    assert status == 0
    assert "finetune" in text
    assert RunDirectory.open(out).config()["strategy"]["strength"] == "auto"
    trials = [record for record in RunDirectory.open(out).records() if record["kind"] == "search"]
    assert [record["trials"][0]["strength"] for record in trials] == [4.0, 4.0]
    assert (out / "report" / "search.png").exists()
    assert call("resume", out)[0] == 0


@pytest.mark.slow
def test_an_auto_strength_starts_at_32_times_the_default(call, tmp_path):
    out = tmp_path / "auto"
    options = ("--strategy", "mas+distill", "--strategy.mas.strength", "auto")
    assert call("train", "--out", out, *options, "--report", "false", *SMALL)[0] == 0
    trials = [record for record in RunDirectory.open(out).records() if record["kind"] == "search"]
    assert trials[0]["trials"][0]["strength"] == 32 * 0.3


@pytest.mark.slow
def test_a_sweep_makes_a_run_for_each_value(call, tmp_path):
    sweep = ("--sweep", "strategy.strength=0.1,1", "--sweep", "training.lr=0.001,0.01")
    status, text, complaint = call("train", "--out", tmp_path / "sweep", *sweep, "--report", "false", *SMALL)
    assert status == 0
    folders = sorted(path.name for path in (tmp_path / "sweep").iterdir())
    assert folders == ["strength=0.1,lr=0.001", "strength=0.1,lr=0.01", "strength=1,lr=0.001", "strength=1,lr=0.01"]
    assert RunDirectory.open(tmp_path / "sweep" / folders[3]).config()["training"]["lr"] == 0.01
    assert "on the queries themselves" in complaint
    assert "mas, strength=1.0, lr=0.01" in text


@pytest.mark.slow
def test_a_sweep_on_validation_data_with_seeds(call, tmp_path):
    options = ("--sweep", "strategy.strength=0.1,1", "--data.validation", "true", "--seeds", "0,1", "--report", "false")
    status, _, complaint = call("train", "--out", tmp_path / "sweep", *options, *SMALL)
    assert status == 0
    assert "on the queries themselves" not in complaint
    assert (tmp_path / "sweep" / "strength=1" / "seed1" / "scores.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "ewc", "--objective", "recognition"], "does not measure importance on unlabelled data"),
        (["--strategy", "si"], "SI does not measure importance on unlabelled data"),
        (["--strategy", "l2"], "L2 does not measure importance on unlabelled data"),
        (
            ["--strategy.batch_gradients", "8"],
            "this importance depends on batches, or on the facts of images: use mas with its defaults",
        ),
        (["--strategy", "mas+l2"], "importance is measured for one protecting strategy, not for mas, l2"),
    ],
)
def test_importance_of_strategies_that_have_none_of_unlabelled_data(call, tmp_path, photos, options, message):
    out = tmp_path / "out"
    assert call("train", "--out", out, *options, "--report", "false", *SMALL)[0] == 0
    failed(call("importance", out, "--images", photos), message)


@pytest.mark.slow
def test_importance_of_logits_is_that_of_the_last_head(call, tmp_path, photos, monkeypatch):
    out = tmp_path / "out"
    options = ("--objective", "recognition", "--strategy.output", "logits", "--report", "false")
    assert call("train", "--out", out, *options, *SMALL)[0] == 0
    heads = []
    real = Recognition.logits
    monkeypatch.setattr(Recognition, "logits", lambda self, x, head: heads.append(head) or real(self, x, head))
    assert call("importance", out, "--images", photos)[0] == 0
    assert set(heads) == {2}


@pytest.mark.slow
def test_importance_is_measured_on_the_weights_that_are_trained(call, tmp_path, photos, monkeypatch):
    """Under imm+mas another model is deployed, and saved as the run's model."""
    out = tmp_path / "out"
    assert call("train", "--out", out, "--strategy", "imm+mas", "--report", "false", *SMALL)[0] == 0
    checkpoint = RunDirectory.open(out).load_checkpoint()
    assert checkpoint is not None
    seen = []
    real = MAS.add_unlabelled

    def noted(self, batches, *, weight=1.0):
        seen.append(state_of(self.prepared().model))
        return real(self, batches, weight=weight)

    monkeypatch.setattr(MAS, "add_unlabelled", noted)
    assert call("importance", out, "--images", photos)[0] == 0
    assert all(torch.equal(value, seen[0][name]) for name, value in checkpoint.model.items())
    deployed = RunDirectory.open(out).read_tensors("weights/task02.safetensors")
    assert any(not torch.equal(value, seen[0][name]) for name, value in deployed.items())


@pytest.mark.filterwarnings("ignore:rate . strength . importance reaches")
@pytest.mark.slow
def test_a_sweep_outlives_a_value_that_diverges(call, tmp_path):
    sgd = ("--training.optimizer", "sgd", "--training.lr", "0.1", "--training.epochs", "3")
    options = ("--strategy", "l2", "--sweep", "strategy.strength=1e9,0.01", "--report", "false")
    status, text, complaint = call("train", "--out", tmp_path / "sweep", *options, *SMALL, *sgd)
    assert status == 0
    assert re.search(r"strength=1e9 failed: (the loss|the penalty|weights)", complaint)
    assert "l2" in text
    assert (tmp_path / "sweep" / "strength=0.01" / "scores.json").exists()


def test_a_run_of_an_older_version_is_gone_on_with(call, runs, monkeypatch):
    """It lacks the options that were not there yet; they had what is the default now."""
    monkeypatch.setattr("tripletmas.report.page.write_report", lambda path: path)
    path = earlier_version(runs / "mas") / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for part, option in (
        ("data", "validation"),
        ("data", "per_class"),
        ("training", "sampler"),
        ("strategy", "output"),
    ):
        del config[part][option]
    del config["objective"]
    path.write_text(yaml.safe_dump(config))
    assert call("resume", runs / "mas")[0] == 0
    assert "validation" not in path.read_text()


@pytest.mark.parametrize(("alone", "executed"), [("", "[False, True]"), ("'--version'", "[True, True]")])
def test_what_a_loss_has_no_need_of_is_imported_late_in_a_process_of_a_command(alone, executed):
    """It is whole once something of it is asked for; who calls `main` from a program has imports as they are."""
    program = f"""
import sys
from tripletmas.cli.main import main
sys.argv[1:] = ["completion", "bash"]
main({f"[{alone}]" if alone else ""})
from pytorch_metric_learning import losses
before = "scipy.stats.distributions" in sys.modules
from scipy.stats import rankdata
assert list(rankdata([3, 1, 2])) == [3, 1, 2]
print([before, "scipy.stats.distributions" in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == executed
