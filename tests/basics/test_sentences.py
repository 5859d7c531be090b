"""The nearest known name, or what there is."""

from __future__ import annotations

from tripletmas.basics.sentences import suggestion


def test_the_nearest_name_or_all():
    assert suggestion("strenght", ["decay", "strength"]) == " (did you mean 'strength'?)"
    assert suggestion("zzz", ["alpha", "beta"]) == " (known: alpha, beta)"
    assert suggestion("zzz", []) == " (known: none)"
    assert suggestion("zzz", (f"name{number}" for number in range(31))).endswith("name29, ...)")
    assert suggestion("zzz", (f"name{number}" for number in range(30))).endswith("name29)")
