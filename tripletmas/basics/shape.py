"""Whether what was read from a file, such as JSON, is made as it must be."""

from __future__ import annotations

from typing import Any

NUMBER = (float, int, None)  # None is nan


def check_shape(content: Any, shape: Any, where: str = "it") -> None:
    """Whether content is made like a shape; a bool is no number.

    Args:
        shape: a type; a tuple of alternatives, None among them, the last perhaps a dict or a list; a list with the
            shape of each entry; or a dict, name -> shape, whose names may be absent where they end in "?", with the
            shape of every entry under the key `str`. Entries that a dict does not name are free.

    Raises:
        ValueError: naming the first place that differs.

    >>> check_shape({"task": 3, "scores": [0.5, None]}, {"task": int, "scores": [NUMBER], "name?": str})
    """
    match shape:
        case dict():
            _check(isinstance(content, dict), content, where, "a mapping")
            for name, each in shape.items():
                _check_entry(content, name, each, where)
        case list():
            _check(isinstance(content, list), content, where, "a list")
            for number, each in enumerate(content):
                check_shape(each, shape[0], f"entry {number} of {where}")
        case tuple():
            _check_any(content, shape, where)
        case _:
            _check(type(content) is shape, content, where, shape.__name__)


def _check_any(content: Any, shapes: tuple[Any, ...], where: str) -> None:
    """Whether content is of one of these types, or made like the last of the shapes, if that is a dict or a list."""
    if type(content) in shapes or (content is None and None in shapes):
        return
    if isinstance(shapes[-1], (dict, list)):
        check_shape(content, shapes[-1], where)
    else:
        _check(False, content, where, " or ".join("null" if each is None else each.__name__ for each in shapes))


def _check_entry(content: dict[str, Any], name: Any, shape: Any, where: str) -> None:
    if name is str:
        for key, each in content.items():
            check_shape(each, shape, f"{key!r} of {where}")
        return
    key = name.removesuffix("?")
    if key in content:
        check_shape(content[key], shape, f"{key!r} of {where}")
    elif key == name:
        raise ValueError(f"{where} has no {key!r}")


def _check(holds: bool, content: Any, where: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{where} is {content!r:.60}, not {expected}")
