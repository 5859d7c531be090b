"""Recurrent layers as the linear maps and elementwise functions that they are made of, not as one call of torch's.

What goes into a layer is mapped for all steps at once; what it remembers, step by step. The gradient of a weight that
is used at every step is, for each sample, the sum over steps: `kinds.Several` takes them together.

Shapes: n samples, (n, dim) at a step; weights as torch has them, (gates * hidden, dim), the gates one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]  # what a layer remembers: its output, and of an LSTM its cells


class Weights(NamedTuple):
    """Of one layer in one direction."""

    of_input: Tensor
    of_state: Tensor
    input_bias: Tensor | None
    state_bias: Tensor | None
    projection: Tensor | None


def _lstm(gates: Tensor, state: State, weights: Weights) -> State:
    gates = gates + F.linear(state[0], weights.of_state, weights.state_bias)
    enter, forget, new, leave = gates.chunk(4, 1)
    cells = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
    output = leave.sigmoid() * cells.tanh()
    return (output if weights.projection is None else F.linear(output, weights.projection)), cells


def _gru(gates: Tensor, state: State, weights: Weights) -> State:
    of_state = F.linear(state[0], weights.of_state, weights.state_bias)
    reset, keep, new = gates.chunk(3, 1)
    state_reset, state_keep, state_new = of_state.chunk(3, 1)
    keep = (keep + state_keep).sigmoid()
    new = (new + (reset + state_reset).sigmoid() * state_new).tanh()
    return (new + keep * (state[0] - new),)


def _plain(gates: Tensor, state: State, weights: Weights, *, activation: Callable[[Tensor], Tensor]) -> State:
    return (activation(gates + F.linear(state[0], weights.of_state, weights.state_bias)),)


Step = Callable[[Tensor, State, Weights], State]
_tanh, _relu = partial(_plain, activation=torch.tanh), partial(_plain, activation=torch.relu)


def _layers(
    step: Step,
    input: Tensor,
    state: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    is_bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """As `torch.lstm` and its like: the output of the last layer, and what each remembers in the end."""
    start = (state,) if isinstance(state, Tensor) else tuple(state)
    time, directions = int(batch_first), 1 + int(is_bidirectional)
    size = len(weights) // (num_layers * directions)
    ends: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = _weights(weights[number * size : (number + 1) * size], has_biases)
            first = tuple(each[number] for each in start)
            output, end = _over_time(step, input, first, own, time, is_backwards=direction == 1)
            outputs.append(output)
            ends.append(end)
        input = torch.cat(outputs, 2) if is_bidirectional else outputs[0]
    return input, *(torch.stack(each) for each in zip(*ends, strict=True))


def _weights(given: Sequence[Tensor], has_biases: bool) -> Weights:
    input_bias, state_bias = given[2:4] if has_biases else (None, None)
    return Weights(given[0], given[1], input_bias, state_bias, given[-1] if len(given) % 2 else None)


def _over_time(
    step: Step, input: Tensor, state: State, weights: Weights, time: int, *, is_backwards: bool
) -> tuple[Tensor, State]:
    gates = F.linear(input, weights.of_input, weights.input_bias).unbind(time)
    outputs = []
    for each in reversed(gates) if is_backwards else gates:
        state = step(each, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if is_backwards else outputs, time), state


def _cell(
    step: Step,
    input: Tensor,
    state: Tensor | Sequence[Tensor],
    of_input: Tensor,
    of_state: Tensor,
    input_bias: Tensor | None = None,
    state_bias: Tensor | None = None,
) -> Any:
    """As `torch.lstm_cell` and its like: one step."""
    weights = Weights(of_input, of_state, input_bias, state_bias, None)
    start = (state,) if isinstance(state, Tensor) else tuple(state)
    end = step(F.linear(input, of_input, input_bias), start, weights)
    return end[0] if isinstance(state, Tensor) else end


_UNROLLED: dict[Callable[..., Any], partial[Any]] = {
    torch.lstm: partial(_layers, _lstm),
    torch.gru: partial(_layers, _gru),
    torch.rnn_tanh: partial(_layers, _tanh),
    torch.rnn_relu: partial(_layers, _relu),
    torch.lstm_cell: partial(_cell, _lstm),
    torch.gru_cell: partial(_cell, _gru),
    torch.rnn_tanh_cell: partial(_cell, _tanh),
    torch.rnn_relu_cell: partial(_cell, _relu),
}
_PLACE_OF_DROPOUT, _PLACE_OF_TRAIN = 5, 6  # among the arguments of a layer's call


def unrolled(function: Callable[..., Any], args: tuple, kwargs: dict) -> Callable[..., Any] | None:
    """What to call in place of a recurrent layer; None for all else, for packed sequences, and where it drops out."""
    instead = _UNROLLED.get(function)
    if instead is None or kwargs:
        return None
    if instead.func is _layers:
        is_packed = not isinstance(args[3], bool)  # another argument stands before the state
        if is_packed or (args[_PLACE_OF_DROPOUT] and args[_PLACE_OF_TRAIN]):
            return None
    return instead
