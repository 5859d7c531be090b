"""Models in which weights are used in every way that the importance engine must know, or must notice it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Architecture(NamedTuple):
    make: Callable[[], nn.Module]
    samples: Callable[[int], Tensor]
    slow: str | None = None  # a module that takes the slow path
    one_by_one: bool = False  # which torch.func cannot take either


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.inner(x.relu()))


class ResidualInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.two, self.norm2 = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.two(F.relu_(self.norm1(self.one(x)))))
        y += x
        return F.relu_(y).flatten(1)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 2, 3, padding=1), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.one(x).relu()], 1)
        x = torch.cat([x, self.two(x).relu()], 1)
        return self.head(x.mean((2, 3)))


class Twice(nn.Module):
    """One layer called twice, and a bias tied to that of another layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.bias = self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.layer(self.layer(x).tanh()).relu())


class TiedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).sigmoid())


class TiedTransposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x).tanh() @ self.down.weight


class SharedConvolution(nn.Module):
    """A convolution at two scales, and its weight once more in a place for which there is no rule."""

    def __init__(self, elsewhere: bool):
        super().__init__()
        self.layer, self.head, self.elsewhere = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3), elsewhere

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(F.max_pool2d(self.layer(x).relu(), 2)).mean((2, 3))
        return self.head(y) + (
            torch.einsum("oikl,nihw->no", self.layer.weight, x).mean(1, True) if self.elsewhere else 0
        )


class Words(nn.Module):
    def __init__(self, padding: int | None = None):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 5, padding_idx=padding), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).mean(1))


class Recurrent(nn.Module):
    """What it says at every step, and what it remembers in the end, matter."""

    def __init__(self, cells: type[nn.Module], **options: Any):
        super().__init__()
        self.enter, self.cells = nn.Linear(3, 3), cells(3, 4, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        steps = x if self.cells.batch_first else x.transpose(0, 1)
        outputs, end = self.cells(steps)
        outputs = outputs if self.cells.batch_first else outputs.transpose(0, 1)
        ends = end if isinstance(end, tuple) else (end,)
        return torch.cat([outputs.sum(1), outputs[:, 1], *(each[0] for each in ends), *(each[-1] for each in ends)], 1)


class FirstState(nn.Module):
    """What an LSTM remembers at first is learned, or comes from the sample; its steps are those of the samples' own."""

    def __init__(self):
        super().__init__()
        self.cells, self.state = nn.LSTM(3, 4), nn.Parameter(torch.randn(1, 1, 4))
        self.enter = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = self.state.expand(-1, len(x), -1).contiguous(), self.enter(x[:, 0]).unsqueeze(0)
        return self.cells(x.transpose(0, 1), state)[0][-1]


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.GRU(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, [x.shape[1]] * len(x), batch_first=True)
        return self.head(self.cells(packed)[1][0])


class Cells(nn.Module):
    """Step by step, by hand: the steps that there are for one sample are there for each."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.plain = nn.LSTMCell(3, 4), nn.GRUCell(4, 3), nn.RNNCell(3, 3, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = None, None, None
        for step in x.unbind(1):
            first = self.lstm(step, first)
            second = self.gru(first[0], second)
            third = self.plain(second, third)
        assert first is not None
        return torch.cat([first[1], second, third], 1)  # pyright: ignore[reportArgumentType] - tensors by now


class SharedBlock(nn.Module):
    """As ALBERT does: one block of layers of every kind, several times."""

    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)
        self.layer, self.mix, self.scale = nn.Linear(4, 4), nn.Conv1d(4, 4, 3, padding=1), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x)
        for _ in range(3):
            y = y + self.scale * self.layer(self.norm(y)).tanh() + self.words(x.flip(1))
            y = y + self.mix(y.transpose(1, 2)).transpose(1, 2)
        return y.flatten(1)


class Attention(nn.Module):
    def __init__(self, batch_first: bool):
        super().__init__()
        self.attend, self.norm = nn.MultiheadAttention(4, 2, batch_first=batch_first), nn.LayerNorm(4)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.norm(x + self.attend(x, x, x)[0])
        return (x if self.batch_first else x.transpose(0, 1)).flatten(1)


class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, add_bias_kv=True)
        self.queries = nn.Parameter(torch.randn(2, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        queries = self.queries.expand(-1, x.shape[1], -1)
        return self.attend(queries, x, x)[0].transpose(0, 1).flatten(1)


class Tokens(nn.Module):
    """Free parameters: a class token, positions, a scale, a gain computed from a parameter."""

    def __init__(self):
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 4, 4))
        self.scale, self.log_gain = nn.Parameter(torch.rand(4)), nn.Parameter(torch.zeros(()))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = x + self.scale * self.layer(x).tanh()
        x *= self.log_gain.exp()
        return x.flatten(1)


class FreeInOtherWays(nn.Module):
    """Free parameters in functions without a rule: concatenated, multiplied from the left."""

    def __init__(self):
        super().__init__()
        self.mixer, self.row, self.head = (
            nn.Parameter(torch.randn(5, 4)),
            nn.Parameter(torch.randn(4)),
            nn.Linear(24, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([torch.cat([self.mixer @ each, self.row[None]]) for each in x])
        return self.head(x.flatten(1))


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.positive, self.negative = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.positive(x) if x.sum() > 0 else self.negative(x)


class ReadsItsMask(nn.Module):
    """As encoders of text do: a mask of ones is left out, and positions and kinds are looked up for each sample."""

    def __init__(self):
        super().__init__()
        self.words, self.positions, self.kinds = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Embedding(2, 4)
        self.attend, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (n, 2, 5): words and mask
        words, mask = x.unbind(1)
        kinds = self.kinds(torch.zeros_like(self.positions.weight[:, 0]).long().expand(len(x), -1))
        kinds = kinds + self.positions(torch.arange(5, device=x.device)).unsqueeze(0)
        x = self.words(words) + kinds
        scores = self.attend(x) @ x.transpose(1, 2)
        if not mask.all():
            scores = scores.masked_fill(mask.unsqueeze(1) == 0, -torch.inf)
        return self.head((scores.softmax(2) @ x)[:, 0])


def masked(n: int) -> Tensor:
    """Every third has a mask of ones."""
    mask = (torch.arange(5) < torch.tensor([5, 2, 3]).repeat(n)[:n].unsqueeze(1)).long()
    return torch.stack([torch.randint(9, (n, 5)), mask], dim=1)


class InfluencingEachOther(nn.Module):
    """Centred by the batch: only a sample alone says what a sample's own output is."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.head(x - 0.5 * x.mean(0, keepdim=True))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight**3

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grads[0] * weight**3, (3 * grads[0] * x * weight**2).sum(0)


class OwnFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.weight = nn.Linear(6, 4), nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(self.layer(x), self.weight)  # pyright: ignore[reportReturnType]


class UsedPartly(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Windows(nn.Module):
    """A linear layer and a bias that see windows: samples merged with another dimension, in one order or the other."""

    def __init__(self, minor: bool):
        super().__init__()
        self.layer, self.bias, self.norm, self.minor = (
            nn.Linear(3, 3),
            nn.Parameter(torch.randn(2, 3)),
            nn.LayerNorm(3),
            minor,
        )

    def forward(self, x: Tensor) -> Tensor:  # (n, 4, 2, 3)
        n = len(x)
        x = x.transpose(0, 1).reshape(4 * n, 2, 3) if self.minor else x.reshape(4 * n, 2, 3)
        x = self.norm(self.layer(x) + self.bias)
        return (x.view(4, n, 6).transpose(0, 1) if self.minor else x.view(n, 4, 6)).flatten(1)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 3)
        self.excite = torchvision.ops.SqueezeExcitation(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.excite(self.layer(x)).flatten(1)


class LowRank(nn.Module):
    """What an adapter does to a frozen layer."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(6, 4), nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.up(self.down(x))


class Cached(nn.Module):
    """The weight is computed once for a forward pass, and used in two places."""

    def __init__(self):
        super().__init__()
        self.layer = parametrizations.orthogonal(nn.Linear(4, 4, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        with nn.utils.parametrize.cached():
            return self.layer(self.layer(x).tanh())


class UnderNoGrad(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.trunk(x)
        return self.head(x)


class Scratch(nn.Module):
    """A tensor that starts as a constant and gets data written into it."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        scratch = torch.zeros(len(x), 6, dtype=x.dtype)
        scratch[:, :3] = x
        scratch[:, 3:] = self.layer(x)
        return scratch * self.scale


def settled(model: nn.Module, *shape: int) -> nn.Module:
    """With running statistics that are not those of a fresh layer."""
    model.train()
    model(torch.randn(16, *shape) + 1)
    return model


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten())


def randn(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def frozen_trunk() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    return model


def convolution(name: str, *args, **options) -> nn.Module:
    return flat(getattr(nn, name)(*args, **options), nn.Tanh())


def vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 12, num_classes=3)
    nn.init.normal_(model.heads[0].weight)  # torchvision starts with zeros
    return model


def swin() -> nn.Module:
    return torchvision.models.swin_transformer.SwinTransformer([2, 2], 4, [1, 1], [1, 2], [2, 2], num_classes=3)


def encoder() -> nn.Module:
    return flat(nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True, norm_first=True))


images = randn(2, 6, 6)
ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Architecture(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), randn(6)),
    "in-place": Architecture(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(True), nn.Linear(8, 3)), randn(6)),
    "conv": Architecture(
        lambda: settled(
            nn.Sequential(
                *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)),
                *(nn.Flatten(), nn.Linear(16, 3)),
            ),
            2,
            4,
            4,
        ),
        randn(2, 4, 4),
    ),
    "residual": Architecture(Residual, randn(6)),
    "residual in place": Architecture(lambda: settled(ResidualInPlace(), 2, 6, 6), images),
    "dense": Architecture(Dense, images),
    "layer called twice": Architecture(Twice, randn(6)),
    "tied weights": Architecture(TiedWeights, randn(6)),
    "tied, transposed": Architecture(TiedTransposed, randn(6)),
    "convolution called twice": Architecture(lambda: SharedConvolution(False), images),
    "convolution used elsewhere": Architecture(lambda: SharedConvolution(True), images, slow="layer"),
    "squeeze-excite": Architecture(SqueezeExcite, images),
    # convolutions
    "conv1d": Architecture(lambda: convolution("Conv1d", 4, 6, 3, stride=2, padding=1, groups=2), randn(4, 9)),
    "conv2d strided, dilated": Architecture(
        lambda: convolution("Conv2d", 2, 3, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 2)), images
    ),
    "conv2d, few positions": Architecture(lambda: convolution("Conv2d", 2, 3, 3, padding=1), randn(2, 3, 3)),
    "conv2d pointwise": Architecture(lambda: convolution("Conv2d", 2, 3, 1, stride=2, bias=False), images),
    "conv2d grouped": Architecture(lambda: convolution("Conv2d", 4, 6, 3, groups=2), randn(4, 5, 5)),
    "conv2d depthwise": Architecture(lambda: convolution("Conv2d", 3, 6, 3, groups=3, padding=1), randn(3, 5, 5)),
    "conv2d reflecting": Architecture(
        lambda: convolution("Conv2d", 2, 3, 3, padding=2, padding_mode="reflect"), images
    ),
    "conv2d circular": Architecture(lambda: convolution("Conv2d", 2, 3, 3, padding=1, padding_mode="circular"), images),
    "conv2d same": Architecture(lambda: convolution("Conv2d", 2, 3, (4, 3), padding="same", dilation=2), images),
    "conv2d same, one zero more at the end": Architecture(
        lambda: convolution("Conv2d", 2, 3, (4, 2), padding="same"), images
    ),
    "conv2d valid": Architecture(lambda: convolution("Conv2d", 2, 3, 3, padding="valid"), images),
    "conv2d channels last": Architecture(
        lambda: convolution("Conv2d", 2, 3, 3).to(memory_format=torch.channels_last), images
    ),
    "conv2d channels last, few positions": Architecture(
        lambda: convolution("Conv2d", 2, 3, 3).to(memory_format=torch.channels_last), randn(2, 4, 4)
    ),
    "conv2d and samples channels last": Architecture(
        lambda: convolution("Conv2d", 2, 3, 3, padding=1).to(memory_format=torch.channels_last),
        lambda n: torch.randn(n, 2, 5, 5).to(memory_format=torch.channels_last),
    ),
    "conv2d grouped, channels last": Architecture(
        lambda: convolution("Conv2d", 4, 6, 3, groups=2, padding=1).to(memory_format=torch.channels_last),
        lambda n: torch.randn(n, 4, 5, 5).to(memory_format=torch.channels_last),
    ),
    "conv2d depthwise, channels last": Architecture(
        lambda: convolution("Conv2d", 3, 6, 3, groups=3, padding=1).to(memory_format=torch.channels_last),
        lambda n: torch.randn(n, 3, 5, 5).to(memory_format=torch.channels_last),
    ),
    "conv2d grouped, samples in channels last": Architecture(
        lambda: convolution("Conv2d", 4, 4, 3, groups=2, stride=2, padding=1),
        lambda n: torch.randn(n, 4, 5, 5).to(memory_format=torch.channels_last),
    ),
    "transposed conv2d grouped, channels last": Architecture(
        lambda: convolution("ConvTranspose2d", 4, 6, 3, stride=2, groups=2).to(memory_format=torch.channels_last),
        lambda n: torch.randn(n, 4, 3, 3).to(memory_format=torch.channels_last),
    ),
    "conv2d, two by two": Architecture(lambda: convolution("Conv2d", 2, 3, 3, padding=1), randn(2, 2, 2)),
    "conv2d, corners": Architecture(lambda: convolution("Conv2d", 2, 3, (3, 2), padding=(1, 1)), randn(2, 1, 2)),
    "conv2d, one by one": Architecture(lambda: convolution("Conv2d", 2, 3, 3, padding=1), randn(2, 1, 1)),
    "conv3d": Architecture(lambda: convolution("Conv3d", 2, 3, (2, 3, 2), padding=1), randn(2, 3, 4, 3)),
    "transposed conv1d": Architecture(lambda: convolution("ConvTranspose1d", 3, 2, 3, stride=2), randn(3, 5)),
    "transposed conv2d": Architecture(
        lambda: convolution("ConvTranspose2d", 4, 6, 3, stride=2, output_padding=1, groups=2), randn(4, 3, 3)
    ),
    "transposed conv3d": Architecture(lambda: convolution("ConvTranspose3d", 2, 3, 2), randn(2, 3, 2, 2)),
    # normalisations and small things
    "batch norm 1d": Architecture(lambda: settled(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), 6), randn(6)),
    "batch norm 1d on sequences": Architecture(lambda: settled(flat(nn.BatchNorm1d(3)), 3, 5), randn(3, 5)),
    "batch norm 3d": Architecture(lambda: settled(flat(nn.BatchNorm3d(2)), 2, 2, 3, 2), randn(2, 2, 3, 2)),
    "layer norm": Architecture(lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5)), randn(6)),
    "layer norm of maps": Architecture(lambda: flat(nn.LayerNorm([3, 4])), randn(2, 3, 4)),
    "group norm": Architecture(lambda: flat(nn.GroupNorm(2, 4)), randn(4, 3, 3)),
    "instance norm": Architecture(lambda: flat(nn.InstanceNorm2d(2, affine=True)), images),
    "rms norm": Architecture(lambda: nn.Sequential(nn.Linear(6, 5), nn.RMSNorm(5)), randn(6)),
    "prelu": Architecture(lambda: nn.Sequential(nn.Linear(6, 5), nn.PReLU()), randn(6)),
    "prelu of channels": Architecture(lambda: flat(nn.Conv2d(2, 3, 3), nn.PReLU(3)), images),
    "words": Architecture(Words, lambda n: torch.randint(9, (n, 4))),
    "words with padding": Architecture(lambda: Words(padding=-2), lambda n: torch.randint(9, (n, 4))),
    "tokens, positions, scales": Architecture(Tokens, randn(3, 4)),
    "free parameters otherwise": Architecture(FreeInOtherWays, randn(4, 4), slow="mixer"),
    "rows of vectors": Architecture(lambda: nn.Linear(3, 2), randn(4, 3)),
    "rows of vectors, in place": Architecture(lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU(True)), randn(4, 3)),
    "windows": Architecture(lambda: Windows(False), randn(4, 2, 3)),
    "windows, other order": Architecture(lambda: Windows(True), randn(4, 2, 3)),
    "data written into a constant": Architecture(Scratch, randn(3)),
    # attention, recurrence
    "attention": Architecture(lambda: Attention(True), randn(3, 4)),
    "attention, positions first": Architecture(lambda: Attention(False), randn(7, 4)),  # as many as samples
    "cross attention": Architecture(CrossAttention, randn(5, 3)),
    "transformer layer": Architecture(encoder, randn(3, 4)),
    "vit": Architecture(vit, randn(3, 8, 8)),
    "swin": Architecture(swin, randn(3, 16, 16)),
    "lstm": Architecture(lambda: Recurrent(nn.LSTM, batch_first=True), randn(5, 3)),
    "lstm, both ways, two layers": Architecture(
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.5), randn(7, 3)
    ),
    "lstm with a projection": Architecture(
        lambda: Recurrent(nn.LSTM, proj_size=2, num_layers=2, bidirectional=True, batch_first=True), randn(4, 3)
    ),
    "lstm with a projection, no bias": Architecture(
        lambda: Recurrent(nn.LSTM, proj_size=2, bias=False, num_layers=2), randn(4, 3)
    ),
    "gru": Architecture(lambda: Recurrent(nn.GRU, batch_first=True), randn(5, 3)),
    "gru, both ways, no bias": Architecture(lambda: Recurrent(nn.GRU, bidirectional=True, bias=False), randn(5, 3)),
    "rnn": Architecture(lambda: Recurrent(nn.RNN, num_layers=2), randn(5, 3)),
    "rnn with relu": Architecture(
        lambda: Recurrent(nn.RNN, nonlinearity="relu", batch_first=True, bidirectional=True), randn(5, 3)
    ),
    "lstm with a first state": Architecture(FirstState, randn(4, 3)),
    "cells of recurrent layers": Architecture(Cells, randn(3, 3)),
    "packed sequences": Architecture(Packed, randn(4, 3), slow="cells", one_by_one=True),
    "one block several times": Architecture(SharedBlock, lambda n: torch.randint(9, (n, 5))),
    # parametrisations and adapters
    "weight norm": Architecture(lambda: parametrizations.weight_norm(nn.Linear(6, 4)), randn(6)),
    "weight norm, convolution": Architecture(lambda: flat(parametrizations.weight_norm(nn.Conv2d(2, 3, 3))), images),
    "spectral norm": Architecture(lambda: parametrizations.spectral_norm(nn.Linear(6, 4)), randn(6)),
    "computed weight in two places": Architecture(Cached, randn(4)),
    "low rank": Architecture(LowRank, randn(6)),
    # what is not so simple
    "frozen trunk": Architecture(frozen_trunk, randn(6)),
    "no gradient inside": Architecture(UnderNoGrad, randn(6)),
    "partly used": Architecture(UsedPartly, randn(6)),
    "own autograd function": Architecture(OwnFunction, randn(6), slow="weight", one_by_one=True),
    "data dependent": Architecture(DataDependent, randn(6)),
    "reads its mask": Architecture(ReadsItsMask, masked),
    "samples influence each other": Architecture(InfluencingEachOther, randn(6), slow="layer"),
}


def made(name: str, count: int = 9, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """The model, seeded and in float64, and samples for it."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    built = architecture.make().to(dtype)
    x = architecture.samples(count)
    return built, x.to(dtype) if x.is_floating_point() else x
