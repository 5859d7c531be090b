"""How much each weight matters to what a task was trained on: Fisher information, or squared gradients of its loss."""

from __future__ import annotations

import torch
from torch import nn

from tripletmas.basics.shares import share
from tripletmas.basics.weights import Params, device_of
from tripletmas.data.batches import class_balanced_batches, shared_loader
from tripletmas.data.tasks import Task
from tripletmas.objectives.objective import Objective
from tripletmas.protection.importance.fisher import FisherLabels, fisher_importance, squared_gradient_importance


def fisher_of_task(
    model: nn.Module,
    task: Task,
    objective: Objective,
    *,
    labels: FisherLabels = "sampled",
    batch_size: int = 256,
    loss_batch_size: int = 32,
    samples_per_class: int = 4,
) -> Params:
    """The importance of the model's weights on the task's training samples, without augmentation.

    In recognition, the exact diagonal Fisher information of the task's own head on the embedding; the head itself gets
    none. A metric loss has no Fisher information: there, `squared_gradient_importance` over class-balanced batches of
    one pass, which depends on their size. Draws are a function of torch's seed (`torch.initial_seed()`), which the
    training loop sets at the end of each task.

    Args:
        labels: recognition only: as in `fisher_importance`.
        batch_size: recognition only: samples that are read at once; the result does not depend on it.
        loss_batch_size: metric losses only: samples in a batch whose loss is differentiated.
        samples_per_class: metric losses only: of each class in such a batch.

    Raises:
        ValueError: if nothing is important: a satisfied hinge, a saturated classifier.
    """
    data, seed, workers = task.train.plain(), torch.initial_seed(), objective.embed.num_workers
    if likelihood := objective.likelihood(task):
        (logits, positions), device = likelihood, device_of(model)
        if labels != "true":  # the others ask for none; of several processes each has its own samples
            batches = shared_loader(data, batch_size, num_workers=workers)
            return fisher_importance(model, batches, labels=labels, forward=logits, seed=seed)
        own = data.subset(list(share(len(data)))).loader(batch_size, num_workers=workers)
        batches = ((inputs, positions(classes.to(device))) for inputs, classes in own)
        return fisher_importance(model, batches, labels=labels, forward=logits, seed=seed)
    balanced = class_balanced_batches(
        data.labels,
        batch_size=loss_batch_size,
        samples_per_class=samples_per_class,
        generator=torch.Generator().manual_seed(seed),
    )
    own = [balanced[number] for number in share(len(balanced))]
    return squared_gradient_importance(model, data.loader(batches=own, num_workers=workers), objective)
