"""The script of the table of text: from nothing to a table, on tiny texts, with a tiny model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import best_strengths as best
import pytest
import reproduce_text as script
from script_calls import called
from tiny_texts import rows_of, write_csv

call = partial(called, script)


@pytest.mark.slow
def test_from_nothing_to_a_table(tmp_path, tiny_encoder, monkeypatch, capsys):
    for name, first in (("train", 0), ("test", 12)):
        rows = [{"text": each["question"], "category": each["topic"]} for each in rows_of(first + 6)]
        write_csv(tmp_path / f"{name}.csv", [row for number, row in enumerate(rows) if number % (first + 6) >= first])
    made = script.setting

    def small(model, seeds):
        of = made(model, seeds)
        training = {**of.config["training"], "epochs": 1, "batch_size": 8}
        return replace(of, config={**of.config, "data": {**of.config["data"], "tasks": 2}, "training": training})

    monkeypatch.setattr(script, "setting", small)
    arguments = ["--data", str(tmp_path), "--model", str(tiny_encoder), "--out", str(tmp_path / "out"), "--seeds", "0"]
    some = [*arguments, "--methods", "pretrained;finetune;gram"]
    assert call(monkeypatch, capsys, "--table", *some).count("missing") == 3
    lines = [line.split(" | ") for line in call(monkeypatch, capsys, *some).splitlines() if line.startswith("| ")]
    assert [line[0].removeprefix("| ") for line in lines] == ["strategy", "---", "pretrained", "finetune", "gram"]
    for line in lines[2:]:
        assert line[2] == "1"
        assert all(0 <= float(cell) <= 1 for cell in line[3:7])
    before = sorted((tmp_path / "out").iterdir())
    call(monkeypatch, capsys, *some)
    assert sorted((tmp_path / "out").iterdir()) == before  # what is done is not repeated


def test_the_paragraphs_are_whole_and_of_one_topic():
    texts, topics = script.paragraphs()
    assert len(set(texts)) == len(texts) == len(topics) > 100
    assert all(text[0].isupper() and text.endswith(".") and 60 < len(text) < 600 for text in texts)
    assert set(topics) <= set(script.TOPICS)
    assert all(2 <= topics.count(topic) <= 12 for topic in set(topics))


def test_a_row_is_the_same_wherever_the_model_lies():
    paths = [best._without_places({"name": f"sentence-transformers:{folder}/model"}) for folder in ("/a", "/b/c")]
    assert paths[0] == paths[1]
