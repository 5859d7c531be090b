"""pytorch-metric-learning: a protection in its trainers, consolidated at a task's end, saved beside the trunk."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.utils import common_functions
from pytorch_metric_learning.utils.logging_presets import HookContainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from tripletmas.basics.files import atomic_write, damaged
from tripletmas.basics.weights import unwrap
from tripletmas.integrations.guest import check_arguments, check_measure, has_own_weights, measure
from tripletmas.protection.attachment import Clip
from tripletmas.protection.guard import Guard

_PARTS = ("mining_funcs", "loss_funcs", "lr_schedulers", "optimizers", "models")  # of a trainer, as PML saves them
_PENALTY, _SHARE = "protection_penalty", "protection_share_held"


class ProtectionHooks:
    """A protection in trainers of pytorch-metric-learning, one trainer a task.

    `train` is all that a task takes: it attaches the protection to the trainer's optimizers, goes on where a process
    that was killed stopped, trains, saves at each epoch's end, and consolidates on the trainer's data. `attach`,
    `consolidate`, `save` and `load` are its parts, for loops of one's own.

    Files are named as PML's own `HookContainer` names them, `trunk_3.pth` after epoch 3, beside them
    `protection_3.pth` and `progress_3.pth`: the state of the random generators, and whether the task is done.

    Args:
        protection: of the trunk, or, where there is an embedder, of `torch.nn.Sequential(trunk, embedder)`.
        clip: "before" adds the penalty's gradient before the trainer's `gradient_clippers`, as with the penalty in the
            loss. "after" adds it when the optimizers step, unclipped.

    Raises:
        ValueError: for what is no protection.
    """

    def __init__(self, protection: Guard, *, clip: Clip = "before"):
        check_arguments(protection, clip)
        self.protection = protection
        self.clip: Clip = clip

    def train(
        self,
        trainer: Any,
        folder: str | Path | None = None,
        *,
        num_epochs: int = 1,
        container: HookContainer | None = None,
    ) -> None:
        """Learn one task; with a folder, go on with what it has, or, if the task is done, have its end again.

        Args:
            container: as in `attach`.

        Raises:
            ValueError: as `attach` and `load`; if the folder's task was trained for more epochs.
        """
        self.attach(trainer, container)
        start = 0 if folder is None else self.load(trainer, folder)
        if start > num_epochs:
            raise ValueError(
                f"{folder} has epoch {start} of a task, and num_epochs is {num_epochs}: name another folder"
            )
        if self._is_done:
            if start < num_epochs:
                common_functions.LOGGER.warning(
                    "%s has a task that was done after epoch %d, so that nothing is trained for num_epochs=%d: name "
                    "another folder to train more",
                    folder,
                    start,
                    num_epochs,
                )
            return
        if start < num_epochs:
            self._train(trainer, folder, start, num_epochs)
        self.consolidate(trainer)
        if folder is not None:
            self.save(trainer, folder, trainer.epoch if start < num_epochs else start)

    def _train(self, trainer: Any, folder: str | Path | None, start: int, num_epochs: int) -> None:
        own_hook = trainer.end_of_epoch_hook
        trainer.end_of_epoch_hook = partial(self._end_of_epoch, own_hook, folder)
        try:
            trainer.train(start + 1, num_epochs)
        finally:
            trainer.end_of_epoch_hook = own_hook

    def attach(self, trainer: Any, container: HookContainer | None = None) -> None:
        """Protect what the trainer's optimizers step.

        Args:
            container: PML's own: it then records penalty and share held with the losses, every `log_freq` iterations,
                and saves and loads the protection with the models.

        Raises:
            ValueError: if the protection is of another model than the trainer trains, or no optimizer steps it.
        """
        stepped = self._stepped(trainer)
        for optimizer in stepped.values():
            self.protection.attach(optimizer, clip=self.clip)
        clippers = {name: each for name, each in (trainer.gradient_clippers or {}).items() if name != "protection"}
        trainer.gradient_clippers = {
            "protection": partial(self._before_clipping, trainer, stepped, container),
            **clippers,
        }
        trainer.losses.update({_PENALTY: 0, _SHARE: 0})  # PML sums what it finds here before these are set
        self._share = self.protection.coverage().share_held
        self._is_done = False
        if container is not None:
            trainer.protections = {"protection": self.protection}
            if "protections" not in container.saveable_trainer_objects:
                container.saveable_trainer_objects.append("protections")

    def consolidate(self, trainer: Any) -> None:
        """At a task's end: measure each sample of the trainer's data set once, as it gives them."""
        self.protection.settle()
        self.protection.consolidate(_batches(trainer))
        self._share, self._is_done = self.protection.coverage().share_held, True
        common_functions.LOGGER.info("PROTECTION share held %.3f", self._share)

    # --- while a trainer trains

    def _before_clipping(self, trainer: Any, stepped: Mapping[str, Optimizer], container: HookContainer | None) -> None:
        if self.clip == "before":
            for name, optimizer in stepped.items():
                if name.removesuffix("_optimizer") not in trainer.freeze_these:  # those do not step
                    self.protection.add_gradients(optimizer)
        if container is not None and trainer.iteration % container.log_freq == 0:
            trainer.losses.update({_PENALTY: self._penalty(), _SHARE: self._share})

    def _end_of_epoch(self, own_hook: Callable[[Any], Any], folder: str | Path | None, trainer: Any) -> Any:
        penalty = self._penalty()
        common_functions.LOGGER.info("PROTECTION penalty %.4g, share held %.3f", penalty, self._share)
        goes_on = own_hook(trainer)
        if folder is not None:
            self.save(trainer, folder, trainer.epoch)
        return goes_on

    def _stepped(self, trainer: Any) -> dict[str, Optimizer]:
        """The trainer's optimizers that step what is protected."""
        trunk, held = unwrap(trainer.models["trunk"]), unwrap(self.protection.model)
        if not any(unwrap(module) is trunk for module in held.modules()):
            raise ValueError(
                "the protection is of another model than the trainer trains: make it of the trunk, tm.MAS(trunk), or "
                "of both, tm.MAS(torch.nn.Sequential(trunk, embedder))"
            )
        stepped = {name: each for name, each in trainer.optimizers.items() if has_own_weights(self.protection, each)}
        if not stepped:
            names = ", ".join(trainer.optimizers)
            raise ValueError(f"none of the trainer's optimizers ({names}) steps what is protected")
        return stepped

    @torch.no_grad()
    def _penalty(self) -> float:
        return float(self.protection.value())

    # --- on disk

    def save(self, trainer: Any, folder: str | Path, epoch: int) -> None:
        """Save what the trainer has after an epoch, and the protection; files of the epoch before go.

        The trunk is written last: an epoch counts once its trunk is there.
        """
        folder = Path(folder)
        for name, part in self._parts(trainer):
            with atomic_write(folder / f"{name}_{epoch}.pth") as aside:
                common_functions.save_model(part, aside)
        for file in sorted(folder.glob(f"*_{epoch - 1}.pth"), key=lambda file: file.name != f"trunk_{epoch - 1}.pth"):
            file.unlink()

    def load(self, trainer: Any, folder: str | Path) -> int:
        """Have again what was saved last in a folder; after which epoch that was, 0 where there is nothing.

        Raises:
            ValueError: if a file is missing, as that of the protection where none was saved, or is damaged, or of
                another model.
        """
        epoch, _ = common_functions.latest_version(str(folder), "trunk_*.pth")
        for name, part in self._parts(trainer) if epoch else ():
            file = Path(folder) / f"{name}_{epoch}.pth"
            if not file.is_file():
                missing = "it was saved without one" if name == "protection" else "restore it"
                raise ValueError(f"{file} is missing beside trunk_{epoch}.pth, so that this cannot go on: {missing}")
            try:
                part.load_state_dict(torch.load(file, map_location=trainer.data_device, weights_only=True))
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            except Exception as error:
                raise damaged(file, f"{type(error).__name__}: {error}", "restore a copy of it") from error
        self._share = self.protection.coverage().share_held
        return epoch

    def _parts(self, trainer: Any) -> Iterator[tuple[str, Any]]:
        """What is saved, by name; the trunk last."""
        yield "progress", self  # which is not taken over where the protection was measured otherwise
        yield "protection", self.protection
        parts = {name: each for group in _PARTS for name, each in (getattr(trainer, group, None) or {}).items()}
        yield from ((name, part) for name, part in parts.items() if name != "trunk" and hasattr(part, "state_dict"))
        yield "trunk", parts["trunk"]

    def state_dict(self) -> dict[str, Any]:
        """Whether the task is done, how importance is measured, and the random generators as they are now."""
        _, keys, position, has_gauss, gauss = common_functions.NUMPY_RANDOM.get_state()  # of PML's samplers
        version, words, second = random.getstate()
        return {
            "done": self._is_done,
            "measured": measure(self.protection),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(gauss)],
            "python": [version, list(words), second],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave: the random generators go on from there.

        Raises:
            ValueError: if importance was measured otherwise than this protection measures.
        """
        check_measure(self.protection, state["measured"], "the file")
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
        keys, *rest = state["numpy"]
        common_functions.NUMPY_RANDOM.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), *rest))
        version, words, second = state["python"]
        random.setstate((version, tuple(words), second))
        self._is_done = bool(state["done"])


def _batches(trainer: Any) -> Iterator[Tensor]:
    """What the trunk is given, each sample once."""
    loader = DataLoader(
        trainer.dataset,
        batch_size=int(trainer.batch_size or 256),
        num_workers=trainer.dataloader_num_workers,
        collate_fn=trainer.collate_fn,
    )
    for batch in loader:
        data, _ = trainer.data_and_label_getter(batch)
        yield common_functions.to_device(data, device=trainer.data_device, dtype=trainer.dtype)
