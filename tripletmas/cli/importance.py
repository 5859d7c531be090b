"""The command that adds importance from unlabelled images to a run, and takes the last addition back.

Before it adds, it keeps the strategy's state (importance/before00.safetensors; the number counts additions), so that
what is taken back is back to the bit. That of the last addition alone is kept: it is as large as the protection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jsonargparse import Namespace
from tqdm import tqdm

from tripletmas.basics.sentences import counted
from tripletmas.basics.weights import Params, load_state
from tripletmas.cli.console import console, make_parser, make_table, open_run
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.folders import unlabelled
from tripletmas.data.images import ImageFiles, preparation_of
from tripletmas.data.preparation import Preparation
from tripletmas.protection.penalty import check_weight
from tripletmas.runs.brightness import brightness_learned, warn_of_negatives
from tripletmas.runs.checkpoint import Checkpoint
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import Experiment, load_trained
from tripletmas.runs.resume import mend_importance


def importance(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure importance on unlabelled images, such as those of the place where the model is used, and add it to the
    run's protection: what these images need will be held while the next tasks are learned.

    Images that were added before, wherever they lay, are not counted again. --undo takes the last addition back.
    """
    parser = make_parser("importance", importance.__doc__, "run", "--skip-unreadable", "--invert", "--trust-code")
    parser.add_argument(
        "--images", type=str, default=None, help="a folder or zip archive of images, in any sub-folders"
    )
    parser.add_argument("--weight", type=float, default=1.0, help="how much it counts; a task of the run counts 1")
    parser.add_argument("--again", action="store_true", help="also count images that were added before")
    parser.add_argument("--undo", action="store_true", help="take back the last addition: all is as it was before it")
    options = parser.parse_args(arguments)
    check_weight(options.weight)
    if options.undo == (options.images is not None):
        raise ValueError("give --images FOLDER, to add what they need, or --undo, which takes the last addition back")
    run = open_run(options.run, trust_code=options.trust_code)
    with run.locked():
        state = _between_tasks(run)
        return _undo(run, state) if options.undo else _add(run, state, options)


def _between_tasks(run: RunDirectory) -> Checkpoint:
    """The state of a run that waits for its next task."""
    state = run.load_checkpoint()
    if state is None or state.epoch:
        raise ValueError(f"{run.path} stopped in the middle of a task; first: tripletmas resume {run.path}")
    run.check_records(state)
    return state


def _add(run: RunDirectory, state: Checkpoint, options: Namespace) -> dict[str, Any]:
    experiment, _ = load_trained(run)
    prepare(experiment, run, state)
    prepared = preparation_of(experiment.stream[0].query)
    images = unlabelled(options.images, prepared, invert=options.invert, skip_unreadable=options.skip_unreadable)
    warn_of_negatives(images, brightness_learned(run), of=str(run.path), inverted=options.invert)
    run.rewind(state)  # what an addition that was interrupted has recorded does not count
    mend_importance(experiment.strategy, run, state.task - 1)
    images, checksums = _new(run, images, again=options.again)
    if not checksums:
        return {"run": str(run.path), "images": str(options.images), "samples": 0}
    before = _before(len(run.records("importance")))
    strategy, protection = experiment.strategy, experiment.strategy.protections[0]
    total = sum(float(value.sum()) for value in protection.importance.values())
    training = experiment.training
    batches = _shown(images.loader(training.eval_batch_size, num_workers=training.num_workers))
    measured = strategy.add_unlabelled(batches, weight=options.weight)
    file = run.importance().file(state.task - 1)
    # before the checkpoint, which says how many records belong to it: others are cut off when the run goes on; after
    # that, by the record, the file is behind until it is written, by this process or by the one that resumes
    run.write_tensors(before, state.strategy)
    about = {"images": str(options.images), "samples": len(images), "weight": options.weight}
    run.append({"kind": "importance", **about, "checksums": checksums}, files=[file])
    run.save_checkpoint(replace(state, strategy=strategy.state_dict()))
    run.importance().write(state.task - 1, protection.importance)
    _keep_alone(run, before)
    added = options.weight * sum(float(value.sum()) for value in measured.values())
    print(f"{run.path}: importance of {counted(len(images), 'image')} added (sum {added:.4g} to {total:.4g} so far)")
    layers = _by_layer(measured)
    _print_layers(layers)
    lines = list(protection.coverage().lines())
    for sentence in lines:
        print(sentence)
    return {"run": str(run.path), **about, "sum": added, "sum_before": total, "layers": layers, "coverage": lines}


class _Addition(NamedTuple):
    """What was added: by its record, its number among all additions, and whether the run has learned since."""

    record: dict[str, Any]
    number: int
    is_learned_on: bool


def _additions(run: RunDirectory) -> list[_Addition]:
    """Those that count, in their order: not those that were taken back."""
    found: list[_Addition] = []
    number = 0
    for record in run.records():
        kind = record.get("kind")
        if kind == "importance":
            found.append(_Addition(record, number, is_learned_on=False))
            number += 1
        elif kind == "undone":
            found = found[:-1]
        elif kind in ("epoch", "task"):
            found = [each._replace(is_learned_on=True) for each in found]
    return found


def _undo(run: RunDirectory, state: Checkpoint) -> dict[str, Any]:
    """Take the last addition back; to be done again, it has to be measured again."""
    run.rewind(state)  # what an addition that was interrupted has recorded does not count
    additions = _additions(run)
    if not additions:
        raise ValueError(f"{run.path}: there is nothing to take back: no images were added, or they were taken back")
    last = additions[-1]
    about = {name: last.record.get(name) for name in ("images", "samples", "weight")}
    what = f"{counted(about['samples'] or 0, 'image')} of {about['images']} (weight {about['weight'] or 1:g})"
    if last.is_learned_on:
        raise ValueError(f"{run.path}: {what} were added before the last task was learned, which they held: they stay")
    before = _before(last.number)
    if not run.has(before):
        raise ValueError(
            f"{run.path}: {what} cannot be taken back: a run keeps what was before its last addition alone, and those "
            "of earlier versions not even that"
        )
    earlier = replace(state, strategy=run.read_tensors(before))
    experiment, _ = load_trained(run)
    prepare(experiment, run, earlier)
    run.append({"kind": "undone", **about}, files=[run.importance().file(state.task - 1)])
    run.save_checkpoint(earlier)
    run.importance().write(state.task - 1, experiment.strategy.protections[0].importance)
    _keep_alone(run, None)
    print(f"{run.path}: importance of {what} taken back; it is what it was before, and they can be added again")
    return {"run": str(run.path), "undone": about}


def _before(number: int) -> str:
    """The file of a run that holds the strategy's state before an addition."""
    return f"importance/before{number:02d}.safetensors"


def _keep_alone(run: RunDirectory, kept: str | None) -> None:
    """Delete what was kept for other additions: once it was added to again, or taken back, the run needs it no more."""
    for each in (run.path / "importance").glob("before*.safetensors"):
        if kept is None or each != run.path / kept:
            each.unlink()


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
    known = {each for addition in _additions(run) for each in addition.record.get("checksums", ())}
    new = [position for position, each in enumerate(checksums) if again or each not in known]
    if len(new) < len(images):
        print(f"{run.path}: {len(images) - len(new)} of {len(images)} images were added before: --again counts them")
    return images.subset(new), [checksums[position] for position in new]


def _shown(batches: Iterable[Any]) -> Iterator[Any]:
    """The same with a progress bar, from the moment that the first is read."""
    yield from tqdm(batches, desc="importance", unit="batch", leave=False, disable=None)


def _by_layer(importance: Params) -> dict[str, float]:
    """The share of each layer."""
    layers: dict[str, float] = {}
    for name, value in importance.items():
        layer = name.rpartition(".")[0] or name
        layers[layer] = layers.get(layer, 0.0) + float(value.sum())
    return {layer: value / sum(layers.values()) for layer, value in layers.items()}


def _print_layers(shares: dict[str, float]) -> None:
    table = make_table("where it sits", "layer", ">share")
    for layer, share in shares.items():
        table.add_row(layer, f"{share:.1%}")
    console().print(table)
