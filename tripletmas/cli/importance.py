"""The command that adds importance from unlabelled images to a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from jsonargparse import Namespace
from tqdm import tqdm

from tripletmas.basics.weights import Params, load_state
from tripletmas.cli.console import console, make_parser, make_table, open_run
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.folders import unlabelled
from tripletmas.data.images import ImageFiles, preparation_of
from tripletmas.data.preparation import Preparation
from tripletmas.runs.brightness import brightness_learned, warn_of_negatives
from tripletmas.runs.checkpoint import Checkpoint
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import Experiment, load_trained
from tripletmas.runs.resume import mend_importance


def importance(arguments: Sequence[str]) -> None:
    """Measure importance on unlabelled images, such as those of the place where the model is used, and add it to the
    run's protection: what these images need will be held while the next tasks are learned.

    Images that were added before, wherever they lay, are not counted again.
    """
    shared = ("run", "--images", "--skip-unreadable", "--invert", "--trust-code")
    parser = make_parser("importance", importance.__doc__, *shared)
    parser.add_argument("--weight", type=float, default=1.0, help="how much it counts; a task of the run counts 1")
    parser.add_argument("--again", action="store_true", help="also count images that were added before")
    options = parser.parse_args(arguments)
    if options.weight <= 0:
        raise ValueError(f"--weight must be > 0, got {options.weight}")
    run = open_run(options.run, trust_code=options.trust_code)
    with run.locked():
        _add(run, options)


def _add(run: RunDirectory, options: Namespace) -> None:
    state = run.load_checkpoint()
    if state is None or state.epoch:
        raise ValueError(f"{run.path} stopped in the middle of a task; first: tripletmas resume {run.path}")
    run.check_records(state)
    experiment, _ = load_trained(run)
    prepare(experiment, run, state)
    prepared = preparation_of(experiment.stream[0].query)
    images = unlabelled(options.images, prepared, invert=options.invert, skip_unreadable=options.skip_unreadable)
    warn_of_negatives(images, brightness_learned(run), of=str(run.path), inverted=options.invert)
    run.rewind(state)  # what an addition that was interrupted has recorded does not count
    mend_importance(experiment.strategy, run, state.task - 1)
    images, checksums = _new(run, images, again=options.again)
    if not checksums:
        return
    strategy, protection = experiment.strategy, experiment.strategy.protections[0]
    total = sum(float(value.sum()) for value in protection.importance.values())
    training = experiment.training
    batches = _shown(images.loader(training.eval_batch_size, num_workers=training.num_workers))
    measured = strategy.add_unlabelled(batches, weight=options.weight)
    file = run.importance().file(state.task - 1)
    # before the checkpoint, which says how many records belong to it: others are cut off when the run goes on; after
    # that, by the record, the file is behind until it is written, by this process or by the one that resumes
    about = {"images": str(options.images), "samples": len(images), "weight": options.weight}
    run.append({"kind": "importance", **about, "checksums": checksums}, files=[file])
    run.save_checkpoint(replace(state, strategy=strategy.state_dict()))
    run.importance().write(state.task - 1, protection.importance)
    added = options.weight * sum(float(value.sum()) for value in measured.values())
    print(f"{run.path}: importance of {len(images)} images added (sum {added:.4g} to {total:.4g} so far)")
    _print_layers(measured)
    for sentence in protection.coverage().lines():
        print(sentence)


def prepare(experiment: Experiment, run: RunDirectory, state: Checkpoint) -> None:
    """Give the parts the state of a checkpoint.

    Raises:
        ValueError: if the strategy protects nothing.
    """
    strategy = experiment.strategy
    strategy.prepare(experiment.model, experiment.objective, experiment.stream)
    if not strategy.protections:
        raise ValueError(f"{run.path}: the strategy {experiment.config['strategy']['name']!r} protects no weights")
    load_state(experiment.model, state.model, f"the checkpoint in {run.path}")  # not a model that is only deployed
    strategy.load_state_dict(state.strategy)


def _new(run: RunDirectory, images: LabelledDataset, *, again: bool) -> tuple[LabelledDataset, list[str]]:
    """Those of the images that were not added before, or all again; and their checksums."""
    files = ImageFiles.at(images.paths or (), Preparation((1, 1), 1))
    checksums = [files.checksum(position) for position in range(len(files))]
    known = {each for record in run.records("importance") for each in record.get("checksums", ())}
    new = [position for position, each in enumerate(checksums) if again or each not in known]
    if len(new) < len(images):
        print(f"{run.path}: {len(images) - len(new)} of {len(images)} images were added before: --again counts them")
    return images.subset(new), [checksums[position] for position in new]


def _shown(batches: Iterable[Any]) -> Iterator[Any]:
    """The same with a progress bar, from the moment that the first is read."""
    yield from tqdm(batches, desc="importance", unit="batch", leave=False, disable=None)


def _print_layers(importance: Params) -> None:
    layers: dict[str, float] = {}
    for name, value in importance.items():
        layer = name.rpartition(".")[0] or name
        layers[layer] = layers.get(layer, 0.0) + float(value.sum())
    table = make_table("where it sits", "layer", ">share")
    for layer, value in layers.items():
        table.add_row(layer, f"{value / sum(layers.values()):.1%}")
    console().print(table)
