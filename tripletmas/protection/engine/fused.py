"""Where the kernels of `kernels` do the sums over samples, and with which tiles; elsewhere their twins in torch do.

They are used on GPUs of NVIDIA from compute capability 8.0 on, where Triton is installed, for weights whose importance
is kept in float32. What a GPU makes of a kernel is compared with the twin the first time that it runs as it was
compiled, and at the first fault, of whatever kind, the twins take over, with a warning: nobody gets numbers of a kernel
that was not found right on his own machine.

Shapes: n samples, p positions.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Use = Literal["auto", "always", "never"]
Twin = Callable[[Tensor], None]  # adds to the total what a kernel would add

_DTYPES = torch.float32, torch.bfloat16, torch.float16
# Kernels count in 32 bits inside a sample, and inside the weight.
_MOST_NUMBERS = 2**31
# So many programs fill the largest GPUs about twice: fewer tiles than that, and a weight's samples are parted among
# several programs, whose sums are added at the end. No property of the GPU, on which a result would depend.
_PROGRAMS = 264
# How far the sums of a kernel may be from those of its twin, relative to their norm, by how it multiplies.
_TOLERANCE = {"ieee": 1e-4, "tf32": 2e-2}


class Tile(NamedTuple):
    """Of a weight, what one program does; the positions it multiplies at once; threads, and loads under way."""

    rows: int
    columns: int
    positions: int
    warps: int
    stages: int

    def options(self) -> dict[str, int | bool]:
        """What the compiler is told: to round a * b + c once, as before 3.9, which warns where that is left open."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


# (most rows, most columns, tile): the first that fits. Chosen so that nothing is spilled out of registers for compute
# capability 8.0 and 9.0 (tests compile and look); not by time on a GPU, for which `scripts/bench_gpu.py` asks.
_ANY = 2**31
_TILES = (
    (16, 16, Tile(16, 16, 64, 1, 3)),
    (16, _ANY, Tile(16, 64, 32, 2, 3)),
    (_ANY, 16, Tile(64, 16, 32, 2, 3)),
    (32, 32, Tile(32, 32, 32, 2, 3)),
    (_ANY, 127, Tile(64, 64, 32, 4, 3)),
    (127, _ANY, Tile(64, 64, 32, 4, 3)),
    (_ANY, _ANY, Tile(64, 128, 32, 8, 3)),
)
# Addresses of windows take registers, too.
_WINDOW_TILES = (
    (16, 16, Tile(16, 16, 64, 4, 3)),
    (16, _ANY, Tile(16, 32, 32, 4, 3)),
    (_ANY, 16, Tile(64, 16, 32, 4, 3)),
    (32, 32, Tile(32, 32, 32, 4, 3)),
    (_ANY, _ANY, Tile(64, 64, 16, 4, 3)),
)


class Geometry(NamedTuple):
    """Of a convolution in one or two dimensions."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Launch(NamedTuple):
    """A kernel by name, with all it is given but where it writes.

    Attributes:
        tiles: of the weight, in all groups: what its samples may be parted among.
        sizes: whole numbers, by the kernel's names.
    """

    kernel: str
    tensors: tuple[Tensor, Tensor]
    num_samples: int
    tiles: int
    groups: int
    sizes: dict[str, int]
    constants: dict[str, Any]
    tile: Tile


_use: Use = "auto"
_proved: set[tuple] = set()  # kernels as they were compiled
_failed: set[torch.device] = set()


@contextmanager
def used(when: Use) -> Iterator[None]:
    """Inside it, kernels are used where they can be ("auto"), wherever they apply, also in Triton's interpreter and
    unproved ("always": what fails is an error), or not at all ("never")."""
    global _use
    before, _use = _use, when
    try:
        yield
    finally:
        _use = before


def add_products(total: Tensor, left: Tensor, right: Tensor, power: int, *, otherwise: Twin) -> None:
    """total += sum_k |left_k^T right_k|^power: left (n, p, rows), right (n, p, columns), total (rows, columns).

    At one position it is the twin: that is one product of matrices, without a gradient of a single sample.
    """
    applies = left.shape[1] > 1 and _applies(total, left, right)
    _add(total, products(left, right, power) if applies else None, otherwise)


def add_windows(
    total: Tensor, grad: Tensor, images: Tensor, power: int, geometry: Geometry, *, otherwise: Twin
) -> None:
    """total += sum_k |gradient_k|^power of the weight of a convolution in one or two dimensions.

    Args:
        total: (rows, channels / groups, *kernel).
        grad: (n, repeats, rows, ...): for each of the weight's rows a number at each place of the kernel.
        images: (n, repeats, channels, ...), over which the kernel goes.
    """
    applies = total.ndim in (3, 4) and _applies(total, grad, images)
    _add(total, windows(total.shape, grad, images, power, geometry) if applies else None, otherwise)


def _applies(total: Tensor, left: Tensor, right: Tensor) -> bool:
    if _use == "never" or total.dtype != torch.float32 or left.dtype not in _DTYPES or left.dtype != right.dtype:
        return False
    if 0 in (*total.shape, *left.shape, *right.shape):
        return False
    if max(total.numel(), *map(_extent, (left[0], right[0]))) >= _MOST_NUMBERS:
        return False
    return _use == "always" or (left.device not in _failed and _is_there(left.device))


def _extent(tensor: Tensor) -> int:
    """How far in memory its last number is from its first."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@cache
def _is_there(device: torch.device) -> bool:
    """Whether kernels can run on this device."""
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return importlib.util.find_spec("triton") is not None


# --- from tensors to a launch


def products(left: Tensor, right: Tensor, power: int) -> Launch:
    num_samples, positions, rows = left.shape
    columns = right.shape[2]
    tile = tile_for(rows, columns, positions)
    sizes = {"positions": positions, "rows": rows, "columns": columns}
    sizes |= _strides(left, "left_sample", "left_position", "left_row")
    sizes |= _strides(right, "right_sample", "right_position", "right_column")
    constants = {"POWER": power, "PRECISION": _precision("matmul", left)}
    tiles = -(-rows // tile.rows) * -(-columns // tile.columns)
    return Launch("sum_products", (left, right), num_samples, tiles, 1, sizes, constants, tile)


def windows(shape: torch.Size, grad: Tensor, images: Tensor, power: int, geometry: Geometry) -> Launch:
    """Args: shape: of the weight, (rows, channels / groups, *kernel)."""
    stride, padding, dilation, groups = geometry
    if len(shape) == 3:  # in one dimension: in two, of which the first is 1
        shape, grad, images = torch.Size((*shape[:2], 1, shape[2])), grad.unsqueeze(3), images.unsqueeze(3)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    places, grad = grad.shape[3:], grad.flatten(3)  # a copy where its rows do not follow one another
    rows, columns = shape[0] // groups, math.prod(shape[1:])
    tile = tile_for(rows, columns, grad.shape[3], of_windows=True)
    sizes = {"repeats": grad.shape[1], "positions": grad.shape[3], "rows": rows, "channels": shape[1]}
    sizes |= {"width": places[1], "image_height": images.shape[3], "image_width": images.shape[4]}
    pairs = {"kernel": shape[2:], "stride": stride, "padding": padding, "dilation": dilation}
    for name, (first, second) in pairs.items():
        ends = ("height", "width") if name == "kernel" else ("y", "x")
        sizes |= {f"{name}_{ends[0]}": first, f"{name}_{ends[1]}": second}
    sizes |= _strides(grad, "grad_sample", "grad_repeat", "grad_row", "grad_position")
    sizes |= _strides(images, "image_sample", "image_repeat", "image_channel", "image_y", "image_x")
    constants = {"POWER": power, "PRECISION": _precision("conv", grad)}
    constants["CHANNELS_LAST"] = int(sizes["image_channel"] == 1 and shape[1] > 1)
    tiles = -(-rows // tile.rows) * -(-columns // tile.columns)
    return Launch("sum_windows", (grad, images), len(grad), tiles, groups, sizes, constants, tile)


def tile_for(rows: int, columns: int, positions: int, *, of_windows: bool = False) -> Tile:
    table = _WINDOW_TILES if of_windows else _TILES
    tile = next(tile for most_rows, most_columns, tile in table if rows <= most_rows and columns <= most_columns)
    enough = 16 if positions <= 16 else 32 if positions <= 32 else 64
    return tile._replace(positions=min(tile.positions, enough))


def _strides(tensor: Tensor, *names: str) -> dict[str, int]:
    return dict(zip(names, tensor.stride(), strict=True))


def _precision(operation: Literal["matmul", "conv"], tensor: Tensor) -> str:
    """How a kernel multiplies: as "tf32" where torch may multiply float32 so, by its own setting for this operation."""
    backend = torch.backends.cuda if operation == "matmul" else torch.backends.cudnn
    setting = getattr(getattr(backend, operation, None), "fp32_precision", None)
    if setting is None:  # older versions of torch
        is_allowed = (torch.backends.cuda.matmul if operation == "matmul" else torch.backends.cudnn).allow_tf32
    else:
        everywhere = getattr(torch.backends, "fp32_precision", "ieee")
        is_allowed = (everywhere if setting == "none" else setting) == "tf32"
    return "tf32" if is_allowed and tensor.dtype == torch.float32 else "ieee"


# --- from a launch to a sum


def _add(total: Tensor, launch: Launch | None, otherwise: Twin) -> None:
    if launch is None:
        otherwise(total)
    elif _use == "always" or _compiled(launch, total) in _proved:
        run(launch, total)
    else:
        _prove(launch, total, otherwise)


def run(launch: Launch, total: Tensor) -> None:
    """total += what the kernel sums."""
    samples_of_one, parts = _parts(launch)
    out = total.unsqueeze(0) if parts == 1 else total.new_empty(parts, *total.shape)
    names = ["part", "row", "column"] if launch.kernel == "sum_products" else ["part", "row", "channel", "y", "x"]
    strides = out if launch.kernel == "sum_products" or total.ndim == 4 else out.unsqueeze(3)
    sizes = launch.sizes | _strides(strides, *(f"out_{name}" for name in names))
    sizes |= {"num_samples": launch.num_samples, "samples_of_one": samples_of_one}
    rows, columns, positions = launch.tile[:3]
    constants = launch.constants | {"ROWS": rows, "COLUMNS": columns, "POSITIONS": positions, "IS_ADDED": parts == 1}
    kernel = getattr(_kernels(), launch.kernel)
    with torch.cuda.device_of(total):
        kernel[(launch.tiles, parts, launch.groups)](
            *launch.tensors, out, **sizes, **constants, **launch.tile.options()
        )
    if parts > 1:
        total.add_(out.sum(0))


def _parts(launch: Launch) -> tuple[int, int]:
    """How many samples a program goes through, and among how many programs those of a tile are parted."""
    wanted = max(1, min(launch.num_samples, _PROGRAMS // (launch.tiles * launch.groups)))
    samples_of_one = -(-launch.num_samples // wanted)
    return samples_of_one, -(-launch.num_samples // samples_of_one)


@cache
def _kernels() -> ModuleType:
    from tripletmas.protection.engine import kernels

    return kernels


def _compiled(launch: Launch, total: Tensor) -> tuple:
    """What Triton compiles a kernel for: equal where it has done so before."""
    pattern = tuple((size == 1, size % 16 == 0) for size in launch.sizes.values())
    tensors = tuple((each.dtype, each.data_ptr() % 16) for each in (*launch.tensors, total))
    written = total.stride() if _parts(launch)[1] == 1 else None  # None: into a tensor of their own
    return launch.kernel, total.device, launch.tile, *launch.constants.values(), pattern, tensors, written


def _prove(launch: Launch, total: Tensor, otherwise: Twin) -> None:
    """Add the twin's sum, and see whether the kernel's is the same."""
    expected = torch.zeros_like(total)
    otherwise(expected)
    total.add_(expected)
    if not bool(torch.isfinite(expected).all()):
        return  # nothing can be told from it, and the caller will say so
    try:
        found = torch.zeros_like(total)
        run(launch, found)
        error, size = float((found - expected).norm()), float(expected.norm())
        fault = "" if error <= _TOLERANCE[launch.constants["PRECISION"]] * size else f"off by {error:.1e} of {size:.1e}"
    except Exception as failure:  # of any kind: there is another way
        fault = str(failure).strip().partition("\n")[0] or type(failure).__name__
    if fault:
        _failed.add(total.device)
        where = f"{launch.kernel} on {total.device}"
        logger.warning("importance is measured without the kernel %s, and slower: %s", where, fault)
    else:
        _proved.add(_compiled(launch, total))
