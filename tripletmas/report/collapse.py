"""What the records of a run say of a collapse: which tasks show a sign, and whether anything was learned at all."""

from __future__ import annotations

from collections.abc import Sequence

from tripletmas.objectives import collapse
from tripletmas.report.read import Run

_SHOWN = 4  # tasks

ADVICE = (
    "Nothing can be found among vectors that are nearly one. What helps: a pretrained model; more steps "
    "(<code>--training.epochs</code>) or images; a lower <code>--training.lr</code>; for a loss of triplets "
    "<code>--loss.mining all</code> and <code>--training.warmup 0.15</code>; another <code>--loss</code>."
)
VOID = "Says nothing here: what was never learned cannot be forgotten."


def signs(run: Run) -> dict[int, dict[str, str]]:
    """For each finished task that shows any: sign -> sentence."""
    return {task.get("task", 0): task["collapse"] for task in run.tasks if task.get("collapse")}


def has_collapsed(run: Run) -> bool:
    """Whether the embedding itself shows a sign, after some task."""
    return any(shown.keys() - {collapse.CHANCE} for shown in signs(run).values())


def learned_nothing(run: Run) -> bool:
    """Whether scores right after each task, taken together, are what guessing gives.

    Where it is not known what guessing gives: whether every task shows a collapse.
    """
    guesses = [task["guess"] for task in run.tasks if task.get("guess", {}).get("score") is not None]
    num = sum(each["queries"] for each in guesses)
    if not num:
        return bool(run.tasks) and len(signs(run)) == len(run.tasks)
    right = sum(round(each["score"] * each["queries"]) for each in guesses)
    expected = sum(each["chance"] * each["queries"] for each in guesses)
    return collapse.at_chance(right, num, expected / num)


def heading(run: Run) -> str:
    """The title of the box that says so; empty where nothing shows."""
    found = signs(run)
    if not found:
        return ""
    what = "The embedding has collapsed" if has_collapsed(run) else "Learned no better than by guessing"
    return f"{what}: {len(found)} of {len(run.tasks)} tasks"


def lines(run: Run) -> list[str]:
    """A line for each task that shows a sign, the first few."""
    found = [f"{run.task_name(number)}: {'; '.join(shown.values())}." for number, shown in signs(run).items()]
    more = [f"And {len(found) - _SHOWN} more."] if len(found) > _SHOWN else []
    return found[:_SHOWN] + more


def note(runs: Sequence[Run]) -> str:
    """What is to be said of the runs of a method; empty if nothing."""
    collapsed, empty = sum(map(has_collapsed, runs)), sum(map(learned_nothing, runs))
    notes = {
        f"the embedding collapsed in {collapsed} of {len(runs)} runs": collapsed,
        f"{empty} of {len(runs)} runs learned no better than by guessing, so what they forgot (in brackets) says "
        "nothing": empty,
    }
    return "; ".join(sentence for sentence, applies in notes.items() if applies)
