"""The command that adds importance from unlabelled images to a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from tripletmas.basics.weights import Params, load_state
from tripletmas.cli.console import console, make_parser, make_table, open_run
from tripletmas.data.folders import unlabelled
from tripletmas.runs.experiment import load_trained


def importance(arguments: Sequence[str]) -> None:
    """Measure importance on unlabelled images, such as those of the place where the model is used, and add it to the
    run's protection: what these images need will be held while the next tasks are learned."""
    shared = ("run", "--images", "--skip-unreadable", "--invert", "--trust-code")
    parser = make_parser("importance", importance.__doc__, *shared)
    parser.add_argument("--weight", type=float, default=1.0, help="how much it counts; a task of the run counts 1")
    options = parser.parse_args(arguments)
    if options.weight <= 0:
        raise ValueError(f"--weight must be > 0, got {options.weight}")
    run = open_run(options.run, trust_code=options.trust_code)
    state = run.load_checkpoint()
    if state is None or state.epoch:
        raise ValueError(f"{run.path} stopped in the middle of a task; first: tripletmas resume {run.path}")
    experiment, _ = load_trained(run)
    strategy = experiment.strategy
    strategy.prepare(experiment.model, experiment.objective, experiment.stream)
    if not strategy.protections:
        raise ValueError(f"{run.path}: the strategy {experiment.config['strategy']['name']!r} protects no weights")
    load_state(experiment.model, state.model, f"the checkpoint in {run.path}")  # not a model that is only deployed
    strategy.load_state_dict(state.strategy)
    shape = experiment.stream[0].query.sample_shape
    images = unlabelled(options.images, shape, invert=options.invert, skip_unreadable=options.skip_unreadable)
    protection = strategy.protections[0]
    total = sum(float(value.sum()) for value in protection.importance.values())
    batches = _shown(images.loader(experiment.training.eval_batch_size))
    measured = strategy.add_unlabelled(batches, weight=options.weight)
    run.rewind(state)
    # before the checkpoint, which says how many records belong to it: others are cut off when the run goes on
    run.append({"kind": "importance", "images": str(options.images), "samples": len(images), "weight": options.weight})
    run.save_checkpoint(replace(state, strategy=strategy.state_dict()))
    run.importance().write(state.task - 1, protection.importance)
    added = options.weight * sum(float(value.sum()) for value in measured.values())
    print(f"{run.path}: importance of {len(images)} images added (sum {added:.4g} to {total:.4g} so far)")
    _print_layers(measured)
    for sentence in protection.coverage().lines():
        print(sentence)


def _shown(batches: Iterable[Any]) -> Iterator[Any]:
    """The same with a progress bar, from the moment that the first is read."""
    yield from tqdm(batches, desc="importance", unit="batch", leave=False)


def _print_layers(importance: Params) -> None:
    layers: dict[str, float] = {}
    for name, value in importance.items():
        layer = name.rpartition(".")[0] or name
        layers[layer] = layers.get(layer, 0.0) + float(value.sum())
    table = make_table("where it sits", "layer", ">share")
    for layer, value in layers.items():
        table.add_row(layer, f"{value / sum(layers.values()):.1%}")
    console().print(table)
