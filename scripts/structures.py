"""Two protections that were tried beside Gram and left out, as strategies of one's own; docs/gram.md has the table.

Both hold the direction u = F / |F| of the embedding, by which a search goes, in place of what each layer answers: how
much u of old inputs changes when weights move by D, as a picture of the first order. One backward pass of <v, u> over
the data of a task measures it, v drawn from a normal distribution for each sample, since then E[<v, du>^2] = |du|^2.

Each task is held to the weights that it was learned with. What earlier tasks need is kept for each by itself, so that
no sum of theirs is an approximation; memory grows with the tasks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import tripletmas as tm
from tripletmas.data.batches import shared_loader
from tripletmas.data.tasks import Task


class Kron(tm.Strategy):
    """Hold the direction of embeddings by Kronecker factors: tr(G D A D^T) for each layer and earlier task.

    A is the mean over samples of the sum over positions of a a^T, of the layer's inputs and a 1 for its bias; G that
    over samples and positions of g g^T, the gradient of <v, u> at the layer's output. Layers are linear ones,
    convolutions without groups and batch norm in eval mode (a 2 x 2 for each channel); other parameters are left free.

    Args:
        strength: weight of the penalty.

    Source: Grosse and Martens, A Kronecker-factored approximate Fisher matrix for convolution layers, ICML 2016, has
    these factors for a convolution.
    """

    freezes_batchnorm = True

    def __init__(self, *, strength: float = 100.0):
        self.strength, self.kept = strength, {}

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def loss(self, model: nn.Module, inputs: Tensor, embeddings: Tensor) -> Tensor | None:
        total = []
        for name, layer in layers(model):
            for task in range(self._num_tasks()):
                then, a, g = (self.kept[f"{task}/{name}/{what}"] for what in ("weights", "a", "g"))
                total.append(form(matrix(layer) - then, a, g))
        return self.strength * torch.stack(total).sum() if total else None

    def after_task(self, model: nn.Module, task: Task) -> None:
        model.eval()
        sums: dict[str, list[Tensor]] = {}
        samples = 0
        for batch, *_ in shared_loader(task.train.plain(), num_workers=0):
            samples += len(batch)
            for name, a, g in factors(model, batch):
                into = sums.setdefault(name, [torch.zeros_like(a), torch.zeros_like(g)])
                for total, part in zip(into, (a, g), strict=True):
                    total += part
        number = self._num_tasks()
        for name, layer in layers(model):
            a, g = (total / samples for total in sums[name])
            self.kept |= {
                f"{number}/{name}/{what}": of
                for what, of in (("weights", matrix(layer).detach().clone()), ("a", a), ("g", g))
            }

    def _num_tasks(self) -> int:
        return len({key.partition("/")[0] for key in self.kept})

    def state_dict(self) -> dict[str, Tensor]:
        return self.kept

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.kept = dict(state)


class Direction(tm.Strategy):
    """Hold the direction of embeddings by its diagonal, the mean over samples of the square of each one's d<v, u> / dw.

    Args:
        strength: weight of the penalty, the sum over earlier tasks and weights of importance * (w - w then)^2.
    """

    freezes_batchnorm = True

    def __init__(self, *, strength: float = 100.0):
        self.strength, self.kept = strength, {}

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def loss(self, model: nn.Module, inputs: Tensor, embeddings: Tensor) -> Tensor | None:
        total = [
            (self.kept[f"{task}/{name}/importance"] * (weight - self.kept[f"{task}/{name}/weights"]).square()).sum()
            for name, weight in model.named_parameters()
            for task in range(len({key.partition("/")[0] for key in self.kept}))
        ]
        return self.strength * torch.stack(total).sum() if total else None

    def after_task(self, model: nn.Module, task: Task) -> None:
        model.eval()
        weights = {name: each.detach() for name, each in model.named_parameters()}
        total, samples = {name: torch.zeros_like(each) for name, each in weights.items()}, 0
        for batch, *_ in shared_loader(task.train.plain(), num_workers=0):
            samples += len(batch)
            for name, each in squares(model, weights, batch).items():
                total[name] += each
        number = len({key.partition("/")[0] for key in self.kept})
        for name, each in total.items():
            self.kept |= {
                f"{number}/{name}/importance": each / samples,
                f"{number}/{name}/weights": weights[name].clone(),
            }

    def state_dict(self) -> dict[str, Tensor]:
        return self.kept

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.kept = dict(state)


def form(moved: Tensor, a: Tensor, g: Tensor) -> Tensor:
    """tr(G D A D^T), a scalar; of batch norm the sum over channels, each with its own A and a number for G."""
    if a.ndim == 2:
        return (g @ moved @ a * moved).sum()
    return (g * torch.einsum("ci,cij,cj->c", moved, a, moved)).sum()


# --- what both measure


def direction(embeddings: Tensor) -> Tensor:
    """A scalar for each sample, <v, u>."""
    u = nn.functional.normalize(embeddings, dim=1)
    return (torch.randn_like(u) * u).sum(dim=1)


def squares(model: nn.Module, weights: dict[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
    """The sum over a batch of the square of each sample's gradient of <v, u>."""

    def of_one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return direction(functional_call(model, weights, (sample[None],)))[0]

    found = vmap(grad(of_one), in_dims=(None, 0), randomness="different")(weights, batch)
    return {name: each.square().sum(dim=0) for name, each in found.items()}


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those that Kron holds."""
    kinds = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)
    return ((name, each) for name, each in model.named_modules() if isinstance(each, kinds))


def matrix(layer: nn.Module) -> Tensor:
    """(outputs, inputs), the bias a last column; of batch norm (channels, 2)."""
    weight, bias = layer.weight, layer.bias
    columns = [weight.flatten(1) if weight.ndim > 1 else weight[:, None]]
    return torch.cat([*columns, bias[:, None]] if bias is not None else columns, dim=1)


def factors(model: nn.Module, batch: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """(name, sum over samples and positions of a a^T, sum over samples of the mean over positions of g g^T) of a batch.

    Of batch norm (channels, 2, 2) and (channels,).
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0].detach(), output)

        return hook

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers(model)]
    try:
        value = direction(model(batch)).sum()
    finally:
        for each in hooks:
            each.remove()
    gradients = torch.autograd.grad(value, [output for _, output in seen.values()])
    modules = dict(layers(model))
    return [
        (name, *of_layer(modules[name], inputs, gradient))
        for (name, (inputs, _)), gradient in zip(seen.items(), gradients, strict=True)
    ]


def of_layer(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The same of one layer."""
    if isinstance(layer, nn.BatchNorm2d):
        shape = (1, -1, 1, 1)
        plain = (inputs - layer.running_mean.view(shape)) / (layer.running_var + layer.eps).sqrt().view(shape)
        rows = torch.stack([plain, torch.ones_like(plain)], dim=-1).transpose(0, 1).flatten(1, 3)
        return rows.mT @ rows, gradient.square().sum(dim=(0, 2, 3)) / gradient[0, 0].numel()
    if isinstance(layer, nn.Conv2d):
        unfolded = nn.functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        inputs, gradient = unfolded.mT, gradient.flatten(2).mT
    else:
        inputs, gradient = inputs[:, None], gradient[:, None]
    if layer.bias is not None:
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)
    rows, slopes = inputs.flatten(0, 1), gradient.flatten(0, 1)
    return rows.mT @ rows, slopes.mT @ slopes / gradient.shape[1]
