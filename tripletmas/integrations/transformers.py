"""Protection in the Trainer of transformers, and those that are made of it: Sentence Transformers', trl's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, final

from torch.utils.hooks import RemovableHandle

from tripletmas.integrations.guest import (
    Clip,
    check_arguments,
    check_consolidate,
    check_is_only_one,
    check_is_part,
    check_measure,
    let_answer,
    measure,
    once_each,
)
from tripletmas.protection.file import read_protection
from tripletmas.protection.guard import Guard
from tripletmas.protection.structured.moments import input_importance

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError:
    raise ImportError('a callback of transformers needs it: pip install "tripletmas[transformers]"') from None

Batches = Callable[[Trainer], Iterable[Any]]


@final
class ProtectionCallback(TrainerCallback):
    """Protects a model, or a part of it, while a Trainer trains it on one task after the other.

    `Trainer(..., callbacks=[ProtectionCallback(tm.MAS(model))])`, of transformers, Sentence Transformers or trl, also
    for a model of peft; for the next task the same callback goes into the next Trainer. It attaches the protection to
    the Trainer's optimizer while it trains, consolidates at the end of each `train()`, after the best model has been
    loaded where that is asked for, logs the penalty and the share of the weights that is held by `trainer.log`, and is
    beside the model in each checkpoint, a file that `tm.Protection.load` reads, too.

    Args:
        protection: of the model that is trained, or of one inside it.
        consolidate: at the end of `train()`. True measures each sample once that the training loader draws in an epoch,
            as its data set and collator give it; of Sentence Transformers each column of texts. A function
            (trainer) -> batches measures those, of this process's share where there are several. False leaves it to
            you: `protection.consolidate(batches)` after `train()`.
        clip: whether the penalty's gradient is added before gradients are clipped (`max_grad_norm`, 1.0 by default), as
            if the penalty were in the loss, or after, so that no clipping weakens it.
        name: of its file in checkpoints, `protection.safetensors`, and in logs; another one for a second callback.

    Raises:
        ValueError: for what is no protection. By `Trainer.train`: where it is one of another model; for a
            checkpoint without its file, unless it holds something already, or with that of another model.
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
        self._trainer: Trainer | None = None  # while it trains
        self._handle: RemovableHandle | None = None
        self._share_held = 0.0

    # --- while a Trainer trains

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._leave()  # an earlier training that an error ended
        trainer, resumed_from = _training()
        assert trainer.model is not None
        check_is_part(self.protection, trainer.model, "the Trainer's model")
        check_is_only_one(self.protection, trainer.callback_handler.callbacks, ProtectionCallback)
        if trainer.is_deepspeed_enabled:
            raise ValueError("under DeepSpeed no optimizer of torch steps, and nothing can be held: train without it")
        if resumed_from is not None:
            self._restore(Path(resumed_from, f"{self.name}.safetensors"))
        clip: Clip = self.clip if args.max_grad_norm > 0 else "after"  # where nothing is clipped both are the same
        self._trainer = trainer
        self._handle = self.protection.attach(given["optimizer"], clip=clip)
        if clip == "before":
            _before_clipping(trainer.accelerator)[self] = given["optimizer"]
        self._share_held = self.protection.coverage().share_held

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self._log(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self._log(control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        self.protection.save(folder / f"{self.name}.safetensors")  # all ranks together: the first one writes

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        trainer = self._trainer
        assert trainer
        if self.consolidate:
            let_answer([getattr(given["optimizer"], "optimizer", given["optimizer"])])
        if self.consolidate is True:
            most = state.max_steps * args.gradient_accumulation_steps
            batches = once_each(given["train_dataloader"], num_batches_of_stream=most)
            self.protection.consolidate(_as_the_model_takes_them(trainer, batches))
        elif self.consolidate:
            self.protection.consolidate(self.consolidate(trainer))
        self._leave()

    # --- inside

    def _restore(self, path: Path) -> None:
        if path.exists():
            with read_protection(path, self.protection.model) as (state, settings):
                of_gram = measure(self.protection) | {"function": input_importance.__name__}  # which it does not say
                check_measure(self.protection, settings.get("estimate", of_gram), "it")
                self.protection.load_state_dict(state)
        elif not self.protection.holds:
            raise ValueError(
                f"the checkpoint has no {path.name}, so that training would go on unprotected: {path.parent} was "
                "written without this ProtectionCallback, or not to its end. Resume from an earlier checkpoint, or "
                "load a protection that was saved with these weights first"
            )

    def _log(self, control: TrainerControl) -> None:
        if control.should_log and self._trainer:
            penalty = float(self.protection.value().detach())
            self._trainer.log({f"{self.name}/penalty": penalty, f"{self.name}/share_held": self._share_held})
            control.should_log = True  # what the Trainer has to say is still to come

    def _leave(self) -> None:
        if self._handle:
            self._handle.remove()
        if self._trainer:
            _before_clipping(self._trainer.accelerator).pop(self, None)
        self._trainer = self._handle = None


def _training() -> tuple[Trainer, str | None]:
    """The Trainer whose training has just called, and the folder of the checkpoint that it goes on from.

    It gives its callbacks neither: they stand among the variables of the function that called.
    """
    frame = inspect.currentframe()
    while frame:
        variables = frame.f_locals
        if isinstance(trainer := variables.get("self"), Trainer) and "resume_from_checkpoint" in variables:
            return trainer, variables["resume_from_checkpoint"]
        frame = frame.f_back
    raise ValueError(
        "ProtectionCallback works in the train() of a transformers.Trainer, and was called by another loop"
    )


def _before_clipping(accelerator: Any) -> dict[ProtectionCallback, Any]:
    """Callbacks that add a penalty before an accelerator clips gradients, and the optimizers of these gradients.

    A Trainer has no event between the backward pass and clipping: what it clips with, of this one accelerator, does it
    first.
    """
    clip = vars(accelerator).get("clip_grad_norm_")
    if not isinstance(clip, _AddingFirst):
        clip = accelerator.clip_grad_norm_ = _AddingFirst(accelerator)
    return clip.callbacks


@final
class _AddingFirst:
    """In place of an accelerator's `clip_grad_norm_`."""

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.clip = accelerator.clip_grad_norm_
        self.callbacks: dict[ProtectionCallback, Any] = {}

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not self.callbacks:
            return self.clip(*args, **options)
        accelerator = self.accelerator
        accelerator.unscale_gradients()
        for callback, optimizer in self.callbacks.items():
            callback.protection.add_gradients(optimizer)
        accelerator.unscale_gradients = _nothing  # once is enough
        try:
            return self.clip(*args, **options)
        finally:
            del accelerator.unscale_gradients


def _nothing(optimizer: Any = None) -> None:
    pass


def _as_the_model_takes_them(trainer: Trainer, batches: Iterable[Any]) -> Iterator[Any]:
    """Of a trainer of Sentence Transformers, whose batches have a group of entries for each column of texts, one batch
    for each of these; of others the batches as they are."""
    collect_features = getattr(trainer, "collect_features", None)
    for batch in batches:
        if collect_features is None:
            yield batch
        else:
            yield from collect_features(batch)[0]
