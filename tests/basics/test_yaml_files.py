"""YAML of anybody: what is read, and what is refused in one sentence, at once."""

from __future__ import annotations

import pytest

from tripletmas.basics.yaml_files import MOST, read_mapping, unfolds


def doubled(levels: int, *, merged: bool = False) -> str:
    """Each key names the one before ten times: 10^levels values in 20 bytes a level."""
    lines = ["k0: &k0 {a: 1}" if merged else "k0: &k0 [x]"]
    for level in range(levels):
        many = ", ".join([f"*k{level}"] * 10)
        lines.append(f"k{level + 1}: &k{level + 1} " + (f"{{<<: [{many}]}}" if merged else f"[{many}]"))
    return "\n".join(lines)


def test_plain_values_are_read(tmp_path):
    text = "a: {b: [1, 2.5, x, true, null], ü: '2026-11-28'}\nc: &c [1]\nd: *c\ne: ['010', 1e-3, 0, 0x10, 09, a:1]\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    expected = {
        "a": {"b": [1, 2.5, "x", True, None], "ü": "2026-11-28"},
        "c": [1],
        "d": [1],
        "e": ["010", "1e-3", 0, 16, "09", "a:1"],
    }
    assert read_mapping(tmp_path / "a.yaml") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 2026-11-28}", r"has for a\.b datetime\.date\(2026, 11, 28\) of type date: put it in quotes"),
        ("a: [2026-11-28 10:00:00]", "has for a datetime.* of type datetime"),
        ("a: !!binary aGVsbG8=", "has for a b'hello' of type bytes"),
        ("a: !!set {b, c}", "has for a .* of type set"),
        ("a: !!python/object/apply:os.getcwd []", "is no YAML: could not determine a constructor .*, in line 1"),
        ("a: 1\nb: [010]", "has 010 in line 2, which YAML takes for 8: write the number that is meant"),
        ("a: 1:30", "has 1:30 in line 1, which YAML takes for 90"),
        ("a: -1:30.5", r"has -1:30\.5 in line 1, which YAML takes for -90\.5"),
        ("1: 2", "has the key 1, which is no text"),
        ("a: 1\nb: 2\na: 3", "has the key 'a' twice, again in line 3"),
        ("a: [1\nb: }", "is no YAML: .*, in line 2"),
        ("a: \x07", "is no YAML: .*special characters are not allowed"),
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a: &a {b: *a}", f"holds more than {MOST:,} values"),
        (doubled(10), f"holds more than {MOST:,} values"),
        (doubled(30, merged=True), f"holds more than {MOST:,} values"),
        ("- a", r"must hold a mapping such as `strategy: mas`, got \['a'\]"),
        ("", "must hold a mapping"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_mapping_of_plain_values_is_refused(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_mapping(tmp_path / "a.yaml")


def test_a_file_of_too_many_bytes_is_not_parsed(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"# " + bytes(10_000_000))
    with pytest.raises(ValueError, match="holds more than 10,000,000 bytes"):
        read_mapping(tmp_path / "a.yaml")


def test_other_bytes_and_no_file(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_mapping(tmp_path / "a.yaml")
    with pytest.raises(FileNotFoundError):
        read_mapping(tmp_path / "b.yaml")


def test_a_value_that_unfolds():
    bomb = "{" + ", ".join(doubled(10).split("\n")) + "}"
    assert unfolds(bomb)
    assert not unfolds("{" + ", ".join(doubled(2).split("\n")) + "}")
    assert not unfolds("rock & roll * [")
    assert not unfolds("/home/me/data")
