"""Lists of names; the nearest known name, or what there is."""

from __future__ import annotations

from tripletmas.basics.sentences import listed, suggestion, with_article


def test_the_nearest_name_or_all():
    assert suggestion("strenght", ["decay", "strength"]) == " (did you mean 'strength'?)"
    assert suggestion("zzz", ["alpha", "beta"]) == " (known: alpha, beta)"
    assert suggestion("zzz", []) == " (known: none)"
    assert suggestion("zzz", (f"name{number}" for number in range(31))).endswith("name29, ...)")
    assert suggestion("zzz", (f"name{number}" for number in range(30))).endswith("name29)")


def test_articles_are_as_names_are_said():
    names = [
        "AdamW",
        "int",
        "SGD",
        "LSTM",
        "FSDPModule",
        "NAdam",
        "Event",
        "dict",
        "MAS",
        "UNet",
        "UserModel",
        "HTTPServer",
    ]
    said = ["an"] * 7 + ["a"] * 4 + ["an"]
    assert [with_article(name) for name in names] == [f"{article} {n}" for article, n in zip(said, names, strict=True)]


def test_long_lists_are_cut_and_counted():
    assert listed(["a", "b"]) == "a, b"
    assert listed((str(i) for i in range(5)), most=3) == "0, 1, 2 and 2 more"
