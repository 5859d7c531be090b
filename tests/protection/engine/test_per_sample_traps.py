"""Models that would mislead an engine that takes a batch at once. Each was found by trying; each equals the loop."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, made
from importance_cases import SLOW, assert_same
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance

L = nn.Linear


class Fn(nn.Module):
    """A model whose forward pass is a function of it and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **modules: nn.Module):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def with_forces(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return torch.cat([h, torch.autograd.grad(s.b(h).sum(), h, create_graph=True)[0]], 1)


def only_the_gradient(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.b(h - h.mean(0).detach() + h.mean(0))


def all_but_the_last(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.b(h + h.flip(0).cumsum(0).flip(0))


def hooked(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    if h.requires_grad:
        h.register_hook(lambda g: g / g.norm())
    return s.b(h)


def unpadded(s: Any, x: Tensor) -> Tensor:
    real = x[..., 0] > 0
    out = torch.zeros(*x.shape[:2], 4, dtype=x.dtype)
    out[real] = s.a(x[real])
    return out.flatten(1)


def experts(s: Any, x: Tensor) -> Tensor:
    chosen = s.gate(x).argmax(1)
    out = torch.zeros(len(x), 4, dtype=x.dtype)
    for number, expert in enumerate((s.a, s.b)):
        rows = torch.where(chosen == number)[0]
        out = out.index_add(0, rows, expert(x[rows]))
    return out


def changed_weight(s: Any, x: Tensor) -> Tensor:
    weight = s.a.weight.clone()
    y = F.linear(x, weight)
    weight.mul_(3)
    return F.linear(y.tanh(), weight)


def wakes_up(s: Any, x: Tensor) -> Tensor:
    return s.b(s.a(x).detach().requires_grad_().tanh()) + s.c(x)


def written_through_a_view(s: Any, x: Tensor) -> Tensor:
    h, t = s.a(x), torch.zeros(len(x), 4, dtype=x.dtype)
    t[:].copy_(x[:, :4])
    return h * 2 if t.sum() > 0 else h


def nested(s: Any, x: Tensor) -> Tensor:
    """Off some samples two values are read, off some one."""
    if (x[:, 0] > 0).all():
        return s.a(x) if (x[:, 1] > 0).all() else s.b(x)
    return s.a(s.b(x))


def coupled_if_positive(s: Any, x: Tensor) -> Tensor:
    return only_the_gradient(s, x) if (x[:, 0] > 0).all() else s.b(s.a(x))


def positive_last() -> Tensor:
    """The two ways in turns; the first of which gradients are looked at is the harmless one."""
    x = torch.randn(6, 4).abs()
    x[1::2] *= -1
    return x


def scaled_by_its_largest(s: Any, x: Tensor) -> Tensor:
    return s.a(x) * float(x.abs().max())


def catching(s: Any, x: Tensor) -> Tensor:
    """Whatever goes wrong in the branch, it has an answer."""
    try:
        return s.a(x) if (x[:, 0] > 0).all() else s.b(x)
    except Exception:
        return s.a(s.b(x))


def checkpointed(s: Any, x: Tensor) -> Tensor:
    return s.b(checkpoint(s.c, s.a(x), use_reentrant=False))


def one_alone(s: Any, x: Tensor) -> Tensor:
    return s.a(x) if len(x) == 1 else s.b(x)


def windows_of_constants(s: Any, x: Tensor) -> Tensor:
    """Their values say nothing about their order."""
    windows = s.a(torch.zeros_like(x).transpose(0, 1).reshape(-1, 4)).view(3, len(x), 4).transpose(0, 1)
    return s.b(windows * x).flatten(1)


def square(**others: nn.Module) -> dict[str, nn.Module]:
    return {"a": L(4, 4), "b": L(4, 4), **others}


class Trap(NamedTuple):
    forward: Callable[[Any, Tensor], Tensor]
    modules: Callable[[], dict[str, nn.Module]] = square
    samples: Callable[[], Tensor] = lambda: torch.randn(6, 4)
    says: str = ""  # of the slow path


NO_RULE, OTHER_GRADIENTS = "no rule for how it is used", "a sample has other gradients in a batch than alone"
READS_DATA = "the model reads values off its data"
TRAPS: dict[str, Trap] = {
    "a slow layer first": Trap(
        lambda s, x: s.b(s.a(x, x)),
        lambda: square(a=nn.Bilinear(4, 4, 4)),
        says=NO_RULE,
    ),
    "a bag of words first": Trap(
        lambda s, x: s.b(s.a(x)),
        lambda: square(a=nn.EmbeddingBag(7, 4)),
        lambda: torch.randint(7, (6, 3)),
        says=NO_RULE,
    ),
    "clipped words first": Trap(
        lambda s, x: s.b(s.a(x).sum(1)),
        lambda: square(a=nn.Embedding(7, 4, scale_grad_by_freq=True)),
        lambda: torch.randint(7, (6, 1)),
        says=NO_RULE,
    ),
    "a leaf inside": Trap(wakes_up, lambda: square(c=L(4, 4))),
    "gradients inside": Trap(
        with_forces, lambda: square(b=nn.Sequential(L(4, 5), nn.Tanh(), L(5, 1))), says="differentiates in its forward"
    ),
    "coupled in the gradient only": Trap(only_the_gradient, says=OTHER_GRADIENTS),
    "coupled but for the last": Trap(all_but_the_last, says=OTHER_GRADIENTS),
    "a hook on the gradient": Trap(hooked, says=OTHER_GRADIENTS),
    "weakly coupled": Trap(lambda s, x: s.b(s.a(x) - 0.02 * s.a(x).mean(0)), says="influence each other"),
    "unpadded": Trap(unpadded, samples=lambda: torch.randn(6, 3, 4), says=READS_DATA),
    "experts": Trap(experts, lambda: square(gate=L(4, 2)), says=READS_DATA),
    "a computed weight changed in place": Trap(changed_weight, says="changed in place after a layer used it"),
    "a branch by torch.is_nonzero": Trap(lambda s, x: s.a(x) if torch.is_nonzero(x.sum() > 0) else s.b(x)),
    "a branch that a batch takes and no sample": Trap(
        lambda s, x: s.a(x) * (2 if x.sum() > 10 else 1), samples=lambda: torch.ones(6, 4), says="others for a sample"
    ),
    "branches on branches": Trap(nested),
    "values of each sample's own": Trap(scaled_by_its_largest),
    "coupled in one of two ways": Trap(coupled_if_positive, samples=positive_last, says=OTHER_GRADIENTS),
    "a branch by numpy": Trap(lambda s, x: s.a(x) if np.asarray(x.detach()).sum() > 0 else s.b(x), says=READS_DATA),
    "a branch on a constant with data": Trap(written_through_a_view),
    "what is read is caught": Trap(catching),
    "a branch on the number of samples": Trap(one_alone, says="by other calls than a sample alone"),
    "an order that cannot be told": Trap(
        windows_of_constants,
        samples=lambda: torch.randn(6, 3, 4),
        says="importance of a (2 of 4 parameters): the slow path",
    ),
    "activation checkpointing": Trap(
        checkpointed, lambda: square(c=nn.Sequential(L(4, 4), nn.Tanh(), L(4, 4))), says="checkpointing"
    ),
}


def reference(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return oracles.mas_importance(model, x.split(1))


@pytest.mark.parametrize("count", [6, 4])  # 4: as many samples as channels
@pytest.mark.parametrize("name", TRAPS)
def test_equals_the_loop(name: str, count: int, caplog: pytest.LogCaptureFixture):
    if name == "activation checkpointing" and not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
        pytest.skip("this version of torch does not tell")
    torch.manual_seed(0)
    trap = TRAPS[name]
    model, x = Fn(trap.forward, **trap.modules()).double(), trap.samples()[:count]
    x = x.double() if x.is_floating_point() else x
    caplog.set_level("INFO", "tripletmas")
    assert_same(mas_importance(model, [x]), reference(model, x))
    assert trap.says in caplog.text
    assert_same(mas_importance(model, x.split(3)), reference(model, x))


def test_values_of_each_sample_s_own_in_a_large_batch(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model, x = Fn(scaled_by_its_largest, **square()).double(), torch.randn(20, 4).double()
    caplog.set_level("INFO", "tripletmas")
    assert_same(mas_importance(model, [x]), reference(model, x))
    assert "most samples have their own" in caplog.text


def test_a_sample_that_is_not_finite_is_named_where_samples_are_parted_by_what_is_read():
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.a(x) if (x > 0).all() else s.b(x)

    torch.manual_seed(0)
    x = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).unsqueeze(1).repeat(1, 4)
    x[3, 0] = torch.inf  # in the part that is measured first, of the negative ones, the second
    with pytest.raises(ValueError, match="not finite for sample 9"):
        mas_importance(Fn(forward, **square()), [x.nan_to_num(posinf=-1.0), x])


def test_the_stem_is_outside_the_model():
    torch.manual_seed(0)
    stem, model, x = L(4, 3).double(), nn.Sequential(L(3, 3), nn.Tanh(), L(3, 2)).double(), torch.randn(6, 4).double()
    found = mas_importance(model, [x], forward=lambda model, x: model(stem(x)))
    assert_same(found, oracles.mas_importance(model, x.split(1), lambda model, x: model(stem(x))))
    assert stem.weight.grad is not None  # (the oracle's)


# models that process batches in different ways


def merged(s: Any, x: Tensor) -> Tensor:
    n, length, width = x.shape
    return s.b(s.a(x.transpose(0, 1).reshape(length * n, width)).tanh().view(length, n, -1)).sum(0)


def reads_long_ones(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return (h * 2 if x.shape[1] > 2 and x.sum() > 0 else h).sum(1)


def one_layer_more_for_long_ones(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    return (s.b(x) if x.shape[1] > 2 else x).mean(1)


def without_a_rule_for_long_ones(s: Any, x: Tensor) -> Tensor:
    """What was measured of a weight before it became slow stays."""
    return s.a(x) * s.b.bias if x.shape[1] <= 2 else torch.einsum("nlw,w->nlw", s.a(x), s.b.bias)


def coupled_in_the_gradient_of_long_ones(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    return s.b(x - x.mean(0).detach() + x.mean(0) if x.shape[1] > 2 else x).sum(1)


LATER = {  # -> whether it takes the slow path
    merged: False,
    reads_long_ones: False,
    one_layer_more_for_long_ones: False,
    without_a_rule_for_long_ones: True,
    coupled_in_the_gradient_of_long_ones: True,
}


@pytest.mark.parametrize("forward", LATER)
def test_later_batches_are_looked_at_too(forward: Callable, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(1)
    model = Fn(forward, **square()).double()
    batches = [torch.randn(shape).double() for shape in ((5, 1, 4), (5, 3, 4), (2, 2, 4), (4, 5, 4))]
    caplog.set_level("INFO", "tripletmas")
    found = mas_importance(model, batches)
    assert_same(found, oracles.mas_importance(model, [sample for batch in batches for sample in batch.split(1)]))
    assert (SLOW in caplog.text) == LATER[forward]


def test_autocast_inside_the_model():
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return s.b(s.a(x).relu()).float()

    torch.manual_seed(0)
    model, x = Fn(forward, **square()), torch.randn(6, 4)
    assert_same(mas_importance(model, [x]), reference(model, x), rtol=0.05)


def test_outputs_and_gradients_of_other_kinds():
    torch.manual_seed(0)
    model, x = L(4, 1).double(), torch.randn(6, 4).double()
    assert_same(mas_importance(model, [x], forward=lambda m, x: m(x)[:, 0]), reference(model, x))  # (n,)
    words = nn.Embedding(7, 3, sparse=True).double()
    ids = torch.randint(7, (5, 2))
    dense = nn.Embedding.from_pretrained(words.weight.detach().clone(), freeze=False)
    expected = oracles.mas_importance(dense, ids.split(1))
    for batches in ([ids], ids.split(1)):
        assert_same(mas_importance(words, batches), expected)
    lengths = [torch.randn(3, length, 4).double() for length in (2, 5)]
    assert mas_importance(model, lengths, output="vector")["weight"].shape == (1, 4)
    zero = nn.Sequential(L(4, 3), L(3, 2))
    nn.init.zeros_(zero[1].weight)
    nn.init.zeros_(zero[1].bias)
    with pytest.raises(ValueError, match="every embedding is zero"):
        mas_importance(zero, [torch.randn(3, 4)], output="vector", relative=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_part():
    torch.manual_seed(0)
    x = torch.randn(6, 4).double()
    model = nn.Sequential(torch.jit.script(nn.Sequential(L(4, 4), nn.Tanh())), L(4, 3)).double()
    assert_same(mas_importance(model, [x]), reference(model, x))


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = L(4, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.replaced = self.replaced + 1
        return self.layer(x)


def test_buffers_that_the_model_changes_are_put_back():
    model = Counts()
    seen, replaced = model.seen, model.replaced
    mas_importance(model, [torch.randn(5, 4)])
    assert model.seen is seen
    assert model.replaced is replaced
    assert (float(seen), replaced.tolist()) == (0.0, [0.0, 0.0])


def test_local_layers_with_something_in_between():
    torch.manual_seed(0)
    x = torch.randn(6, 4).double()
    plain = nn.Sequential(L(4, 3), nn.ReLU()).double()
    between = nn.Sequential(plain[0], nn.Dropout(0.5), nn.ReLU()).eval()
    assert_same(local_mas_importance(between, [x]), local_mas_importance(plain, [x]))
    bounded = nn.Sequential(plain[0], nn.Threshold(0.0, 0.0))
    assert_same(local_mas_importance(bounded, [x]), local_mas_importance(plain, [x]))

    def written(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        h[:, 0] = 0
        return h.relu()

    linear = local_mas_importance(nn.Sequential(plain[0]), [x])
    assert_same(local_mas_importance(Fn(written, a=plain[0]), [x]), {f"a.{k[2:]}": v for k, v in linear.items()})


def test_local_layers_that_differ_from_batch_to_batch():
    def forward(s: Any, x: Tensor) -> Tensor:
        return (s.b if x.shape[1] > 2 else s.c)(s.a(x))

    torch.manual_seed(0)
    model = Fn(forward, c=L(4, 4), **square()).double()
    short, long = torch.randn(3, 2, 4).double(), torch.randn(3, 5, 4).double()
    found = local_mas_importance(model, [short, long], relative=True)
    only = local_mas_importance(Fn(forward, c=model.c, a=model.a, b=model.b), [long], relative=True)
    torch.testing.assert_close(found["b.weight"], only["b.weight"])  # relative to what it gave itself


# --- what a user is told

PAGE = Path(__file__).resolve().parents[3] / "docs" / "importance.md"
SAID = re.compile(rf"importance of .+ \((\d+) of (\d+) parameters\): {SLOW}, (.+?) \((.+)\); [\d.]+ of [\d.]+ s")

# The page about importance lists what takes the slow path, in a table that is made here of what the engine says.
# what a user calls it -> an architecture or a trap, in which it is
LISTED = {
    "a free parameter in `einsum`, a concatenation or the like": "free parameters otherwise",
    "`nn.Bilinear`": "a slow layer first",
    "`nn.EmbeddingBag`": "a bag of words first",
    "`nn.Embedding(scale_grad_by_freq=True)`": "clipped words first",
    "packed sequences in a recurrent layer": "packed sequences",
    "a `torch.autograd.Function` of your own": "own autograd function",
    "a convolution whose weight is used elsewhere, too": "convolution used elsewhere",
    "a weight that is computed, and changed in place later": "a computed weight changed in place",
    "samples that are merged in an order that cannot be told": "an order that cannot be told",
    "batch norm without running statistics": "samples influence each other",
    "samples that influence each other a little": "weakly coupled",
    "samples that influence each other's gradients alone": "coupled in the gradient only",
    "the same, of all samples but the last": "coupled but for the last",
    "the same, in one of two branches": "coupled in one of two ways",
    "a hook that changes a gradient by those of other samples": "a hook on the gradient",
    "a forward pass that differentiates": "gradients inside",
    "activation checkpointing": "activation checkpointing",
    "unpadding: rows picked by values": "unpadded",
    "a mixture of experts": "experts",
    "a branch on values by way of numpy": "a branch by numpy",
    "a branch that the batch takes, and no sample alone": "a branch that a batch takes and no sample",
    "a branch on the number of samples": "a branch on the number of samples",
}


def case(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name in ARCHITECTURES:
        return made(name, count=6)
    trap = TRAPS[name]
    x = trap.samples()
    return Fn(trap.forward, **trap.modules()).double(), x.double() if x.is_floating_point() else x


def line_of(words: str, said: str) -> str:
    found = SAID.search(said)
    assert found, f"{words} takes the fast path: {said}"
    some, all_of_them, how, why = found.groups()
    why = why.partition("; ")[0]  # the rest is torch's
    whose = "the whole model" if some == all_of_them else "these weights"
    return f"| {words} | {whose} | {how} | {why} |"


@pytest.mark.filterwarnings("ignore")
def test_the_page_lists_what_takes_the_slow_path(caplog: pytest.LogCaptureFixture):
    if not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
        pytest.skip("this version of torch does not tell of checkpointing")
    lines = ["| what | for | how | as the log says |", "| --- | --- | --- | --- |"]
    for words, name in LISTED.items():
        caplog.clear()
        with caplog.at_level(logging.INFO, "tripletmas"):
            model, x = case(name)
            mas_importance(model, [x])
        lines.append(line_of(words, caplog.text))
    table = "\n".join(lines)
    assert table in PAGE.read_text(encoding="utf-8"), f"docs/importance.md should have:\n\n{table}\n"


def test_all_that_is_known_to_be_slow_is_listed():
    slow = {name for name, each in ARCHITECTURES.items() if each.slow}
    slow |= {name for name, each in TRAPS.items() if each.says}
    assert slow == set(LISTED.values())
