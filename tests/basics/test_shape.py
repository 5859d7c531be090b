"""What was read from a file is made as it must be, or the first place that is not is named."""

from __future__ import annotations

import pytest

from tripletmas.basics.shape import NUMBER, check_shape

SHAPE = {"task": int, "name?": (str, None), "scores": {str: [NUMBER]}, "trials?": [{"strength": (float, int)}]}
GOOD = {"task": 3, "scores": {"mrr": [0.5, 1, None]}}


@pytest.mark.parametrize(
    "content", [GOOD, {**GOOD, "name": None}, {**GOOD, "more": [1]}, {**GOOD, "trials": [{"strength": 1}]}]
)
def test_what_fits(content):
    check_shape(content, SHAPE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it is .., not a mapping"),
        ({"task": 3}, "it has no 'scores'"),
        ({**GOOD, "task": True}, "'task' of it is True, not int"),  # a bool is no number
        ({**GOOD, "task": 3.0}, "'task' of it is 3.0, not int"),
        ({**GOOD, "name": 3}, "'name' of it is 3, not str or null"),
        ({**GOOD, "scores": {"mrr": 0.5}}, "'mrr' of 'scores' of it is 0.5, not a list"),
        (
            {**GOOD, "scores": {"mrr": [0.5, "x"]}},
            "entry 1 of 'mrr' of 'scores' of .* is 'x', not float or int or null",
        ),
        ({**GOOD, "trials": [{"strength": None}]}, "'strength' of entry 0 of 'trials' of it is None, not float or int"),
    ],
)
def test_what_does_not_fit_is_named(content, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_shape(content, SHAPE)


def test_the_last_of_several_may_be_a_shape():
    check_shape([{"a": 1}, None], [(None, {"a": int})])
    with pytest.raises(ValueError, match="'a' of entry 0 of it is 'x', not int"):
        check_shape([{"a": "x"}], [(None, {"a": int})])


def test_a_long_content_is_cut():
    with pytest.raises(ValueError, match=r"^it is .{60}, not int$"):
        check_shape("x" * 1000, int)
