"""Avalanche: a protection as a plugin of its strategies, its benchmarks as streams of ours, and streams as benchmarks.

Avalanche's words: an experience is a task, a benchmark has a stream of experiences to learn from ("train") and others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from tripletmas.basics.files import atomic_write, damaged
from tripletmas.basics.sentences import with_article
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.integrations.guest import check_arguments, check_is_only_one, check_is_part
from tripletmas.protection.attachment import Clip
from tripletmas.protection.guard import Guard

try:
    import avalanche.checkpointing as checkpointing
    import dill
    from avalanche.benchmarks import (
        CLScenario,
        benchmark_from_datasets,
        task_incremental_benchmark,
        with_classes_timeline,
    )
    from avalanche.benchmarks.scenarios.online import OnlineCLExperience
    from avalanche.benchmarks.utils import TransformGroups, as_classification_dataset
    from avalanche.distributed import DistributedHelper
    from avalanche.evaluation.metric_results import MetricValue
    from avalanche.models import IncrementalClassifier, MultiHeadClassifier
    from avalanche.models.utils import is_multi_task_module
    from avalanche.training.plugins import SupervisedPlugin
except ImportError as error:
    raise ImportError(f'this needs {error.name}: pip install "tripletmas[avalanche]"') from None


class ProtectionPlugin(SupervisedPlugin, supports_distributed=True):
    """Protects the model of an Avalanche strategy: `Naive(..., plugins=[ProtectionPlugin(tm.MAS(model))])`.

    It attaches the strategy's optimizer at the begin of each experience, consolidates on the experience's data, by
    their eval transforms, at its end (of an online stream at the end of the experience that was split), and gives
    `Penalty_Epoch` and `ShareHeld_Exp` to the strategy's evaluator and so to its loggers. It travels in Avalanche's
    checkpoints: see `save_checkpoint`.

    Where the model takes task labels (a `MultiTaskModule`), it is measured on dicts of `x` and `task_labels`, else on
    batches `[x, y]` or `[x, y, task labels]`, of which `x` counts.

    Args:
        protection: of the model that the strategy trains, or of a part of it that takes the same inputs.
        clip: "before" adds the penalty's gradient as soon as there is that of the loss, so that plugins listed after
            this one clip both: as with the penalty in the loss. "after" adds it when the optimizer steps, unclipped.
        batch_size: samples that are measured at once; None for the strategy's `train_mb_size`.

    Raises:
        ValueError: for what is no protection; when training begins, if it is that of another model.
    """

    def __init__(self, protection: Guard, *, clip: Clip = "before", batch_size: int | None = None):
        super().__init__()
        check_arguments(protection, clip)
        self.protection, self.batch_size = protection, batch_size
        self.clip: Clip = clip
        self.num_consolidated = 0
        self._num_parts = 0  # that were learned of an experience of an online stream

    # the keywords below are those that a user gives to strategy.train(...)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Attach the optimizer, which holds the parameters of the experience's heads by now."""
        check_is_part(self.protection, strategy.model, "the strategy's model")
        check_is_only_one(self.protection, strategy.plugins, ProtectionPlugin)
        self.protection.attach(strategy.optimizer, clip=self.clip)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the penalty's gradient to that of the loss."""
        if self.clip == "before":
            self.protection.add_gradients(strategy.optimizer)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Log the penalty."""
        with torch.no_grad():
            self._log(strategy, "Penalty_Epoch", float(self.protection.value()))

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Consolidate on the data of the experience that ends."""
        experience = self._ended(strategy.experience)
        if experience is None:
            return
        self.protection.settle()
        size = self.batch_size or strategy.train_mb_size
        with_task_labels = is_multi_task_module(self.protection.model)
        workers = kwargs.get("num_workers", 0)
        with _unseen_classes_left_out(strategy.model):
            self.protection.consolidate(_batches(experience.dataset, size, workers, with_task_labels=with_task_labels))
        self.num_consolidated += 1
        self._log(strategy, "ShareHeld_Exp", self.protection.coverage().share_held)

    def _ended(self, experience: Any) -> Any:
        """The experience that is over with this one: of an online stream the one that was split; None in its middle."""
        if not isinstance(experience, OnlineCLExperience):
            return experience
        if not experience.access_task_boundaries:
            raise ValueError(
                "this online stream does not tell where a task ends: split it with access_task_boundaries=True, or "
                "call protection.consolidate yourself in place of the plugin"
            )
        self._num_parts = 1 if experience.is_first_subexp else self._num_parts + 1
        # is_last_subexp is never true where the parts are equal
        over = experience.is_last_subexp or self._num_parts == experience.sub_stream_length
        return experience.origin_experience if over else None

    def _log(self, strategy: Any, name: str, value: float) -> None:
        if not math.isnan(value):
            at = strategy.clock.train_iterations
            strategy.evaluator.publish_metric_value(MetricValue(cast(Any, self), f"{name}/train_phase", value, at))


@contextmanager
def _unseen_classes_left_out(model: nn.Module) -> Iterator[None]:
    """Mask the classes that were not seen yet with 0: Avalanche's -1000 would be nearly all of an output's length."""
    masking = [each for each in model.modules() if isinstance(each, (IncrementalClassifier, MultiHeadClassifier))]
    values = [each.mask_value for each in masking]
    for each in masking:
        each.mask_value = 0
    try:
        yield
    finally:
        for each, value in zip(masking, values, strict=True):
            each.mask_value = value


def _batches(dataset: Any, size: int, num_workers: int, *, with_task_labels: bool) -> Iterator[Any]:
    """The batches of this process, without augmentation; of several processes each has samples of its own."""
    plain = dataset.eval()
    own = Subset(plain, range(DistributedHelper.rank, len(plain), DistributedHelper.world_size))
    collate = getattr(plain, "collate_fn", None)
    for batch in DataLoader(own, batch_size=size, num_workers=num_workers, collate_fn=collate):
        yield {"x": batch[0], "task_labels": batch[-1]} if with_task_labels else list(batch)


# --- checkpoints


def save_checkpoint(strategy: Any, path: str | Path) -> None:
    """Avalanche's `save_checkpoint` between experiences: whole or not at all, the protection with the rest.

    It pickles, and Avalanche's own stumbles over the classes of torch's optimizers, which are written by name here.
    """
    kept = dill.settings["byref"]
    dill.settings["byref"] = True
    try:
        with atomic_write(path) as aside, warnings.catch_warnings():
            warnings.simplefilter("ignore", dill.PicklingWarning)  # "cannot locate" what is located on reading
            checkpointing.save_checkpoint(strategy, aside)
    finally:
        dill.settings["byref"] = kept


def maybe_load_checkpoint(strategy: Any, path: str | Path, *, map_location: Any = None) -> tuple[Any, int]:
    """Avalanche's `maybe_load_checkpoint`: (strategy, number of the experience to go on with).

    The strategy takes over model, optimizer, plugins and protection of the file: those that were made for it are not
    in it afterwards. Load no file that you do not trust: Avalanche's checkpoints are pickled, and execute code.

    Raises:
        ValueError: if the strategy has a `ProtectionPlugin` and the file none; if the file cannot be read.
    """
    if not Path(path).exists():
        return strategy, 0
    protected, kept = _protections(strategy), dict(vars(strategy))
    try:
        strategy, number = checkpointing.maybe_load_checkpoint(strategy, path, map_location)
    except Exception as error:
        raise damaged(path, f"{type(error).__name__}: {error}", "train anew, or restore a copy of it") from error
    if len(_protections(strategy)) < len(protected):
        vars(strategy).update(kept)
        raise ValueError(
            f"{path} has no protection, so that what was learned would be forgotten: it was saved without the "
            "ProtectionPlugin; load it with Avalanche's own maybe_load_checkpoint, and consolidate what it has learned"
        )
    return strategy, number


def _protections(strategy: Any) -> list[ProtectionPlugin]:
    return [each for each in strategy.plugins if isinstance(each, ProtectionPlugin)]


# --- data


class _Samples(Sequence):
    """The samples of Avalanche's data sets, as their eval transforms give them, read when asked for."""

    def __init__(self, datasets: Sequence[Any]):
        self._all: Any = ConcatDataset([dataset.eval() for dataset in datasets])

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, position: Any) -> Any:
        sample = self._all[position][0]
        if not isinstance(sample, Tensor):
            raise ValueError(
                f"a sample of the benchmark is {with_article(type(sample).__name__)}, not a tensor: give the benchmark "
                "an eval_transform that ends in ToTensor()"
            )
        return sample


def stream_from(
    benchmark: CLScenario, *, query: str = "test", gallery: str | None = None, class_names: Sequence[str] | None = None
) -> Stream:
    """An Avalanche benchmark as a stream of ours: a task for each experience of its train stream.

    Samples are read through eval transforms when they are asked for; augmentation is not taken over.

    Args:
        query: the benchmark's stream with a task's queries in each experience, such as "test" or "valid".
        gallery: that with what is searched; None for the queries themselves, each left out of its own search.
        class_names: the name of each label; None for the label itself.

    Raises:
        ValueError: if there is no such stream, or it has not one experience for each of the train stream.
    """
    streams = [_datasets(benchmark, name) for name in ("train", query, gallery) if name]
    datasets = [dataset for stream in streams for dataset in stream]
    parts, count = _views(datasets, class_names), len(streams[0])
    return tuple(Task(f"experience{number}", parts[number].classes, *parts[number::count]) for number in range(count))


def _views(datasets: Sequence[Any], class_names: Sequence[str] | None) -> list[LabelledDataset]:
    """These data sets as views of one, in which labels mean the same."""
    labels = torch.cat([torch.as_tensor(list(dataset.targets)) for dataset in datasets])
    names = class_names or [str(label) for label in range(int(labels.max()) + 1)]
    whole = LabelledDataset(_Samples(datasets), labels, names)
    return [whole.subset(each) for each in torch.arange(len(labels)).split([*map(len, datasets)])]


def _datasets(benchmark: CLScenario, name: str) -> list[Any]:
    if name not in benchmark.streams:
        raise ValueError(f"the benchmark has no stream {name!r}: it has {', '.join(benchmark.streams)}")
    found, learned = ([each.dataset for each in benchmark.streams[part]] for part in (name, "train"))
    if len(found) != len(learned):
        raise ValueError(
            f"the {name} stream has {len(found)} experiences, the train stream {len(learned)}: a task needs "
            "one of each, with the queries of its classes"
        )
    return found


class _Items(Dataset):
    """A data set of ours as Avalanche reads it: (sample, label as a number), with `targets`."""

    def __init__(self, dataset: LabelledDataset):
        self._dataset = dataset.plain()
        self.targets: list[int] = dataset.labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self._dataset[int(position)][0], self.targets[position]


def benchmark_from(stream: Stream, *, task_labels: bool = False) -> CLScenario:
    """A stream of ours as an Avalanche benchmark: an experience a task in its streams "train", "test" and "gallery".

    "test" has the queries, "gallery", where tasks have one, what they search. An augmentation is the transform of
    training data; others are read as they are.

    Args:
        task_labels: give each sample the number of its task, for models with a head a task.

    Raises:
        ValueError: for facts, of which a sample has several.
    """
    if any(task.train.within is not None for task in stream):
        raise ValueError("an image has several facts, and a sample of Avalanche's has one class: facts are not taken")
    parts = {"train": [task.train for task in stream], "test": [task.query for task in stream]}
    galleries = [task.gallery for task in stream if task.gallery is not None]
    if len(galleries) == len(stream):
        parts["gallery"] = galleries
    benchmark = benchmark_from_datasets(**{name: [*map(_classified, part)] for name, part in parts.items()})
    return _with_classes(task_incremental_benchmark(benchmark) if task_labels else benchmark)


def _with_classes(benchmark: CLScenario) -> CLScenario:
    """As Avalanche's, with lists as it promises them: its own MultiHeadClassifier takes them for indices."""
    told: Any = with_classes_timeline(benchmark)
    for stream in told.streams.values():
        for experience in stream:
            experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    return told


def _classified(dataset: LabelledDataset) -> Any:
    groups = TransformGroups({"train": dataset.transform, "eval": None})
    return as_classification_dataset(cast(Any, _Items(dataset)), transform_groups=groups)
