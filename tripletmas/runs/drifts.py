"""How the vectors of a run's models drift, by what it saved: what moves them from the space of one to another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

from torch import Tensor

from tripletmas.index.base import unit
from tripletmas.index.choice import AUTO, Choice, choose_drift
from tripletmas.index.drift import DriftMap, fit_drift
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import config_of
from tripletmas.runs.forecast import limit_of
from tripletmas.runs.moves import shares_of


def default_map(run: RunDirectory) -> str:
    """The drift map that the run itself compensates with; linear, if it does not.

    auto, where a protection knows how far layers have moved: any other may move vectors further than that.
    """
    if any("changed_responses" in each for each in run.records("task")):
        return AUTO
    return config_of(run)["gallery"]["compensate"] or "linear"


def drifts_between(
    run: RunDirectory,
    starts: Iterable[int],
    end: int,
    *,
    kind: str,
    normalize: bool,
    dim: int,
    back: bool = False,
) -> tuple[dict[int, Callable[[Tensor], Tensor]], dict[int, Choice]]:
    """For each start, what moves vectors of the model after that task to where they would lie under that after `end`.

    Beside it, for each task between them, what "auto" chose, where that is the kind.

    The maps of the tasks between them, one after the other, each fitted once, on the images of its task embedded before
    and after it was learned; the run saved these embeddings, and no image is read. Where vectors are of unit length, so
    are the pairs, and what comes out of each map is scaled to it again.

    Args:
        back: the other way: for each start, what moves queries by the model after `end` to the space of that after it.

    Raises:
        ValueError: if the run has no such embeddings, as runs of older versions, or embeddings of another dimension.
    """
    starts = set(starts)
    maps: dict[int, DriftMap] = {}
    choices: dict[int, Choice] = {}
    stored_after = cache(lambda number: run.galleries.read(number)["stored"])
    for task in range(min(starts) + 1, end + 1):
        before, after = _pairs_of(run, task, normalize=normalize, dim=dim)[:: -1 if back else 1]
        if kind == AUTO:
            shares = shares_of(run, task)
            limit = limit_of(shares, [stored_after(each) for each in range(task)] if shares else [])
            choices[task] = choose_drift(before, after, normalize=normalize, limit=limit)
        maps[task] = fit_drift(choices[task].name if kind == AUTO else kind, before, after)
    order = sorted(maps, reverse=back)
    moves = {start: partial(_moved, [maps[task] for task in order if task > start], normalize) for start in starts}
    return moves, choices


def _pairs_of(run: RunDirectory, task: int, *, normalize: bool, dim: int) -> tuple[Tensor, Tensor]:
    """(before, after) of a task, (n, dim) each, in the space of the vectors that are to be moved."""
    path, pairs = run.galleries.path(task), run.galleries.find(task)
    if pairs is None:
        raise ValueError(
            f"{path} is missing, from which drift is estimated (runs of older versions have none): use --reembed"
        )
    if not {"before", "after"} <= pairs.keys() or pairs["before"].shape[1:] != (dim,):
        raise ValueError(f"{path} holds no pairs of vectors of dim {dim}: use --reembed")
    before, after = (unit(pairs[key]) if normalize else pairs[key] for key in ("before", "after"))
    return before, after


def _moved(maps: Sequence[DriftMap], normalize: bool, vectors: Tensor) -> Tensor:
    for each in maps:
        vectors = unit(each(vectors)) if normalize else each(vectors)
    return vectors
