"""Low-rank adaptation (LoRA): a task changes each matrix of weights by a product of two small ones.

The model holds the merged weights W = W_0 + B A at every moment, under its own names: whoever reads or saves it,
measures importance or holds weights in place sees a plain model. Only a step knows of factors: what the gradient with
respect to W has become by then, that of the loss and of all penalties on W, is handed on to them by the chain rule,
they step, and W follows. So nothing has to be merged after a task; the next one begins with new factors.

Source: Hu et al., LoRA, ICLR 2022, with a scale of 1 (lora_alpha = r); a penalty on the product in place of the
factors: EWC-LoRA, arXiv 2602.17559.

Shapes: a weight (rows, ...) counts as a matrix (rows, columns); A (rank, columns), B (rows, rank).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.basics.weights import Params, placed_parameters, trainable, unwrap
from tripletmas.models.parts import last_layer

_RANK = "lora_rank"  # an attribute of an adapted model


def adapt(model: nn.Module, rank: int) -> nn.Module:
    """The model, to be trained by changes of low rank of its linear and convolution layers; the last layer as it is.

    All else (biases, normalisations, tables of embeddings) is frozen. A matrix that two factors would not make smaller
    is trained itself.

    Raises:
        ValueError: for a rank below 1; if there is nothing to adapt.
    """
    if rank < 1:
        raise ValueError(f"lora must be a rank >= 1, or null for none, got {rank}")
    _, last = last_layer(model)
    matrices = _matrices(model)
    if not any(_is_worth_it(each, rank) for each in matrices.values()):
        raise ValueError(
            f"lora {rank}: no linear or convolution layer before the last is so large that changes of rank {rank} are "
            "smaller than itself: take a lower rank, or none"
        )
    trained = {id(each) for each in (*matrices.values(), *last)}
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)
    setattr(unwrap(model), _RANK, rank)
    return model


def factors_of(model: nn.Module) -> Factors | None:
    """New factors for a task of an adapted model; None for any other. A is drawn from torch's global generator."""
    rank = vars(unwrap(model)).get(_RANK)
    return None if rank is None else Factors(model, rank)


class _Factored(NamedTuple):
    weight: nn.Parameter
    down: nn.Parameter  # A
    up: nn.Parameter  # B


class Factors:
    """The factors by which an optimizer that also holds the weights themselves changes them.

    Stores two small matrices for each weight, and the gradient of the weight during a step, as without factors.
    """

    def __init__(self, model: nn.Module, rank: int):
        trained = trainable(model)
        self._of: dict[str, _Factored] = {}
        for name, weight in _matrices(model).items():
            if name in trained and _is_worth_it(weight, rank):
                matrix = weight.detach().flatten(1)
                down = nn.Parameter(matrix.new_empty(rank, matrix.shape[1]))
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # as peft's
                self._of[name] = _Factored(weight, down, nn.Parameter(matrix.new_zeros(len(matrix), rank)))
        self._before: dict[str, tuple[Tensor, Tensor]] = {}  # within a step

    def parameters(self) -> list[nn.Parameter]:
        """A and B of every weight, for the optimizer, beside the weights."""
        return [factor for each in self._of.values() for factor in (each.down, each.up)]

    def attach(self, optimizer: Optimizer) -> None:
        """From now on let the factors step in place of the weights.

        To be called after all else that adds to gradients: hooks run in the order in which they were registered.
        """
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def state_dict(self) -> Params:
        """`NAME/A` and `NAME/B`; with the weights all there is to go on from."""
        return {
            f"{name}/{factor}": each[1 + n].detach() for name, each in self._of.items() for n, factor in enumerate("AB")
        }

    @torch.no_grad()
    def load_state_dict(self, state: Params) -> None:
        """Take over a state that `state_dict` gave.

        Raises:
            ValueError: if it is that of other weights, or of another rank.
        """
        own = self.state_dict()
        if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in own.items()}:
            raise ValueError("the checkpoint has factors (lora) of other weights or another rank than the model")
        for key, value in state.items():
            own[key].copy_(value)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        for name, (weight, down, up) in self._of.items():
            self._before[name] = (down.detach().clone(), up.detach().clone())
            if weight.grad is None:
                continue
            gradient = weight.grad.flatten(1)
            down.grad, up.grad = up.t() @ gradient, gradient @ down.t()
            weight.grad = None  # so that it does not step itself

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        for name, (weight, down, up) in self._of.items():
            down_before, up_before = self._before.pop(name)
            change = torch.addmm(up @ down, up_before, down_before, alpha=-1)
            weight.add_(change.view(weight.shape))


def _matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of linear and convolution layers but the last one, and the packed ones of attention, by name."""
    last = {id(each) for each in last_layer(model)[1]}
    return {
        name: parameter
        for name, (parameter, module) in placed_parameters(model).items()
        if parameter.ndim >= 2
        and id(parameter) not in last
        and isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention))
    }


def _is_worth_it(weight: Tensor, rank: int) -> bool:
    rows, columns = len(weight), weight[0].numel()
    return rank * (rows + columns) < rows * columns
