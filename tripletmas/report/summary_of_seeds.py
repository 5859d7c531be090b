"""The same words of several seeds of one method: what happened in all of them, and how far they are apart."""

from __future__ import annotations

import math
from statistics import fmean

from tripletmas.basics.sentences import counted
from tripletmas.objectives import scores as measures
from tripletmas.report import collapse, gains
from tripletmas.report.compare import Method
from tripletmas.report.numbers import begun, number
from tripletmas.report.significance import paired_test
from tripletmas.report.summary import LITTLE, Said, percent, worth_of


def said_of_seeds(method: Method) -> list[Said]:
    """What happened, for a reader who knows none of the numbers; [] before the first seed is done."""
    if not method.seeds:
        return []
    found = {
        "Learned": _learned(method),
        "Forgotten": _forgotten(method),
        "The old index": _index(method),
        "Collapse": _collapsed(method),
        "How sure this is": _sure(method),
    }
    return [Said(title, text) for title, text in found.items() if text]


def _label(method: Method) -> str:
    return method.runs[0].primary.label


def _learned(method: Method) -> str:
    done, of, tasks = len(method.seeds), len(method.runs), len(method.per_task)
    seeds = f"{done} of {of} seeds have" if done < of else f"all {of} seeds have" if of > 1 else "the one seed has"
    what = f"all {tasks} tasks" if tasks > 1 else "the one task"
    text = f"{begun(seeds)} learned {what}. Right after it was learned, a task had {_label(method)} "
    text += f"{method.learning.text()}{' on average' if tasks > 1 else ''}."
    if method.void:
        return f"{text} In one of them or more that is no better than guessing."
    note = gains.note(method.runs)
    return f"{text} {begun(note)}." if note else text


def _forgotten(method: Method) -> str:
    if len(method.per_task) < 2:
        return "Nothing yet: there is a single task."
    if method.void:
        return collapse.VOID
    text = f"At the end {_label(method)} is {method.average.text()}, a mean over the tasks. "
    if method.forgetting.mean <= LITTLE:
        return text + "The earlier tasks lost nothing on average."
    worst, most = _most_forgotten(method)
    name = f"{worst + 1} ({method.runs[0].task_name(worst)})"
    more = f"; most task {name}, by {number(most)} on average" if len(method.per_task) > 2 else ""
    return f"{text}The earlier tasks fell by {method.forgetting.text()} from their best{more}."


def _most_forgotten(method: Method) -> tuple[int, float]:
    """(the task that fell most, by how much), a mean over the seeds that are done."""
    matrices = (run.matrix() for run in method.runs if run.finished)
    whole = [matrix for matrix in matrices if matrix is not None and len(matrix) == len(method.per_task)]
    falls = [measures.forgetting_per_task(matrix).tolist() for matrix in whole]
    means = [fmean(each) for each in zip(*falls, strict=True)][: len(method.per_task) - 1]
    return max(enumerate(means), key=lambda each: each[1])


def _index(method: Method) -> str:
    if len(method.per_task) < 2:
        return ""
    fresh, stale = (
        method.galleries[kind].mean if kind in method.galleries else math.nan for kind in ("fresh", "stale")
    )
    if math.isnan(fresh) or math.isnan(stale) or not fresh:
        return "What stored vectors are still worth was not measured."
    text = (
        f"Vectors that were stored when their task was learned have {method.runs[0].primary.searched_label} "
        f"{method.galleries['stale'].text()}, embedded again they have {method.galleries['fresh'].text()}: "
        f"{worth_of(stale, fresh)}"
    )
    if "compensated" not in method.galleries:
        return text
    moved = method.galleries["compensated"]
    return f"{text} Moved by a map, without any old image, they have {moved.text()}, {percent(moved.mean, fresh)}."


def _collapsed(method: Method) -> str:
    if note := collapse.note(method.runs):
        return f"{begun(note)}."
    looked = any("guess" in task or "embedding" in task for run in method.runs for task in run.tasks)
    return "No sign of one, in any seed." if looked else ""


def _sure(method: Method) -> str:
    """How far the seeds are apart, and what that leaves open."""
    values = method.average.values
    if len(values) < 2:
        return "One seed is done: how far another would be from it, it does not tell."
    by_seed = dict(enumerate(values))
    mean = paired_test(by_seed, dict.fromkeys(by_seed, 0.0))
    return (
        f"{counted(len(values), 'seed')} end between {number(min(values))} and {number(max(values))}. They leave the "
        f"mean open from {number(max(mean.low, 0.0))} to {number(min(mean.high, 1.0))} (95\N{NO-BREAK SPACE}%, "
        "Student's t); the data and their split are the same in all of them."
    )
