"""Tables as people's programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tripletmas.data.tables import read_rows

TEXTS = ("a;b, c\td", 'say "so"', "two\nlines")


def rows(path: Path, text: str, needed=("topic", "text"), **given) -> list[dict[str, str]]:
    path.write_bytes(text.encode())
    return [row for _, row in read_rows(str(path), needed, ("task",), **given)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\r\n\n"])
def test_columns_are_parted_by_what_the_header_is_parted_by(tmp_path: Path, separator: str, start: str):
    """Whatever else is in the cells."""
    header = separator.join(("task", " topic", "text"))
    quoted = ['"{}"'.format(text.replace('"', '""')) for text in TEXTS]
    lines = [separator.join((f"{number}", "x", text)) for number, text in enumerate(quoted)]
    found = rows(tmp_path / "a.csv", f"{start}{header}\r\n" + "\r\n".join(lines), texts=("text",))
    assert found == [{"task": f"{number}", "topic": "x", "text": text} for number, text in enumerate(TEXTS)]


def test_a_header_of_one_column_is_no_matter_of_separators(tmp_path: Path):
    assert rows(tmp_path / "a.csv", "text\na;b\n", ("text",)) == [{"text": "a;b"}]


def test_commas_go_before_others(tmp_path: Path):
    """`b;text` is the name of a column here."""
    assert rows(tmp_path / "a.csv", "topic,text,b;text\nx,y,z\n") == [{"topic": "x", "text": "y"}]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("topic|words", "x|y"), r"line 1: no column 'text' \(there are topic, words\)"),
        (("topic|text", "x|y|z"), "line 2: more cells than columns; quote a cell that holds a comma"),
        (("topic|text", "x|y", "x"), "line 3: fewer cells than columns"),
        (("topic|text", 'x|"y" z'), "line 2: a quoted cell goes on after its quote"),
        (("topic|text", 'x|"y'), "line 2: a quote is opened here, and never closed"),
        (("topic|topic|text", "x|y|z"), "line 1: the column 'topic' is there twice"),
    ],
)
def test_what_is_wrong_is_named_whatever_parts_the_columns(tmp_path: Path, separator: str, lines, message: str):
    with pytest.raises(ValueError, match=message):
        rows(tmp_path / "a.csv", "\n".join(lines).replace("|", separator))


def test_another_encoding_is_refused_with_what_to_do(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes("topic,text\nx,Rückgabe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv is not UTF-8 text \(.*\): save it as UTF-8"):
        list(read_rows(str(tmp_path / "a.csv"), ("topic", "text"), ()))
