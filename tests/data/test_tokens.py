"""Texts: their readers, and what a tokenizer makes of them."""

from __future__ import annotations

import pytest
import torch
from tiny_texts import rows_of, write_csv

from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.folders import csv
from tripletmas.data.tasks import fingerprint, make_stream
from tripletmas.data.text_tables import jsonl, texts
from tripletmas.data.tokens import Texts, Tokenizer


def letters(max_length: int = 5) -> Tokenizer:
    """A token a letter, its place in the alphabet, between 100 and 101."""

    def encode(found, cut):
        ids = [[ord(letter) - 96 for letter in text] for text in found]
        return [[100, *(each[: max_length - 2] if cut else each), 101] for each in ids]

    return Tokenizer(encode, max_length, "letters")


def test_a_text_is_its_ids_and_ones():
    found = Texts(["ab", "c"], letters())
    assert found[0].tolist() == [[100, 1, 2, 101], [1, 1, 1, 1]]
    assert found[1].tolist() == [[100, 3, 101], [1, 1, 1]]
    assert found[1].dtype == torch.int64
    assert found.num_cut == 0


def test_long_texts_are_cut_and_counted(caplog):
    found = Texts(["abcdef", "a", "abcd"]).read_by(letters())
    assert found[0].tolist() == [[100, 1, 2, 3, 101], [1] * 5]
    assert found.num_cut == 2  # of 8 and 6 tokens, where 5 are read
    assert "2 of 3 texts are longer than the 5 tokens that the model reads, and are cut" in caplog.text


def test_a_batch_is_as_long_as_its_longest():
    strings = ["ab", "c", "abc"]
    dataset = LabelledDataset(Texts(strings, letters()), torch.tensor([0, 1, 1]), ["x", "y"], texts=strings)
    samples, labels = dataset[[1, 0]]
    assert samples.tolist() == [[[100, 3, 101, 0], [1, 1, 1, 0]], [[100, 1, 2, 101], [1, 1, 1, 1]]]
    assert labels.tolist() == [1, 0]
    assert dataset.sample_shape == ()
    part = concatenate([dataset.of_classes([1]), dataset.of_classes([0])])
    assert part.texts == ("c", "abc", "ab")
    assert next(iter(part.loader(2)))[0].shape == (2, 2, 5)


def test_without_a_tokenizer_nobody_reads_them():
    with pytest.raises(ValueError, match="only a model of texts"):
        Texts(["a"])[0]


def test_a_csv_file_of_texts(tmp_path, caplog):
    path = tmp_path / "faq.csv"
    path.write_text('question,topic,split\n"Where, and\nwhen?",parcel,train\nLost it,card,\nLost it,card,train\n')
    path.write_text(path.read_text().replace("card,\n", "card,train\n"))
    source = csv(path=str(path), text="question", label="topic")
    assert source.train.texts == ("Where, and\nwhen?", "Lost it")
    assert source.train.class_names == ("card", "parcel")
    assert source.train.labels.tolist() == [1, 0]
    assert source.train.paths == (f"{path}, line 2", f"{path}, line 4")
    assert "1 texts repeat one of their class" in caplog.text


def test_a_second_csv_file_has_the_queries(tmp_path, caplog):
    train = write_csv(tmp_path / "train.csv", rows_of(3, classes=["card"]))
    test = write_csv(tmp_path / "test.csv", [{"question": "the my card  lost", "topic": "card"}])
    source = csv(path=str(train), test_path=str(test), text="question", label="topic")
    assert len(source.train) == 3
    assert source.test is not None
    assert source.test.texts == ("the my card  lost",)
    assert "1 queries are learned from, word for word" in caplog.text


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("question,topic\n,card\n", {}, r"faq\.csv, line 2: the text in the column 'question' is empty"),
        ("question,topic\nLost it,\n", {}, r"faq\.csv, line 2: the cell in the column 'topic' is empty"),
        ("question,topic\n", {}, r"faq\.csv lists no texts"),
        ("topic\ncard\n", {}, r"no column 'question'"),
        ("question,topic,path\nLost it,card,a.png\n", {}, "there is a column 'path', as of images"),
        ("question,topic\nLost it,card\n", {"label": "question"}, "text and label name one column"),
        ("question,topic\nLost it,card\n", {"root": "."}, "root and skip_unreadable are for images"),
        (
            "question,topic\nLost it,card\n",
            {"size": 32},
            "size, channels, .* and in_memory are for images",
        ),
        ("question,topic,split\nLost it,card,later\n", {}, "split must be one of train, test, query, gallery"),
        ("question,topic\nLost it,card\0\n", {}, "zero byte"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_one_sentence(tmp_path, content, options, message):
    path = tmp_path / "faq.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        csv(**{"path": str(path), "text": "question", "label": "topic", **options})


@pytest.mark.parametrize("reader", [csv, jsonl])
def test_a_folder_is_no_table(tmp_path, reader):
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder: name a "):
        reader(path=str(tmp_path), text="question")


def test_images_have_no_second_file(tmp_path):
    path = tmp_path / "images.csv"
    path.write_text("path,label\n")
    with pytest.raises(ValueError, match="test_path and positive are for texts"):
        csv(path=str(path), test_path=str(path))


def test_json_lines(tmp_path):
    path = tmp_path / "faq.jsonl"
    path.write_text(
        '{"text": " Lost it ", "label": 7, "more": []}\n\n{"text": "x", "label": "card", "split": "test"}\n'
    )
    source = jsonl(path=str(path))
    assert source.train.texts == ("Lost it",)
    assert source.train.class_names == ("7", "card")
    assert source.test is not None
    assert source.test.paths == (f"{path}, line 3",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "each line must be an object"),
        ('{"text": "x"}', "no key 'label'"),
        ('{"text": null, "label": 1}', "'text' must be a text or a number, got null"),
        ('{"text": "", "label": 1}', "the text in the column 'text' is empty"),
        ("{", "line 1 is no JSON: Expecting"),
    ],
)
def test_what_is_wrong_with_json_lines_is_one_sentence(tmp_path, line, message):
    path = tmp_path / "faq.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        jsonl(path=str(path))


def test_folders_of_one_name_in_several_tasks(tmp_path):
    """As of images: one class, of which each task has texts, with class_from="leaf"; else a class for each."""
    for task, label in (("week1", "card"), ("week1", "loan"), ("week2", "card")):
        (tmp_path / task / label).mkdir(parents=True)
        for number in range(4):
            (tmp_path / task / label / f"{number}.txt").write_text(f"{label} {number} of {task}")
    assert texts(root=str(tmp_path)).train.class_names == ("week1/card", "week1/loan", "week2/card")
    source = texts(root=str(tmp_path), class_from="leaf")
    assert source.train.class_names == ("card", "loan")
    stream, _ = make_stream(source)
    assert [task.train.classes for task in stream] == [(0, 1), (0,)]
    assert [len(task.query) for task in stream] == [4, 2]  # of each class two are held out in each task
    with pytest.raises(ValueError, match="class_from must be path or leaf, got 'last'"):
        texts(root=str(tmp_path), class_from="last")  # pyright: ignore[reportArgumentType]


def test_texts_in_folders(tmp_path, caplog):
    for name, content in (("train/card/a.txt", "lost"), ("train/card/b.txt", "stolen"), ("test/card/c.txt", "pin ")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "train/card/notes.md").write_text("left out")
    source = texts(root=str(tmp_path))
    assert source.train.texts == ("lost", "stolen")
    assert source.test is not None
    assert source.test.texts == ("pin",)
    assert source.test.paths == (str(tmp_path / "test/card/c.txt"),)
    assert "left out 1 files that are no texts (.md)" in caplog.text
    (tmp_path / "train/card/b.txt").write_text("")
    with pytest.raises(ValueError, match=r"b\.txt is empty"):
        texts(root=str(tmp_path))


def test_a_task_is_another_one_with_another_text(tmp_path):
    rows = rows_of(6, classes=["card", "parcel"])
    path = write_csv(tmp_path / "faq.csv", rows)
    options = {"path": str(path), "text": "question", "label": "topic"}
    before = fingerprint(make_stream(csv(**options), tasks=1)[0][0])
    assert fingerprint(make_stream(csv(**options), tasks=1)[0][0]) == before
    write_csv(path, [{**rows[0], "question": "other"}, *rows[1:]])
    assert fingerprint(make_stream(csv(**options), tasks=1)[0][0]) != before


def test_texts_are_not_augmented(tmp_path):
    path = write_csv(tmp_path / "faq.csv", rows_of(6))
    with pytest.raises(ValueError, match="augment='flip' changes images, and these are texts"):
        make_stream(csv(path=str(path), text="question", label="topic"), augment="flip")


def test_a_label_of_several_tasks_is_one_class(tmp_path):
    table = tmp_path / "faq.csv"
    table.write_text("question,topic,task\nA,card,1\nB,card,2\nC,loan,2\n")
    assert csv(path=str(table), text="question", label="topic").train.members == {"1": (0,), "2": (0, 1)}
