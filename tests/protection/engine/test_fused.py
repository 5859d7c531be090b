"""The kernels, in Triton's interpreter: equal to a loop over samples in float64 for every shape of the tables; compiled
for GPUs that are not there; and used, proved and given up where they should be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import oracles
import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, made
from interpreted import compiled, interpreted_kernels
from torch import Tensor

from tripletmas.protection.engine import fused
from tripletmas.protection.engine.rule import Layout
from tripletmas.protection.engine.rules import Convolution
from tripletmas.protection.importance.mas import mas_importance

pytest.importorskip("triton", reason="Triton comes with torch for GPUs")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's


@pytest.fixture
def ran() -> Iterator[list[str]]:
    """The kernels that ran."""
    with interpreted_kernels() as names:
        yield names


def no_twin(total: Tensor) -> None:
    raise AssertionError("there is a kernel for this")


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# --- linear maps

# samples, positions, rows, columns
PRODUCTS = {
    "odd": (3, 5, 7, 9),
    "one number": (1, 2, 1, 1),
    "one sample": (1, 6, 4, 5),
    "one row": (3, 20, 1, 40),
    "one column": (3, 20, 40, 1),
    "a tile and one more": (2, 33, 65, 17),
    "small tiles, full": (5, 64, 16, 16),
    "large tiles": (2, 40, 130, 140),
}


def products(samples: int, positions: int, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    left, right = torch.randn(samples, positions, rows), torch.randn(samples, positions, columns)
    return left.to(dtype), right.to(dtype), torch.rand(rows, columns)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("shape", PRODUCTS)
def test_products(shape: str, power: int, ran: list[str]):
    left, right, total = products(*PRODUCTS[shape])
    expected = total.double() + oracles.sums_of_products(left, right, power)
    fused.add_products(total, left, right, power, otherwise=no_twin)
    assert_near(total, expected)
    assert ran == ["sum_products"]


@pytest.mark.parametrize("programs", [1, 2, 3, 1000])
def test_samples_are_parted_among_programs(programs: int, ran: list[str], monkeypatch: pytest.MonkeyPatch):
    """One program for all, which adds to the total itself; a last part that is shorter; a program a sample."""
    monkeypatch.setattr(fused, "_PROGRAMS", programs)
    left, right, total = products(5, 4, 6, 20)
    expected = total.double() + oracles.sums_of_products(left, right, 1)
    again = total.clone()
    fused.add_products(total, left, right, 1, otherwise=no_twin)
    assert_near(total, expected)
    fused.add_products(again, left, right, 1, otherwise=no_twin)
    assert torch.equal(again, total)


@pytest.mark.parametrize("programs", [1, 1000])
@pytest.mark.parametrize(
    "stored",
    [
        lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2),
        lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1),
        lambda tensor: torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=3)[..., 0],
        lambda tensor: tensor[:1].expand(3, -1, -1),
        lambda tensor: F.pad(tensor, (3, 2, 1, 0), value=torch.nan)[:, 1:, 3:-2],
    ],
    ids=["positions side by side", "samples in the middle", "every second", "one for all", "inside another"],
)
def test_products_of_tensors_with_strides(
    stored: Callable[[Tensor], Tensor], programs: int, ran: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fused, "_PROGRAMS", programs)
    left, right, total = products(3, 5, 7, 19)
    left, right, total = stored(left), stored(right), total.t().contiguous().t()
    expected = total.double() + oracles.sums_of_products(left, right, 1)
    fused.add_products(total, left, right, 1, otherwise=no_twin)
    assert_near(total, expected)


def test_half_precision_is_multiplied_as_it_is_and_summed_in_float32(ran: list[str]):
    """In bfloat16 the interpreter cannot multiply; that kernel is compiled below."""
    left, right, total = products(3, 40, 20, 30, torch.float16)
    expected = total.double() + oracles.sums_of_products(left, right, 1)
    fused.add_products(total, left, right, 1, otherwise=no_twin)
    assert_near(total, expected)


# --- convolutions


class Windows(NamedTuple):
    """A convolution in two dimensions, or in one where kernel and image have one."""

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    channels: int = 3
    rows: int = 4
    samples: int = 3
    groups: int = 1
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    output_padding: int = 0


WINDOWS = {
    "plain": Windows((6, 7), (3, 3)),
    "one sample": Windows((6, 7), (3, 3), samples=1),
    "one place": Windows((3, 2), (3, 2)),
    "pointwise": Windows((5, 4), (1, 1)),
    "pointwise, strided": Windows((5, 6), (1, 1), stride=2),
    "pointwise, padded": Windows((3, 3), (1, 1), padding=1),
    "pointwise, grouped": Windows((5, 4), (1, 1), channels=4, groups=2),
    "padded": Windows((6, 7), (3, 3), padding=(1, 2)),
    "strided": Windows((9, 8), (3, 3), stride=(2, 3), padding=1),
    "dilated": Windows((9, 11), (3, 2), dilation=(2, 3), padding=2),
    "all at once": Windows((11, 9), (3, 5), 6, 4, 2, 2, (2, 1), (1, 3), (3, 2)),
    "same": Windows((6, 7), (3, 4), padding="same"),
    "padded by more than the image": Windows((2, 2), (3, 3), padding=5, stride=2),
    "grouped": Windows((6, 5), (3, 3), channels=6, rows=9, groups=3, padding=1),
    "depthwise": Windows((7, 7), (3, 3), channels=5, rows=5, groups=5, padding=1),
    "depthwise, twice as many": Windows((6, 7), (5, 5), channels=3, rows=6, groups=3, padding=2, stride=2),
    "one channel": Windows((6, 6), (3, 3), channels=1, padding=1),
    "large tiles": Windows((4, 5), (3, 3), channels=8, rows=65, padding=1, samples=2),
    "of one dimension": Windows((12,), (3,), padding=1),
    "of one dimension, all at once": Windows((15,), (4,), 4, 6, 3, 2, 2, 3, 2),
}
FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize(("format", "power"), [("channels first", 1), ("channels last", 2)])
@pytest.mark.parametrize("is_transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str, is_transposed: bool, format: str, power: int, ran: list[str]):
    case = WINDOWS[name]
    if is_transposed and isinstance(case.padding, str):
        pytest.skip("torch has none")
    if is_transposed and name == "padded by more than the image":
        case = case._replace(padding=1)
    assert_convolution(case, is_transposed, format, power)
    assert ran == ["sum_products" if name.startswith("pointwise") and is_linear(case, is_transposed) else "sum_windows"]


def is_linear(case: Windows, is_transposed: bool) -> bool:
    return case.groups == 1 and case.padding == 0 and not is_transposed


def assert_convolution(case: Windows, is_transposed: bool, format: str, power: int) -> None:
    """The rule's sum, of all that torch would do with this convolution, to that of a loop over samples."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    options["groups"] = case.groups
    functions = [F.conv_transpose1d, F.conv_transpose2d] if is_transposed else [F.conv1d, F.conv2d]
    function = partial(functions[len(case.kernel) - 1], **options)
    sizes = (case.channels, case.rows // case.groups) if is_transposed else (case.rows, case.channels // case.groups)
    weight = torch.randn(*sizes, *case.kernel)
    images = torch.randn(case.samples, case.channels, *case.image)
    grad = torch.randn_like(function(images, weight))
    total = torch.rand_like(weight)
    expected = total.double() + oracles.sums_of_gradients(
        function, images.unsqueeze(1), weight, grad.unsqueeze(1), power
    )
    if len(case.kernel) == 2:
        images, grad, total = (each.to(memory_format=FORMATS[format]) for each in (images, grad, total))
    rule = Convolution(images, weight, **options, transposed=is_transposed)
    rule.backward(grad, Layout(0), case.samples)
    rule.add("weight", total, power)
    assert_near(total, expected)


def test_what_no_window_reaches_does_not_matter(ran: list[str]):
    """Of 8 x 8 pixels, windows of 3 x 3 at every third reach 6 x 6; the rest, as of images of other sizes, is nan."""
    torch.manual_seed(0)
    images, weight, grad = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(2, 4, 2, 2)
    images[..., 6:, :] = images[..., 6:] = 0
    sums = oracles.sums_of_gradients(partial(F.conv2d, stride=3), images.unsqueeze(1), weight, grad.unsqueeze(1), 1)
    images[..., 6:, :] = images[..., 6:] = torch.nan
    rule = Convolution(images, weight, stride=3)
    rule.backward(grad, Layout(0), 2)
    rule.add("weight", total := torch.zeros_like(weight), 1)
    assert_near(total, sums)
    assert ran == ["sum_windows"]


@pytest.mark.parametrize("programs", [1, 2])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["all at once", "depthwise", "of one dimension, all at once"])
def test_windows_of_parts(name: str, format: str, programs: int, ran: list[str], monkeypatch: pytest.MonkeyPatch):
    """Programs that add to the total themselves, in the order in which it is stored, or for several samples."""
    monkeypatch.setattr(fused, "_PROGRAMS", programs * WINDOWS[name].groups)
    assert_convolution(WINDOWS[name], False, format, 1)


@pytest.mark.parametrize("is_minor", [False, True])
def test_several_images_of_a_sample(is_minor: bool, ran: list[str]):
    """As where a model cuts an image into windows: one gradient over all of them."""
    torch.manual_seed(0)
    images, weight = torch.randn(3, 2, 3, 6, 5), torch.randn(4, 3, 3, 3)
    function = partial(F.conv2d, padding=1)
    grad = torch.randn(3, 2, 4, 6, 5)
    expected = oracles.sums_of_gradients(function, images, weight, grad, 1)
    order = (1, 0, 2, 3, 4) if is_minor else (0, 1, 2, 3, 4)
    rule = Convolution(images.permute(order).flatten(0, 1), weight, padding=1)
    rule.backward(grad.permute(order).flatten(0, 1), Layout(0, is_minor), 3)
    total = torch.zeros_like(weight)
    rule.add("weight", total, 1)
    assert_near(total, expected)
    assert ran == ["sum_windows"]


# --- in the engine

QUICK = ["conv", "vit", "attention"]


MODELS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in ARCHITECTURES]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_models_are_measured_as_by_a_loop(name: str, ran: list[str]):
    """In float32, up to its rounding, which is all there is where gradients are none."""
    model, x = made(name, count=5)
    expected = oracles.mas_importance(model, x.split(1))
    found = mas_importance(model.float(), [x.float() if x.is_floating_point() else x])
    largest = max(float(value.abs().max()) for value in expected.values())
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value, rtol=1e-3, atol=1e-5 * largest)
    assert ran or name not in QUICK


@pytest.mark.parametrize(
    ("left", "right", "total"),
    [
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.float32, torch.float64),
        (torch.float32, torch.float16, torch.float32),
    ],
)
def test_other_types_go_to_the_twin(left: torch.dtype, right: torch.dtype, total: torch.dtype, ran: list[str]):
    a, b, sums = products(3, 4, 5, 6)
    called: list[Tensor] = []
    fused.add_products(sums.to(total), a.to(left), b.to(right), 1, otherwise=called.append)
    assert (len(called), ran) == (1, [])


@pytest.mark.parametrize("sizes", [(0, 4, 5, 6), (3, 0, 5, 6), (3, 4, 0, 6), (3, 4, 5, 0)])
def test_where_there_is_nothing_it_is_the_twin(sizes: tuple[int, int, int, int], ran: list[str]):
    """No kernel is started with a grid of nothing; a batch without samples does not come as far as this."""
    left, right, total = products(*sizes)
    called: list[Tensor] = []
    fused.add_products(total, left, right, 1, otherwise=called.append)
    images, grad, weight = right.unsqueeze(1), left.unsqueeze(1), torch.zeros(4, 5, 3)
    geometry = fused.Geometry((1,), (0,), (1,), 1)
    fused.add_windows(weight, grad, images, 1, geometry, otherwise=called.append)
    assert (len(called), ran) == (2, [])


def test_what_32_bits_cannot_count_goes_to_the_twin(ran: list[str], monkeypatch: pytest.MonkeyPatch):
    """Of (4, 6) the last number is 23 from the first in a sample, of (4, 5) 19; the total has 30."""
    left, right, total = products(3, 4, 5, 6)
    called: list[Tensor] = []
    for most, twins in ((31, 0), (30, 1), (23, 2)):
        monkeypatch.setattr(fused, "_MOST_NUMBERS", most)
        fused.add_products(total, left, right, 1, otherwise=called.append)
        assert len(called) == twins
    assert len(ran) == 1


def test_at_one_position_it_is_the_twin(ran: list[str]):
    """No gradient of a sample is needed there; of windows as elsewhere, a kernel."""
    left, right, total = products(3, 1, 5, 6)
    called: list[Tensor] = []
    fused.add_products(total, left, right, 1, otherwise=called.append)
    assert (len(called), ran) == (1, [])


def test_on_a_cpu_it_is_the_twin():
    left, right, total = products(3, 4, 5, 6)
    called: list[Tensor] = []
    fused.add_products(total, left, right, 1, otherwise=called.append)
    with fused.used("always"), fused.used("never"):
        fused.add_products(total, left, right, 1, otherwise=called.append)
    assert len(called) == 2


# --- proved where it runs


@pytest.fixture
def proving(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on a GPU, where a kernel is not trusted: the kernels that ran."""
    monkeypatch.setattr(fused, "_use", "auto")
    monkeypatch.setattr(fused, "_proved", set())
    monkeypatch.setattr(fused, "_failed", set())
    monkeypatch.setattr(fused, "_is_there", lambda device: True)
    return ran


def twin(left: Tensor, right: Tensor) -> tuple[list[Tensor], Callable[[Tensor], None]]:
    called: list[Tensor] = []

    def add(total: Tensor) -> None:
        called.append(total)
        total.add_(oracles.sums_of_products(left, right, 1).float())

    return called, add


def test_a_kernel_is_compared_with_its_twin_where_it_is_compiled_anew(proving: list[str]):
    left, right, total = products(3, 4, 5, 6)
    expected = total.double()
    called, add = twin(left, right)
    for number, (kernels, twins) in enumerate([(1, 1), (2, 1), (3, 1)], start=1):
        fused.add_products(total, left, right, 1, otherwise=add)
        assert_near(total, expected + number * oracles.sums_of_products(left, right, 1))
        assert (len(proving), len(called)) == (kernels, twins)
    left, right, total = products(3, 32, 5, 6)  # 32 positions: a divisor that Triton looks at
    fused.add_products(total, left, right, 1, otherwise=twin(left, right)[1])
    fused.add_products(total, left, right, 2, otherwise=(again := twin(left, right))[1])
    assert len(again[0]) == 1


@pytest.mark.parametrize("fault", ["wrong", "nan", "error"])
def test_a_kernel_with_a_fault_is_given_up(
    fault: str, proving: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(launch: fused.Launch, total: Tensor) -> None:
        proving.append(launch.kernel)
        if fault == "error":
            raise RuntimeError("out of resources: shared memory\nand more")
        total.add_(torch.nan if fault == "nan" else 1e-3)

    monkeypatch.setattr(fused, "run", broken)
    left, right, total = products(3, 4, 5, 6)
    expected = total.double()
    called, add = twin(left, right)
    with caplog.at_level(logging.WARNING, "tripletmas"):
        for _ in range(2):
            fused.add_products(total, left, right, 1, otherwise=add)
    assert_near(total, expected + 2 * oracles.sums_of_products(left, right, 1))
    assert (len(called), len(proving), len(caplog.messages)) == (2, 1, 1)
    said = {"wrong": "off by ", "nan": "off by nan of ", "error": "out of resources: shared memory"}[fault]
    assert caplog.messages[0].startswith("importance is measured without the kernel sum_products on cpu, and slower: ")
    assert caplog.messages[0].endswith(said) or f": {said}" in caplog.messages[0]


def test_a_layer_without_gradients_proves_a_kernel_and_nan_does_not(proving: list[str]):
    left, right, total = products(3, 4, 5, 6)
    left[1, 0, 0] = torch.nan
    called, add = twin(left, right)
    fused.add_products(total, left, right, 1, otherwise=add)
    fused.add_products(total, torch.zeros_like(left), right, 1, otherwise=twin(torch.zeros_like(left), right)[1])
    fused.add_products(total, left, right, 1, otherwise=add)
    assert (len(called), len(proving)) == (1, 2)


# --- how it multiplies


@pytest.fixture
def settings() -> Iterator[tuple[Any, Any]]:
    """Torch's, of linear maps and of convolutions; afterwards all are what they were.

    So are those of CPUs, which the older names set, too.
    """
    both: tuple[Any, Any] = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None))
    if both[1] is None:
        pytest.skip("this version of torch has them elsewhere")
    of_cpus = (getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv"))
    everything = [*both, *(each for each in of_cpus if each is not None)]
    before = [each.fp32_precision for each in everything]
    older = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    yield both
    torch.set_float32_matmul_precision(older[0])
    torch.backends.cudnn.allow_tf32 = older[1]
    for each, value in zip(everything, before, strict=True):
        each.fp32_precision = value


@pytest.mark.parametrize("of_linear", ["ieee", "tf32"])
@pytest.mark.parametrize("of_convolutions", ["ieee", "tf32"])
def test_tf32_is_torchs_own_setting(of_linear: str, of_convolutions: str, settings: tuple[Any, Any]):
    left, right, _ = products(3, 4, 5, 6)
    settings[0].fp32_precision, settings[1].fp32_precision = of_linear, of_convolutions
    assert fused.products(left, right, 1).constants["PRECISION"] == of_linear
    grad, images = torch.zeros(1, 1, 2, 3, 3), torch.zeros(1, 1, 4, 5, 5)
    geometry = fused.Geometry((1, 1), (0, 0), (1, 1), 1)
    launch = fused.windows(torch.Size((2, 4, 3, 3)), grad, images, 1, geometry)
    assert launch.constants["PRECISION"] == of_convolutions
    assert fused.products(left.half(), right.half(), 1).constants["PRECISION"] == "ieee"


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_by_torchs_older_names(allowed: bool, settings: tuple[Any, Any]):
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    expected = "tf32" if allowed else "ieee"
    assert [fused._precision(each, torch.zeros(1)) for each in ("matmul", "conv")] == [expected] * 2


# --- compiled for GPUs that are not there

# of ViT-B/16, MiniLM, ResNet-50 and MobileNet: a launch looks at shapes alone
SHAPES = {
    "ViT-B/16": (lambda: empty_products(64, 197, 3072, 768), "tf32"),
    "MiniLM, bfloat16": (lambda: empty_products(256, 32, 384, 1536, torch.bfloat16), "ieee"),
    "ResNet-50, pointwise": (lambda: empty_products(64, 3136, 64, 64, is_transposed=True), "tf32"),
    "ResNet-50, exact": (lambda: empty_windows(64, 64, 64, 56, 3, 1), "ieee"),
    "ResNet-50, channels last": (lambda: empty_windows(64, 256, 256, 14, 3, 1, is_last=True), "tf32"),
    "MobileNet, depthwise": (lambda: empty_windows(32, 96, 96, 56, 5, 2, groups=96), "ieee"),
}


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def empty_products(
    n: int, p: int, rows: int, columns: int, dtype: torch.dtype = torch.float32, is_transposed: bool = False
) -> tuple[fused.Launch, dict[str, int]]:
    left, right = empty(n, p, rows, dtype=dtype), empty(n, p, columns, dtype=dtype)
    if is_transposed:
        left, right = empty(n, rows, p).transpose(1, 2), empty(n, columns, p).transpose(1, 2)
    return fused.products(left, right, 1), {"out_part": rows * columns, "out_row": columns, "out_column": 1}


def empty_windows(
    n: int, channels: int, rows: int, size: int, kernel: int, stride: int, groups: int = 1, is_last: bool = False
) -> tuple[fused.Launch, dict[str, int]]:
    format, padding = FORMATS["channels last" if is_last else "channels first"], kernel // 2
    places = (size + 2 * padding - kernel) // stride + 1
    images = empty(n, channels, size, size).to(memory_format=format).unsqueeze(1)
    grad = empty(n, rows, places, places).to(memory_format=format).unsqueeze(1)
    out = empty(1, rows, channels // groups, kernel, kernel)
    geometry = fused.Geometry((stride, stride), (padding, padding), (1, 1), groups)
    names = ("out_part", "out_row", "out_channel", "out_y", "out_x")
    return fused.windows(out.shape[1:], grad, images, 1, geometry), dict(zip(names, out.stride(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiles_for_gpus_that_are_not_there(shape: str, capability: int, tmp_path: Any, monkeypatch: Any):
    """Down to the machine's code, with the assembler that comes with Triton; without a register spilled; with loads of
    16 bytes at a time where memory lies so; with the tensor cores where they may be used; in the memory there is."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    make, precision = SHAPES[shape]
    launch, out = make()
    launch = launch._replace(constants=launch.constants | {"PRECISION": precision})
    found = compiled(launch, capability, is_added=True, out=out)
    is_half = launch.tensors[0].dtype == torch.bfloat16
    assert ("mma" in found.ptx) == (precision == "tf32" or is_half)
    assert ("bf16" in found.ptx) == is_half
    assert "cp.async" in found.ptx
    assert found.registers <= 255
    assert found.spilled <= 16
    assert found.shared <= 99 * 1024  # what the smaller cards of the generation have
