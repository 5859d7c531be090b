"""The numbers on the page of one run: headline, tables, and what its penalty held."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from tripletmas.objectives import scores as measures
from tripletmas.protection.coverage import Coverage
from tripletmas.report import collapse, texts
from tripletmas.report.numbers import number
from tripletmas.report.read import Run


def about(run: Run) -> list[str]:
    """What was run: strategy, data, model, what was minimised, number of tasks, seed."""
    named = [f"{key} {run.called(key)}" for key in ("strategy", "data", "model")]
    minimised = f"loss {run.called('loss')}"
    if len(run.kind.losses) == 1:
        minimised = f"objective {run.kind.name}"
    return [*named, minimised, f"{len(run.task_names)} tasks", f"seed {run.config.get('seed', '?')}"]


def headline(run: Run) -> list[tuple[str, str, str, bool]]:
    """(what it is called, the number, what it means, whether it means nothing) for each of the tiles at the top."""
    matrix = run.matrix()
    if matrix is None:
        return []
    words, nothing = run.kind.wording, collapse.learned_nothing(run)
    lost = (collapse.VOID, collapse.VOID) if nothing else (words.forgetting, words.backward_transfer)
    tiles = [
        (f"final average {run.primary.label}", number(measures.average(matrix)), words.average, False),
        ("forgetting", number(measures.forgetting(matrix)), lost[0], nothing),
        ("backward transfer", number(measures.backward_transfer(matrix), signed=True), lost[1], nothing),
        ("learning", number(measures.plasticity(matrix)), words.learning, False),
    ]
    if not math.isnan(run.forward_transfer):
        tiles.append(("forward transfer", number(run.forward_transfer, signed=True), texts.FORWARD_TRANSFER, False))
    return tiles


def metric_rows(run: Run) -> list[tuple[str, str, list[str]]]:
    """(metric, its definition, average and forgetting on each gallery); a dash where a gallery lacks the metric."""
    galleries = run.kind.wording.galleries
    measured = {metric for gallery in galleries for metric in run.metrics(gallery)}
    lines = []
    definitions = run.kind.wording.definitions
    for metric in [*(m for m in definitions if m in measured), *sorted(measured - definitions.keys())]:
        cells = []
        for gallery in galleries:
            matrix = run.matrix(metric, gallery)
            pair = (math.nan, math.nan) if matrix is None else (measures.average(matrix), measures.forgetting(matrix))
            cells += [number(value) for value in pair]
        lines.append((metric, definitions.get(metric, ""), cells))
    return lines


def task_rows(run: Run) -> list[tuple[str, list[str]]]:
    """For each finished task its name, and the score when learned and at the end, forgetting, seconds."""
    matrix = run.matrix()
    if matrix is None:
        return []
    lost = [*measures.forgetting_per_task(matrix).tolist(), math.nan]
    lines = []
    for i in range(len(matrix)):
        scores = [number(value) for value in (float(matrix[i, i]), float(matrix[-1, i]), lost[i])]
        lines.append((run.task_names[i], [*scores, number(run.seconds(i), 1)]))
    return lines


def known_rows(run: Run) -> list[str]:
    """For each finished task how many of its classes earlier ones had, "3 of 4"; [] where tasks share none."""
    known = run.classes.known_before()
    return [f"{count} of {len(own)}" for count, own in zip(known, run.classes.tasks, strict=True)] if any(known) else []


def known_text(run: Run) -> str:
    """What classes of several tasks mean for the scores."""
    size = sum(map(len, run.classes.tasks[1:]))
    return texts.SHARED.format(known=f"{sum(run.classes.known_before())} of {size}")


def _coverage(run: Run) -> Coverage:
    """What the penalty held: names of what it did not hold in any task, and the weights by layer after the last."""
    found = Coverage()
    for task in run.tasks:
        now = Coverage.from_json(task.get("unprotected", {}))
        found = Coverage(
            buffers=_union(found.buffers, now.buffers),
            frozen=_union(found.frozen, now.frozen),
            new=_union(found.new, now.new),
            loss_parameters=_union(found.loss_parameters, now.loss_parameters),
            layers=now.layers,
        )
    return found


def coverage_lines(run: Run) -> list[str]:
    """The coverage in sentences; of many heads of recognition, the first and the last are named."""
    found = _coverage(run)
    heads = {int(match[1]) for name in found.loss_parameters if (match := re.match(r"heads\.(\d+)\.", name))}
    if not heads:
        return found.lines()
    others = tuple(name for name in found.loss_parameters if not name.startswith("heads."))
    span = f"heads.{min(heads)}" if len(heads) == 1 else f"heads.{min(heads)} to heads.{max(heads)}"
    sentence = (
        f"Not held, by design: the {len(heads)} heads of the tasks ({span}). They belong to the objective, not to the "
        "model, and no strategy penalises them."
    )
    return [*replace(found, loss_parameters=others).lines(), sentence]


def layer_rows(run: Run) -> list[tuple[str, list[str]]]:
    """For each layer its weights, those of importance 0, and the share that is held; [] where nothing was counted."""
    layers = _coverage(run).layers
    rows = [(name, layer.weights, layer.zero) for name, layer in layers.items() if layer.weights]
    if len(rows) > 1:
        rows.append(("all layers", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    return [(name, [f"{weights:,}", f"{zero:,}", _share_held(weights - zero, weights)]) for name, weights, zero in rows]


def _share_held(held: int, weights: int) -> str:
    """In percent; cut and not rounded, so that 100 % means all."""
    return f"{math.floor(1000 * held / weights) / 10:g} %"


def _union(names: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*names, *more]))


def duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if math.isnan(seconds):
        return "not recorded"
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
