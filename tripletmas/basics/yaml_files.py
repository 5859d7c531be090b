"""YAML files that hold a mapping of plain values: anybody's, so they are limited, and nothing in them is executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tripletmas.basics.sentences import not_text

MOST = 10_000  # values in a file, what aliases repeat included
MOST_BYTES = 10_000_000
_OTHER_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # of base 8, and of base 60


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file: text, numbers, true, false and null, in lists and mappings.

    Raises:
        OSError: if it cannot be read.
        ValueError: in words that follow a name of the file, if it is no YAML, holds no mapping, more than MOST values,
            a key twice, or a value of another type, such as a date without quotes.
    """
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"holds more than {MOST_BYTES:,} bytes")
    try:
        loader = yaml.SafeLoader(content.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is not None and _checked(node, {}) > MOST:  # before aliases and merges unfold
            raise ValueError(f"holds more than {MOST:,} values, those that aliases repeat included")
        found = None if node is None else loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise ValueError(not_text(error)) from None
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {_reason(error)}") from None
    except RecursionError:
        raise ValueError("is no YAML of ours: it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"must hold a mapping such as `strategy: mas`, got {found!r:.80}")
    _refuse_others(found, "")
    return found


def unfolds(text: str) -> bool:
    """Whether a value, read as YAML, would have more than MOST values: jsonargparse reads each option so."""
    if "&" not in text or "*" not in text:
        return False
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        return node is not None and _checked(node, {}) > MOST
    except (yaml.YAMLError, ValueError, RecursionError):
        return False


def read_otherwise(text: str) -> str:
    """Which of the numbers in a value YAML reads as another than people do, and as which; "" for none."""
    numbers = (each for each in re.split(r"[][,\s]+", text) if _OTHER_NUMBER.fullmatch(each))
    return next((f"{each}, which YAML takes for {yaml.safe_load(each)}" for each in numbers), "")


def _checked(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node holds with its aliases unfolded, at most MOST + 1.

    Raises:
        ValueError: for a key that is there twice, or a number that YAML reads as another than people do.
    """
    if isinstance(node, yaml.ScalarNode):
        _refuse_other_number(node)
    if id(node) not in sizes:
        sizes[id(node)] = MOST + 1  # of a node within itself
        if isinstance(node, yaml.MappingNode):
            _refuse_twice([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            inside = [part for pair in node.value for part in pair]
        else:
            inside = node.value if isinstance(node, yaml.SequenceNode) else []
        sizes[id(node)] = min(1 + sum(_checked(part, sizes) for part in inside), MOST + 1)
    return sizes[id(node)]


def _refuse_other_number(node: yaml.ScalarNode) -> None:
    if node.style is None and node.tag.endswith((":int", ":float")) and _OTHER_NUMBER.fullmatch(node.value):
        read, line = yaml.safe_load(node.value), node.start_mark.line + 1
        raise ValueError(
            f"has {node.value} in line {line}, which YAML takes for {read}: write the number that is meant"
        )


def _refuse_twice(keys: list[yaml.ScalarNode]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key.value in seen:
            raise ValueError(f"has the key {key.value!r} twice, again in line {key.start_mark.line + 1}")
        seen.add(key.value)


def _refuse_others(content: Any, name: str) -> None:
    """Whether all values are of the types that JSON has, and all keys text."""
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise ValueError(f"has the key {key!r:.80}, which is no text: put it in quotes")
            _refuse_others(value, f"{name}.{key}" if name else key)
    elif isinstance(content, list):
        for value in content:
            _refuse_others(value, name)
    elif not isinstance(content, (str, int, float, bool, type(None))):
        raise ValueError(f"has for {name} {content!r:.80} of type {type(content).__name__}: put it in quotes")


def _reason(error: yaml.YAMLError) -> str:
    """In one line, with the line of the file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
