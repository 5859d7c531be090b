"""Pairs of a text and its answer: held out by answer, searched among all answers of the task."""

from __future__ import annotations

import pytest
from tiny_texts import write_csv

from tripletmas.data.folders import csv
from tripletmas.data.tasks import fingerprint, make_stream
from tripletmas.data.text_tables import jsonl

ROWS = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(20)]


def read(folder, rows=ROWS, **options):
    path = write_csv(folder / "pairs.csv", rows)
    return csv(path=str(path), text="question", positive="answer", **options)


def test_a_class_is_an_answer_and_its_questions(tmp_path):
    rows = [*ROWS[:3], {"question": "again", "answer": "a1"}]
    source = read(tmp_path, rows)
    assert source.train.texts == ("a0", "q0", "a1", "q1", "again", "a2", "q2")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert source.gallery is not None
    assert source.gallery.texts == ("a0", "a1", "a2")
    assert source.train.class_names == ("1", "2", "3")


def test_queries_are_held_out_with_their_answers(tmp_path):
    stream, _ = make_stream(read(tmp_path), tasks=2)
    for number, task in enumerate(stream):
        own = range(10 * number, 10 * number + 10)
        assert task.gallery is not None
        assert task.gallery.texts == tuple(f"a{each}" for each in own)
        assert task.query.texts
        assert task.train.texts
        asked, learned = ({text[1:] for text in part.texts or ()} for part in (task.query, task.train))
        assert not asked & learned  # neither the question nor its answer is learned
        assert asked | learned == {str(each) for each in own}
        assert all(text.startswith("q") for text in task.query.texts)
        assert len(task.train) == 2 * len(learned)  # each with its answer
        assert set(task.query.labels.tolist()) <= set(task.gallery.labels.tolist())


def test_what_is_drawn_depends_on_the_answer_alone(tmp_path):
    def asked(rows):
        return set(make_stream(read(tmp_path, rows), tasks=1)[0][0].query.texts or ())

    assert asked(ROWS[::-1]) == asked(ROWS)
    assert asked(ROWS[5:]) == asked(ROWS) - {f"q{number}" for number in range(5)}


def test_a_task_of_which_no_pair_is_drawn(tmp_path):
    """The share is of all answers, which are drawn one by one: of two that are not drawn there is no query."""
    asked = {text[1:] for text in make_stream(read(tmp_path), tasks=1)[0][0].query.texts or ()}
    few = [row for row in ROWS if row["answer"][1:] not in asked][:2]
    rows = [{**row, "task": "much"} for row in ROWS if row not in few] + [{**row, "task": "little"} for row in few]
    with pytest.raises(ValueError, match="task 'little' has no queries: none of its 2 answers is asked for: raise te"):
        make_stream(read(tmp_path, rows))


def test_validation_is_held_out_of_what_is_learned(tmp_path):
    source = read(tmp_path)
    (task,), (validated,) = make_stream(source, tasks=1)[0], make_stream(source, tasks=1, validation=True)[0]
    assert set(validated.query.texts or ()) <= set(task.train.texts or ())
    assert not set(validated.query.texts or ()) & set(validated.train.texts or ())
    assert fingerprint(task) != fingerprint(validated)


def test_a_column_split_and_tasks(tmp_path):
    rows = [
        {**row, "split": "test" if number % 4 == 0 else "train", "task": "early" if number < 8 else "late"}
        for number, row in enumerate(ROWS)
    ]
    stream, _ = make_stream(read(tmp_path, rows))
    assert [task.name for task in stream] == ["early", "late"]
    assert stream[0].query.texts == ("q0", "q4")
    assert stream[0].gallery is not None
    assert stream[0].gallery.texts == tuple(f"a{number}" for number in range(8))


def test_json_lines_have_pairs_too(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"q": "x", "a": "y"}\n{"q": "u", "a": "v"}\n')
    assert jsonl(path=str(path), text="q", positive="a").train.texts == ("y", "x", "v", "u")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "x", "answer": "x"}], "line 2: a text is its own answer, 'x'"),
        ([{"question": "x", "answer": ""}], "line 2: the text in the column 'answer' is empty"),
        (
            [{"question": each, "answer": "y", "split": split} for each, split in (("a", "train"), ("b", "test"))],
            r"its answer comes again, and is for test and train: an answer is learned \(train\) or asked for \(test\)",
        ),
        ([{"question": "x", "answer": "y", "split": "gallery"}], "pairs are for train or test"),
        ([{"question": "x", "answer": "y", "split": "test"}], "has no pair to learn from"),
    ],
)
def test_what_is_wrong_with_pairs_is_one_sentence(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, rows)


def test_what_pairs_do_not_take(tmp_path):
    with pytest.raises(ValueError, match="per_class is for classes of many samples"):
        make_stream(read(tmp_path), per_class=2)
    with pytest.raises(ValueError, match=r"of 1 pairs (none|all) would be left to learn from"):
        make_stream(read(tmp_path, ROWS[:1]), tasks=1)
    with pytest.raises(ValueError, match="text and positive name one column"):
        csv(path=str(tmp_path / "pairs.csv"), text="answer", positive="answer")
