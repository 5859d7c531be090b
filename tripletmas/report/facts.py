"""Facts on the page of one run: which were forgotten, by order and by word, and what single facts find.

Read from the run's folder `facts`; scores are average precision among the test images of all tasks seen at the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from tripletmas.objectives.facts.fact import PARTS, Fact, parse_fact
from tripletmas.report.classes import Classes
from tripletmas.report.layers import read_tensors
from tripletmas.report.neighbours import Hit, thumbnail
from tripletmas.report.numbers import number
from tripletmas.report.read import Run

_WORST, _WORDS = 20, 12  # rows of a table
_ORDERS = {1: "first: subject", 2: "second: subject, predicate", 3: "third: subject, predicate, object"}


@dataclass(frozen=True)
class ScoredFact:
    """A fact, the task it was learned in (from 0), its score then and now, and that of a random order of the images."""

    fact: Fact
    task: int
    learned: float
    now: float
    chance: float

    @property
    def lost(self) -> float:
        return self.learned - self.now


@dataclass(frozen=True)
class PicturedFact:
    """A fact with the best images for it; `drawn`: shown by chance, not because it was forgotten."""

    name: str
    task: int
    drawn: bool
    learned: tuple[Hit, ...]
    now: tuple[Hit, ...]
    scores: str


@dataclass(frozen=True)
class FactTables:
    """What the page shows of facts.

    Attributes:
        by_order: (order, cells) for each order.
        by_word: part -> (phrase, cells) of the phrases that lost most.
        worst: (fact, cells) of the facts that lost most.
    """

    by_order: list[tuple[str, list[str]]]
    by_word: dict[str, list[tuple[str, list[str]]]]
    worst: list[tuple[str, list[str]]]
    pictured: list[PicturedFact]
    words: str


def read_facts(run: Run, classes: Classes) -> FactTables | None:
    """The tables and pictures of a run on facts; None for other runs, and before the first task is done."""
    folder = run.path / "facts"
    found = [_read_json(path) for path in sorted(folder.glob("found*.json"))]
    if not found or not classes.names:
        return None
    facts = scored_facts([each.get("facts", {}) for each in found], classes)
    by_order = []
    for order in sorted({each.fact.order for each in facts}):
        own = [each for each in facts if each.fact.order == order]
        by_order.append((_ORDERS[order], _cells(own)))
    return FactTables(
        by_order=[*by_order, ("all", _cells(facts))],
        by_word={part: _by_word(facts, part) for part in PARTS},
        worst=[_row(each) for each in sorted(facts, key=lambda each: -each.lost)[:_WORST] if each.lost > 0],
        pictured=_pictured(folder / "pictures.safetensors", classes, facts),
        words=str(found[-1].get("words", "")),
    )


def scored_facts(found: Sequence[dict], classes: Classes) -> list[ScoredFact]:
    """Every fact that some test image shows, with its scores; `found` is what facts found after each task."""
    facts = []
    for task, columns in enumerate(classes.tasks[: len(found)]):
        for name in map(classes.name, columns):
            learned, now = (of.get(name, {}).get("average_precision") for of in (found[task], found[-1]))
            if learned is not None and now is not None:
                facts.append(ScoredFact(parse_fact(name), task, learned, now, found[-1][name]["chance"]))
    return facts


def _by_word(facts: Sequence[ScoredFact], part: str) -> list[tuple[str, list[str]]]:
    """The phrases of a part whose facts lost most, on average; those of the last task had no time to lose anything."""
    members: dict[str, list[ScoredFact]] = {}
    for each in facts:
        if phrase := getattr(each.fact, part):
            members.setdefault(phrase, []).append(each)
    worst = sorted(members, key=lambda phrase: (-fmean(each.lost for each in members[phrase]), phrase))
    return [(phrase, _cells(members[phrase])) for phrase in worst[:_WORDS]]


def _cells(facts: Sequence[ScoredFact]) -> list[str]:
    """How many facts, and the means of chance, when learned, now, lost."""
    columns: Iterable[Iterable[float]] = (
        (each.chance for each in facts),
        (each.learned for each in facts),
        (each.now for each in facts),
        (each.lost for each in facts),
    )
    return [str(len(facts)), *(number(fmean(column)) for column in columns)]


def _row(each: ScoredFact) -> tuple[str, list[str]]:
    return str(each.fact), [f"{each.task + 1}", *(number(v) for v in (each.chance, each.learned, each.now, each.lost))]


def _pictured(path: Path, classes: Classes, facts: Sequence[ScoredFact]) -> list[PicturedFact]:
    if not path.is_file():
        return []
    tensors = read_tensors(path)
    by_name = {str(each.fact): each for each in facts}
    shown = []
    for row, (column, task, drawn) in enumerate(
        zip(*(tensors[key].tolist() for key in ("fact", "task", "drawn")), strict=True)
    ):
        name = classes.name(column)
        scored = by_name.get(name)
        scores = "" if scored is None else f"average precision {number(scored.learned)} → {number(scored.now)}"
        learned, now = (_hits(tensors, row, when, name) for when in ("learned", "now"))
        shown.append(PicturedFact(name, task, bool(drawn), learned, now, scores))
    return shown


def _hits(tensors: dict[str, Tensor], row: int, when: str, name: str) -> tuple[Hit, ...]:
    hits = []
    columns = (tensors[f"{when}_{what}"][row].tolist() for what in ("picture", "right", "score"))
    for rank, (picture, right, score) in enumerate(zip(*columns, strict=True), start=1):
        if picture < 0:
            continue
        said = "shows it" if right else "does not show it"
        alt = f"rank {rank}: {said}, score {score:.3f}"
        hits.append(Hit(thumbnail(tensors["pictures"][picture]), name, "", right, f"{score:.3f}", alt))
    return tuple(hits)


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); delete it or run again") from error
