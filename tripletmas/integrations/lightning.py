"""Protection in Lightning, `lightning` and `pytorch_lightning` alike: a callback of the Trainer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, final

from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from tripletmas.basics.distributed import whole
from tripletmas.integrations.guest import (
    Clip,
    check_arguments,
    check_consolidate,
    check_is_only_one,
    check_is_part,
    check_measure,
    has_own_weights,
    let_answer,
    measure,
    once_each,
)
from tripletmas.protection.guard import Guard

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ModuleNotFoundError:
        raise ImportError('a callback of Lightning needs it: pip install "tripletmas[lightning]"') from None

Batches = Callable[[Trainer, LightningModule], Iterable[Any]]


@final
class ProtectionCallback(Callback):  # pyright: ignore[reportGeneralTypeIssues] (of whichever is there)
    """Protects a LightningModule, or a part of it, while a Trainer fits one task after the other.

    `Trainer(callbacks=[ProtectionCallback(tm.MAS(model))])`; for the next task the same callback goes into the next
    Trainer, or the same Trainer fits again. It attaches the protection to the optimizers of the Trainer while it fits,
    consolidates at the end of each fit, logs the penalty and the share of the weights that is held, and is in the
    Trainer's checkpoints. List it after callbacks that change weights at the end of a fit, as weight averaging does.

    Args:
        protection: of the module that is trained, or of one inside it.
        consolidate: at the end of a fit. True measures each sample once that the training loader draws in an epoch, as
            its data set gives it: with augmentation, if that is part of the data set, and without what
            `on_after_batch_transfer` does. A function (trainer, module) -> batches measures those, of this process's
            share where there are several. False leaves it to you: `protection.consolidate(batches)` after the fit.
        clip: whether the penalty's gradient is added before gradients are clipped, as if the penalty were in the loss,
            or after, so that no clipping weakens it. Under manual optimization, with LBFGS, and with fused optimizers
            under 16-mixed, which Lightning does not clip, it is added as the optimizer steps.
        name: under which it is in checkpoints and logs; another one for a second callback.

    Raises:
        ValueError: for what is no protection. By `Trainer.fit`: where it is one of another model, or no optimizer steps
            its weights; for a checkpoint without its part, unless it holds something already, or with that of
            another model; and where what it learns in a fit would be lost with the process that it runs in.
    """

    def __init__(
        self, protection: Guard, *, consolidate: bool | Batches = True, clip: Clip = "before", name: str = "protection"
    ):
        check_arguments(protection, clip)
        check_consolidate(consolidate)
        self.protection = protection
        self.consolidate = consolidate
        self.clip: Clip = clip
        self.name = name
        self._is_learned = False  # there is a task that was trained, and is not consolidated yet
        self._share_held = math.nan
        self._before_clipping: list[Optimizer] = []
        self._handles: list[RemovableHandle] = []
        self._penalty_left: float | None = None  # right after consolidating
        self._takes_states = True  # of checkpoints: those that a fit goes on from

    # --- while a Trainer fits

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_is_part(self.protection, pl_module, "the LightningModule")
        check_is_only_one(self.protection, getattr(trainer, "callbacks", ()), ProtectionCallback)
        if self.consolidate and _ends_with_its_processes(trainer):
            raise ValueError(
                "what a protection learns in processes that the Trainer starts and ends (ddp_spawn, ddp_notebook) is "
                "lost with them: use strategy='ddp', or consolidate=False and protection.consolidate(batches) after fit"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()
        if self.consolidate is True and isinstance(trainer.train_dataloader, (dict, list, tuple)):
            raise ValueError(
                "there are several training loaders, and consolidate=True takes one: give "
                "ProtectionCallback(..., consolidate=lambda trainer, module: batches), or False"
            )
        for optimizer in trainer.optimizers:
            if not has_own_weights(self.protection, optimizer):
                continue
            before = self.clip == "before" and _calls_before_clipping(trainer, pl_module, optimizer)
            self._handles.append(self.protection.attach(optimizer, clip="before" if before else "after"))
            if before:
                self._before_clipping.append(optimizer)
        if not self._handles:
            raise ValueError(
                "no optimizer of the LightningModule steps a weight that is protected: look at configure_optimizers"
            )
        self._check_left("since the last fit, as test(ckpt_path='best') does, which loads others: consolidate again")
        self._penalty_left, self._is_learned = None, True
        self._share_held = self.protection.coverage().share_held

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if any(each is optimizer for each in self._before_clipping):
            self.protection.add_gradients(optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if trainer.barebones or not trainer._logger_connector.should_update_logs:  # as Lightning's own callbacks ask
            return
        now = {"penalty": self.protection.value().detach(), "share_held": self._share_held}
        pl_module.log_dict({f"{self.name}/{key}": value for key, value in now.items()}, on_step=True, on_epoch=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._consolidate(trainer, pl_module)
        self._detach()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_learned:  # resumed after the last step: Lightning skips what remains of the fit
            self._consolidate(trainer, pl_module)
        self._check_left("by another callback, as averaging at the end of a fit does: list ProtectionCallback after it")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._takes_states = True

    # --- in checkpoints

    @property
    def state_key(self) -> str:
        return f"tripletmas.{self.name}"

    def state_dict(self) -> dict[str, Any]:
        held = {name: whole(value) for name, value in self.protection.state_dict().items()}
        return {"held": held, "measure": measure(self.protection), "is_learned": self._is_learned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._takes_states:
            return
        check_measure(self.protection, state_dict["measure"], "the checkpoint")
        self.protection.load_state_dict(state_dict["held"])
        self._is_learned, self._penalty_left = state_dict["is_learned"], None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._takes_states = trainer.state.fn == "fit"
        is_there = self.state_key in checkpoint.get("callbacks", {})
        if self._takes_states and not is_there and not self.protection.holds:
            raise ValueError(
                f"the checkpoint has no part {self.state_key!r}, so that training would go on unprotected: it was "
                "written without this ProtectionCallback. Load a protection that was saved with these weights first, "
                "or fit without ckpt_path"
            )

    # --- inside

    def _consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.consolidate:
            let_answer(trainer.optimizers)
        if self.consolidate is True:
            self.protection.consolidate(_batches(trainer))
        elif self.consolidate:
            self.protection.consolidate(self.consolidate(trainer, pl_module))
        if self.consolidate:
            self._penalty_left = float(self.protection.value().detach())
        self._is_learned = False

    def _check_left(self, why: str) -> None:
        """Warn of weights that are others than those that were consolidated."""
        left = self._penalty_left
        if left is not None and abs(float(self.protection.value().detach()) - left) > 1e-4 * left:
            warnings.warn(f"the weights that ProtectionCallback consolidated were changed {why}", stacklevel=3)

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._before_clipping = [], []


def _calls_before_clipping(trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> bool:
    """Whether there is a moment before an optimizer's gradients are clipped, in which they are what they will be."""
    unscales_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
    has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
    # the line search of LBFGS wants the penalty's value, which the hook of its step gives it
    return (
        pl_module.automatic_optimization and not isinstance(optimizer, LBFGS) and not (has_scaler and unscales_itself)
    )


def _batches(trainer: Trainer) -> Iterable[Any]:
    """Of one epoch, or of as much of it as is trained on."""
    most = trainer.num_training_batches
    of_stream = trainer.fit_loop.total_batch_idx + 1  # as many as were trained on, of one without an end
    most = None if math.isinf(most) else int(most)
    batches = once_each(trainer.train_dataloader, most, num_batches_of_stream=of_stream)
    if trainer.precision != "64-true":
        return batches
    return map(trainer.precision_plugin.convert_input, batches)  # in the type that the weights have


def _ends_with_its_processes(trainer: Trainer) -> bool:
    """Whether a Trainer fits in processes from which only weights come back."""
    launcher = type(trainer.strategy.launcher)
    return any(each.__name__ == "_MultiProcessingLauncher" for each in launcher.__mro__)
