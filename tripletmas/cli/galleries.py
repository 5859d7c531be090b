"""What `evaluate` says of galleries that are not embedded again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.table import Table

from tripletmas.basics.sentences import suggestion
from tripletmas.cli.console import console, make_table
from tripletmas.data.tasks import Stream
from tripletmas.index.choice import CANDIDATES, COMPENSATE, Choice
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.compatibility import Flips, average_compatibility, backward_compatibility
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores
from tripletmas.objectives.objective import Objective
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import Experiment
from tripletmas.runs.galleries import COMPENSATED, STALE, Galleries
from tripletmas.runs.resume import earlier_scores
from tripletmas.runs.updates import compatibility_matrix, flips_of_update

FRESH, QUERY = "fresh", "query"
_UNKNOWN = Flips(math.nan, math.nan, math.nan)


def kinds_of(text: str, compensate: str | None) -> dict[str, str]:
    """gallery as it is asked for -> "fresh", "stale", "query" or the name of a map; fresh is always the first."""
    known = (FRESH, STALE, COMPENSATED, QUERY, *COMPENSATE)
    kinds = {FRESH: FRESH}
    for name in (each.strip() for each in text.split(",")):
        if name not in known:
            raise ValueError(f"unknown gallery {name!r}{suggestion(name, known)}")
        if name == COMPENSATED and compensate is None:
            raise ValueError(
                "the run compensates nothing (gallery.compensate is null): name a map, such as auto, in --gallery"
            )
        kinds[name] = compensate or name if name == COMPENSATED else name
    return kinds


def galleries_of(run: RunDirectory, experiment: Experiment, after: int, kinds: Mapping[str, str]) -> Galleries:
    """The stored vectors of each task, as they are and moved by each map that is asked for; and how queries move back.

    Raises:
        ValueError: if queries are to be moved back, and are not images that search images.
    """
    if QUERY in kinds and not experiment.kind.finds_items:
        name = experiment.kind.name
        raise ValueError(f"--gallery query moves back images that search images, not queries of objective {name}")
    earlier_scores(run, experiment.stream[: after + 1])  # an error where the data are no longer those that are stored
    maps = tuple(dict.fromkeys(kind for kind in kinds.values() if kind in COMPENSATE))
    back = (experiment.gallery.compensate or "linear") if QUERY in kinds else None
    galleries = Galleries(maps, embed=experiment.objective.embed, back=back)
    galleries.restore(run, experiment.model, experiment.stream[: after + 1], after + 1)
    return galleries


def stored_of(galleries: Galleries, kinds: Mapping[str, str]) -> dict[str, list[Embeddings]]:
    """gallery -> the stored vectors of each task, of those that present queries search."""
    return {name: galleries.parts[kind] for name, kind in kinds.items() if kind not in (FRESH, QUERY)}


def with_moved(found: TaskScores, objective: Objective, stream: Stream, moved: EmbeddedTasks | None) -> TaskScores:
    """The scores with those of the queries that were moved back."""
    if moved is None:
        return found
    values = objective.score_other(stream, moved).values
    return replace(found, values=found.values | {f"{scope}_{QUERY}": values[scope] for scope in ("seen", "task")})


def compare(
    run: RunDirectory,
    experiment: Experiment,
    embedded: EmbeddedTasks,
    stored: Mapping[str, Sequence[Embeddings]],
    found: TaskScores,
    chosen: Sequence[int],
    moved: EmbeddedTasks | None = None,
) -> dict[str, dict[str, float]]:
    """gallery -> its numbers: recall@1 averaged over the chosen tasks, and what the last update changed for all.

    Where the objective searches by another metric it is that, and nothing is said of what changed.

    Args:
        moved: the tasks with queries that are moved back; their numbers are those of "query".
    """
    metric = experiment.kind.primary.searched
    earlier = experiment.stream[: len(embedded.queries) - 1]
    changed = (
        flips_of_update(run, experiment.model, earlier, embedded, stored, embed=experiment.objective.embed, moved=moved)
        if earlier and experiment.kind.finds_items
        else {}
    )
    numbers = {}
    for name in (FRESH, *stored, *([QUERY] if moved else [])):
        suffix = "" if name == FRESH else f"_{name}"
        seen, own = (_mean(found.values[scope + suffix][metric], chosen) for scope in ("seen", "task"))
        images = experiment.objective.num_stored(earlier) if name != FRESH else 0
        numbers[name] = {
            f"seen {metric}": seen,
            f"task {metric}": own,
            **changed.get(name, _UNKNOWN)._asdict(),
            "images saved": images,
            "seconds saved": embedded.seconds if images else 0.0,
        }
    return numbers


def table(numbers: Mapping[str, Mapping[str, float]], title: str, metric: str) -> Table:
    """The numbers of `compare` for the terminal."""
    heads = (metric, "of fresh", "own gallery", "negative flips", "positive flips", "same nearest")
    table = make_table(f"{title}: galleries", "gallery", *(f">{head}" for head in (*heads, "not embedded again")))
    fresh = numbers[FRESH][f"seen {metric}"]
    for name, each in numbers.items():
        share = each[f"seen {metric}"] / fresh if fresh else math.nan
        cells = [f"{each[f'seen {metric}']:.3f}", f"{share:.1%}", f"{each[f'task {metric}']:.3f}"]
        cells += ["-" if math.isnan(each[key]) else f"{each[key]:.1%}" for key in Flips._fields]
        saved = f"{each['images saved']:.0f} images, {each['seconds saved']:.1f} s" if each["images saved"] else "-"
        table.add_row(name, *cells, saved)
    table.caption = (
        "flips and same nearest: what the last update changed for the queries of earlier tasks, the gallery's items "
        "being the same"
    )
    table.caption_justify = "left"
    return table


def choices_tables(galleries: Galleries, names: Sequence[str]) -> list[Table]:
    """Which maps "auto" chose when each task was learned, and how near each brought pairs that it was not fitted on."""
    titles = {
        "map chosen when each task was learned": galleries.choices,
        "map chosen to move queries back over each task": galleries.choices_back,
    }
    return [_choices_table(title, choices, names) for title, choices in titles.items() if any(choices)]


def _choices_table(title: str, choices: Sequence[Choice | None], names: Sequence[str]) -> Table:
    table = make_table(title, "task", "chosen", ">pairs", *(f">{name}" for name in CANDIDATES))
    for name, choice in zip(names, choices, strict=True):
        if choice:
            cells = ("-" if math.isnan(score) else f"{score:.5f}" for score in choice.scores.values())
            table.add_row(name, choice.name, str(choice.num_pairs), *cells)
    table.caption = "mean cosine between samples of the task, moved by a map not fitted on them, and where they are"
    table.caption_justify = "left"
    return table


def print_compatibility(run: RunDirectory, experiment: Experiment, after: int) -> None:
    """Measure C[query model, gallery model] on all data of the run and print it; of all its models, keep it for the
    report."""
    earlier_scores(run, experiment.stream[: after + 1])
    embed = experiment.objective.embed
    matrix = compatibility_matrix(run, experiment.model, experiment.stream, after + 1, embed=embed)
    title, columns = "recall@1 by query model and gallery model, all tasks", range(after + 1)
    shown = make_table(title, "queries after task", *(f">gallery {old}" for old in columns))
    for number, row in enumerate(matrix.tolist()):
        shown.add_row(str(number), *("" if math.isnan(value) else f"{value:.3f}" for value in row))
    console().print(shown)
    if after:
        average, backward = average_compatibility(matrix), backward_compatibility(matrix)
        print(f"average compatibility {average:.3f}, backward compatibility {backward:+.3f}")
    if after + 1 == run.num_done:
        run.keep_compatibility("recall@1", matrix.tolist())


def _mean(values: Sequence[float], chosen: Sequence[int]) -> float:
    return sum(values[number] for number in chosen) / len(chosen)
