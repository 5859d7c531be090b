"""The visual view of facts: a network that gives an image a subject's, a predicate's and an object's vector.

Its first layers, the trunk, are shared; then a subject branch and a predicate-object branch go on by themselves. Both
are the last layers of the same model, with weights of their own: no two of the three parts have a tensor in common, so
importance is measured, and weights are held, for each alone.

The model is cut where one module has been called and only its output goes on. torch.fx finds that place, in the forward
methods of the modules that hold it; all others stay whole, as the model has them.

Source: Elhoseiny et al., Sherlock, AAAI 2017: VGG-16, the first three blocks of five shared, a branch to 300 values and
one to 600. The MAS authors' own code for it started both branches from one storage, which made them one branch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor, fx, nn

from tripletmas.basics.sentences import suggestion
from tripletmas.models.making import make_model

_POOLING = (nn.MaxPool2d, nn.AvgPool2d)


def make_visual_view(
    name: str,
    sample_shape: tuple[int, ...],
    *,
    dim: int,
    branch_at: str | None = None,
    options: Mapping[str, object] | None = None,
) -> VisualView:
    """A visual view made of model `name`; weights are drawn from torch's global generator.

    Args:
        name: a model that `make_model` knows.
        sample_shape: (channels, height, width) of an image.
        dim: length of one part's vector; the output is three times as long.
        branch_at: the submodule whose output ends the trunk: "block2", "layer2", "features.16". None: about half of
            the layers that have weights are shared (`_default_cut`).
        options: of the model's constructor, but for dim. With pretrained=True the trunk and each branch start from the
            pretrained weights, each with a copy of its own.

    Raises:
        ValueError: as `make_model`; for a place where the model cannot be cut.
    """
    if dim < 1:
        raise ValueError(f"dim must be >= 1, got {dim}")
    if "dim" in (options or {}):
        raise ValueError("the length of a part's vector is given as dim=, not among the options of the model")
    # two models, so that the weights of the branches are drawn one by one
    first = make_model(name, sample_shape, options={**(options or {}), "dim": dim})
    second = make_model(name, sample_shape, options={**(options or {}), "dim": 2 * dim})
    cut = _default_cut(first, name) if branch_at is None else _cut_by_name(first, name, branch_at)
    trunk, subject = _split(first, name, cut)
    _, predicate_object = _split(second, name, cut)
    # a module that is called before and after the cut would be in both
    return VisualView(copy.deepcopy(trunk), subject, predicate_object, branch_at=cut)


class VisualView(nn.Module):
    """Images (b, c, h, w) -> raw (b, 3 dim): subject | predicate | object, none of them normalised.

    Attributes:
        trunk: what both branches see.
        subject, predicate_object: trunk's output -> (b, dim) and (b, 2 dim).
        branch_at: name of the module of the original model that ends the trunk.
    """

    def __init__(self, trunk: nn.Module, subject: nn.Module, predicate_object: nn.Module, *, branch_at: str):
        super().__init__()
        self.trunk, self.subject, self.predicate_object = trunk, subject, predicate_object
        self.branch_at = branch_at

    def forward(self, images: Tensor) -> Tensor:
        shared = self.trunk(images)
        # a copy, since a branch may begin with a layer that works in place
        return torch.cat([self.subject(shared.clone()), self.predicate_object(shared)], dim=1)


class _Tracer(fx.Tracer):
    """Records the calls in the forward methods of the model and of the modules `opened`; all others stay whole."""

    def __init__(self, opened: set[str]):
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened


def _trace(model: nn.Module, name: str, opened: set[str]) -> fx.Graph:
    graphs = []
    for training in (True, False):
        model.train(training)
        try:
            graphs.append(_Tracer(opened).trace(model))
        except Exception as error:  # what a forward method does with a value that stands for a tensor is open
            raise ValueError(f"{_opened(name, opened)} cannot be traced ({error}): {_ADVICE}") from error
    model.train()
    if str(graphs[0]) != str(graphs[1]):
        raise ValueError(f"{_opened(name, opened)} computes other things in training: {_ADVICE}")
    return graphs[0]


_ADVICE = "branch at a module that holds it, or choose another model"


def _opened(name: str, opened: set[str]) -> str:
    return f"the forward method of {name}" + (f" or of {', '.join(sorted(opened))}" if opened else "")


def _split(model: nn.Module, name: str, cut: str) -> tuple[nn.Module, nn.Module]:
    """The model up to the last call of module `cut`, and what follows: the first's output -> the model's."""
    graph = _trace(model, name, _holders(cut))
    last = _last_calls(graph)[cut]
    before, after = fx.Graph(), fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    part = before
    for node in graph.nodes:
        values[node] = part.node_copy(node, lambda known: values[known])
        if node is last:
            before.output(values[node])
            part = after
            values[node] = after.placeholder("shared")
    return fx.GraphModule(model, before, "Trunk"), fx.GraphModule(model, after, "Branch")


def _cut_by_name(model: nn.Module, name: str, branch_at: str) -> str:
    modules = dict(model.named_modules())
    # a pretrained backbone stands behind the normalisation of its input; its layers' names are the same
    cut = branch_at if branch_at in modules else f"backbone.{branch_at}"
    if not branch_at or cut not in modules:
        known = [path.removeprefix("backbone.") for path in modules if path]
        raise ValueError(f"{name} has no module '{branch_at}' to branch at{suggestion(branch_at, known)}")
    places = _places(model, _trace(model, name, _holders(cut)))
    if cut not in places:
        possible = ", ".join(path.removeprefix("backbone.") for path in places)
        raise ValueError(
            f"{name} cannot branch at '{branch_at}': its output must be all that later layers with weights need; "
            f"possible are {possible or 'none beside it'}"
        )
    return cut


def _default_cut(model: nn.Module, name: str) -> str:
    """The end of a module after about half of the layers: from a sixth to three fifths of them, the nearest to half.

    A pooling layer is preferred where one lies there (VGG-16: the third, as in Sherlock); a large module that no other
    place leaves is opened. ResNets branch after layer2, conv4 after block2.
    """
    opened: set[str] = set()
    while True:
        graph = _trace(model, name, opened)
        paths = list(_last_calls(graph))
        counts = dict(zip(paths, accumulate(_num_layers(model, path) for path in paths), strict=True))
        total = counts[paths[-1]]
        places = [path for path in _places(model, graph) if 5 * total <= 30 * counts[path] <= 18 * total]
        if places:
            pools = [path for path in places if isinstance(model.get_submodule(path), _POOLING)]
            # of equally near ones the earlier count; of equal counts the last, behind norm and activation
            return min(reversed(pools or places), key=lambda path: (abs(2 * counts[path] - total), counts[path]))
        middle = next(path for path in paths if 2 * counts[path] >= total)
        if not list(model.get_submodule(middle).children()):
            raise ValueError(f"{name} has no place in the middle to branch at: give branch_at, or more layers")
        opened.add(middle)


def _places(model: nn.Module, graph: fx.Graph) -> list[str]:
    """The modules, in the order of their calls, after which one value goes on, and layers with weights follow."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=-1) for node in graph.nodes}
    calls = _last_calls(graph)
    last_layer = max((order[node] for path, node in calls.items() if _num_layers(model, path)), default=-1)

    def goes_on(node: fx.Node) -> list[fx.Node]:
        """The values up to here that are used later."""
        return [other for other, number in order.items() if number <= order[node] < last_use[other]]

    return [path for path, node in calls.items() if order[node] < last_layer and goes_on(node) == [node]]


def _last_calls(graph: fx.Graph) -> dict[str, fx.Node]:
    """The last call of each module, in the order of these calls."""
    calls: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.pop(node.target, None)
            calls[node.target] = node
    return calls


def _holders(path: str) -> set[str]:
    """`a` and `a.b` for `a.b.c`."""
    names = path.split(".")
    return {".".join(names[:end]) for end in range(1, len(names))}


def _num_layers(model: nn.Module, path: str) -> int:
    """The number of weights of a module that are matrices or more: neither biases nor norms."""
    return sum(parameter.ndim > 1 for parameter in model.get_submodule(path).parameters())
