"""What happened in a run, in words: what was learned, forgotten, what the old index is worth, whether it collapsed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from tripletmas.objectives import scores as measures
from tripletmas.objectives.scores import last_row
from tripletmas.report import collapse, gains
from tripletmas.report.galleries import stored_matrices
from tripletmas.report.numbers import number
from tripletmas.report.read import Run
from tripletmas.report.significance import error_of_share

_SHARES = ("recall@", "accuracy", "top")  # metrics that are a share of queries begin so
LITTLE = 0.0005  # is shown as 0.000
# from this share of what embedding again finds -> what an index is worth that is left as it is
_WORTH = {
    0.97: "It can stay as it is.",
    0.85: "It still serves, and loses a part.",
    0.5: "It has lost much: it is better moved, or embedded again.",
    0.0: "It is worth little: embed it again.",
}


@dataclass(frozen=True)
class Said:
    """A few sentences below a title."""

    title: str
    text: str


def said(run: Run) -> list[Said]:
    """What happened, for a reader who knows none of the numbers; [] before the first task is done."""
    matrix = run.matrix()
    if matrix is None:
        return []
    found = {
        "Learned": _learned(run, matrix),
        "Forgotten": _forgotten(run, matrix),
        "The old index": _index(run),
        "Collapse": _collapsed(run),
        "How sure this is": _sure(run, matrix),
    }
    return [Said(title, text) for title, text in found.items() if text]


def _learned(run: Run, matrix: Tensor) -> str:
    done, size = run.num_done, len(run.task_names)
    tasks = f"{done} of {size} tasks so far" if done < size else f"all {size} tasks" if size > 1 else "the one task"
    text = f"{tasks[0].upper()}{tasks[1:]}. Right after it was learned, a task had {run.primary.label} "
    text += f"{number(measures.plasticity(matrix))}{' on average' if done > 1 else ''}"
    end = ". That is no better than guessing." if collapse.learned_nothing(run) else "."
    return f"{text}{_guessed(run)}{end}{gains.sentence(run)}"


def _guessed(run: Run) -> str:
    """What guessing would have, where each task recorded it, against the score that it is compared with."""
    guesses = [task.get("guess", {}) for task in run.tasks]
    pairs = [(guess.get("score"), guess.get("chance")) for guess in guesses]
    if not pairs or any(None in pair for pair in pairs):
        return ""
    score, chance = (fmean(map(float, values)) for values in zip(*pairs, strict=True))
    own = f"; on its own gallery {number(score)}" if run.primary.gallery == "seen" else ""
    return f"{own}, where guessing has about {number(chance, 2)}"


def _forgotten(run: Run, matrix: Tensor) -> str:
    if run.num_done < 2:
        return "Nothing yet: a single task is done."
    if collapse.learned_nothing(run):
        return collapse.VOID
    lost, fell = measures.forgetting(matrix), measures.forgetting_per_task(matrix)[: run.num_done - 1]
    text = f"At the end {run.primary.label} is {number(measures.average(matrix))}, a mean over the tasks. "
    if lost <= LITTLE:
        text += "The earlier tasks lost nothing on average."
    else:
        worst = int(fell.nan_to_num(-math.inf).argmax())
        most = f"; most task {worst + 1} ({run.task_name(worst)}), by {number(float(fell[worst]))}"
        text += f"The earlier tasks fell by {number(lost)} from their best{most if len(fell) > 1 else ''}."
    return text + _by_growth(run, lost)


def _by_growth(run: Run, lost: float) -> str:
    """How much of it is forgetting alone: on everything seen, scores also fall as the gallery grows."""
    own = run.matrix(gallery="task") if run.primary.gallery == "seen" else None
    alone = math.nan if own is None else measures.forgetting(own)
    if math.isnan(alone) or lost <= LITTLE:
        return ""
    text = " On a task's own gallery, where forgetting alone counts, they "
    if alone <= LITTLE:
        return f"{text}lost nothing: there is only more to confuse them with."
    rest = ": the rest is that there is more to confuse them with" if alone < lost - LITTLE else ""
    return f"{text}fell by {number(alone)}{rest}."


def _index(run: Run) -> str:
    if run.num_done < 2:
        return ""
    means = {kind: measures.average(matrix) for kind, matrix in stored_matrices(run, "seen").items()}
    fresh, stale = means.get("fresh", math.nan), means.get("stale", math.nan)
    if math.isnan(fresh) or math.isnan(stale) or not fresh:
        return "What stored vectors are still worth was not measured."
    text = (
        f"Vectors that were stored when their task was learned have {run.primary.searched_label} {number(stale)}, "
        f"embedded again they have {number(fresh)}: {worth_of(stale, fresh)}"
    )
    moved = means.get("compensated", math.nan)
    if math.isnan(moved):
        return text
    return f"{text} Moved by a map, without any old image, they have {number(moved)}, {percent(moved, fresh)}."


def worth_of(stale: float, fresh: float) -> str:
    """What an index is worth that is left as it is, by its score and that of one that is embedded again."""
    left = "nothing is lost" if stale >= fresh else f"{percent(stale, fresh)} of it is left"
    return f"{left}. {next(words for share, words in _WORTH.items() if stale >= share * fresh)}"


def percent(part: float, whole: float) -> str:
    """A share of something, in percent."""
    return f"{100 * part / whole:.0f}\N{NO-BREAK SPACE}%"


def _collapsed(run: Run) -> str:
    if heading := collapse.heading(run):
        return f"{heading}. The box above says what shows, and what helps."
    looked = any("guess" in task or "embedding" in task for task in run.tasks)
    return "No sign of one, after any task." if looked else ""


def _sure(run: Run, matrix: Tensor) -> str:
    """What the number of queries leaves open, where the score is a share of them."""
    queries = list(run.tasks[-1].get("queries", [])) if run.tasks else []
    if not run.primary.metric.startswith(_SHARES) or not queries:
        return ""
    error = error_of_share(last_row(matrix).tolist(), queries)
    if math.isnan(error):
        return ""
    return (
        f"{sum(queries):,} queries leave ± {number(2 * error)} open on that mean (two standard errors): a smaller "
        "difference to another run may be noise. How far another seed would be, several seeds tell."
    )
