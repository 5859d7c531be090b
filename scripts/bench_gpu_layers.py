"""The part `layers` of `bench_gpu.py`: the kernels of importance, a layer at a time and tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from bench_gpu_parts import Asked, sentence, tf32
from bench_importance import timed
from torch import Tensor
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_weight

from tripletmas.protection.engine import fused
from tripletmas.protection.engine.rule import Layout, add_products
from tripletmas.protection.engine.rules import Convolution

# samples, positions, rows, columns
LINEAR = {
    "ViT-B/16, attention": (64, 197, 768, 768),
    "ViT-B/16, mlp": (64, 197, 3072, 768),
    "MiniLM, mlp": (256, 32, 1536, 384),
}
# samples, channels, size, rows, kernel, stride, groups
CONVOLUTIONS = {
    "ResNet-50, first": (64, 3, 224, 64, 7, 2, 1),
    "ResNet-50, 64 channels": (64, 64, 56, 64, 3, 1, 1),
    "ResNet-50, 512 channels": (64, 512, 7, 512, 3, 1, 1),
    "MobileNet, depthwise": (64, 96, 56, 96, 5, 1, 96),
}
OTHER_TILES = [(128, 128, 32, 8, 2), (128, 128, 32, 8, 3), (128, 64, 32, 4, 3), (64, 64, 32, 4, 4), (64, 128, 64, 8, 2)]


def layers(asked: Asked) -> None:
    """Milliseconds of the kernel, of its twin, and of the plain gradient of the weight; error to the twin in float32.

    First each layer with the tile of the table, then, while there is time, with others.
    """
    if asked.small:
        made = {"linear": (linear, (3, 5, 6, 7)), "convolution": (convolution, (2, 3, 6, 4, 3, 1, 1))}
        tiles, precisions = [(16, 16, 16, 4, 2)], ["ieee"]
    else:
        made = {name: (linear, sizes) for name, sizes in LINEAR.items()}
        made |= {name: (convolution, sizes) for name, sizes in CONVOLUTIONS.items()}
        tiles, precisions = OTHER_TILES, ["tf32", "ieee", "tf32x3"]
    for name, (make, sizes) in made.items():
        layer = make(asked.device, *sizes)
        for allowed in (False, True):
            with tf32(allowed):
                row = {"layer": name, "precision": "tf32" if allowed else "float32"}
                asked.note(**row, way="plain", **layer_time(asked, layer.plain))
                asked.note(**row, way="twin", **layer_time(asked, partial(layer.twin, layer.total)))
        for precision in precisions:
            note_kernel(asked, name, layer, layer.launch, precision)
    for tile in tiles:
        for name, (make, sizes) in made.items():
            layer = make(asked.device, *sizes)
            note_kernel(asked, name, layer, with_tile(layer.launch, fused.Tile(*tile)), precisions[0])


def note_kernel(asked: Asked, name: str, layer: Layer, launch: fused.Launch, precision: str) -> None:
    launch = launch._replace(constants=launch.constants | {"PRECISION": precision})
    row = {"layer": name, "precision": precision, "way": "kernel", "tile": "x".join(map(str, launch.tile))}
    try:
        found = {"off by": apart(launch, layer), **layer_time(asked, partial(fused.run, launch, layer.total))}
        asked.note(**row, **found)
    except Exception as error:  # as a tile that does not fit into the memory of a processor
        asked.note(**row, error=sentence(error))


class Layer(NamedTuple):
    """A sum over samples for one weight, the three ways to it, and where it goes."""

    launch: fused.Launch
    twin: Callable[[Tensor], None]
    plain: Callable[[], object]
    total: Tensor


def linear(device: str, n: int, p: int, rows: int, columns: int) -> Layer:
    left, right = torch.randn(n, p, rows, device=device), torch.randn(n, p, columns, device=device)
    twin = partial(add_products, left=left, right=right, power=1)
    plain = partial(torch.matmul, left.flatten(0, 1).t(), right.flatten(0, 1))
    return Layer(fused.products(left, right, 1), twin, plain, torch.zeros(rows, columns, device=device))


def convolution(
    device: str, n: int, channels: int, size: int, rows: int, kernel: int, stride: int, groups: int
) -> Layer:
    weight = torch.randn(rows, channels // groups, kernel, kernel, device=device)
    images = torch.randn(n, channels, size, size, device=device)
    rule = Convolution(images, weight, None, stride, kernel // 2, 1, groups)
    grad = torch.randn_like(conv2d(images, weight, None, stride, kernel // 2, 1, groups))
    rule.backward(grad, Layout(0), n)
    geometry = fused.Geometry(rule.stride, rule.padding, rule.dilation, groups)
    launch = fused.windows(weight.shape, grad.unsqueeze(1), images.unsqueeze(1), 1, geometry)
    plain = partial(conv2d_weight, images, weight.shape, grad, stride, kernel // 2, 1, groups)
    return Layer(launch, partial(rule._add_by_torch, power=1), plain, torch.zeros_like(weight))


def with_tile(launch: fused.Launch, tile: fused.Tile) -> fused.Launch:
    sizes = launch.sizes
    columns = sizes.get("columns") or sizes["channels"] * sizes["kernel_height"] * sizes["kernel_width"]
    return launch._replace(tile=tile, tiles=-(-sizes["rows"] // tile.rows) * -(-columns // tile.columns))


def apart(launch: fused.Launch, layer: Layer) -> float:
    """How far the kernel's sum is from its twin's, relative to the norm of that."""
    found, expected = torch.zeros_like(layer.total), torch.zeros_like(layer.total)
    fused.run(launch, found)
    with tf32(False):
        layer.twin(expected)
    return float((found - expected).norm() / expected.norm())


def layer_time(asked: Asked, function: Callable[[], object]) -> dict[str, float]:
    times = 1 if asked.small else 5
    function()
    took = min(timed(lambda: [function() for _ in range(times)], torch.device(asked.device)) for _ in range(2))
    return {"ms": 1000 * took / times}
