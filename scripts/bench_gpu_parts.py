"""The parts of `bench_gpu.py`, which runs them: what each asks of the machine, a row for each answer."""

from __future__ import annotations

import argparse
import copy
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import bench_importance
import bench_training_step
import torch
from bench_importance import Case, PeakMemory, difference, timed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tripletmas as tm
from tripletmas.data.dataset import LabelledDataset
from tripletmas.protection.engine import fused


class Asked(NamedTuple):
    """What a part is given.

    Attributes:
        small: tiny models, once: whether all runs.
        note: is given a row of what was found, by name.
    """

    device: str
    small: bool
    note: Callable[..., None]

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def kernels(self) -> Any:
        """Kernels as a user has them; on a CPU in Triton's interpreter, which runs them where it is told to alone."""
        return fused.used("auto" if self.on_gpu else "always")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 is multiplied as TF32, in linear maps and in convolutions."""
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions


def sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"


# --- the machine


def machine(asked: Asked) -> None:
    import triton

    asked.note(what="torch", found=torch.__version__)
    asked.note(what="triton", found=triton.__version__)
    asked.note(what="processor", found=platform.processor() or platform.machine())
    asked.note(what="threads", found=torch.get_num_threads())
    if asked.on_gpu:
        device = torch.cuda.get_device_properties(asked.device)
        asked.note(what="GPU", found=device.name)
        asked.note(what="compute capability", found=f"{device.major}.{device.minor}")
        asked.note(what="GiB", found=device.total_memory / 2**30)
        asked.note(what="processors of the GPU", found=device.multi_processor_count)
        asked.note(what="CUDA", found=torch.version.cuda)
    else:
        asked.note(what="GPU", found="none: all numbers are the CPU's, kernels run in Triton's interpreter")


# --- are the numbers the CPU's?


def numbers(asked: Asked) -> None:
    """Importance and Fisher information of small models in float32, to those in float64 on the CPU."""
    samples = 3 if asked.small else 16
    for name, (make, shape) in SMALL_MODELS.items():
        torch.manual_seed(0)
        model, x = make().eval(), torch.randn(samples, *shape)
        for what, estimate in {"MAS": tm.mas_importance, "Fisher": partial(tm.fisher_importance, labels="all")}.items():
            truth = estimate(copy.deepcopy(model).double(), [x.double()])
            there = copy.deepcopy(model).to(asked.device)
            row: dict[str, Any] = {"model": name, "measure": what}
            for precision in ("float32", "tf32") if asked.on_gpu else ("float32",):
                with tf32(precision == "tf32"):
                    for way, use in ways(asked).items():
                        with use:
                            found = estimate(there, [x.to(asked.device)])
                        apart = difference({key: value.cpu().double() for key, value in found.items()}, truth)
                        row[f"{way}, {precision}"] = apart
            asked.note(**row, kernels="given up" if fused._failed else "right" if fused._proved else "not proved here")


def ways(asked: Asked) -> dict[str, Any]:
    """Ours, and the way that kernels replace."""
    return {"ours": asked.kernels(), "twin": fused.used("never")}


class Convolutions(nn.Module):
    """Plain, strided and dilated, grouped, depthwise and transposed ones."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, padding=2, dilation=2)
        self.depthwise = nn.Conv2d(12, 12, 5, groups=12, padding=2)
        self.pointwise = nn.Conv2d(12, 20, 1)
        self.transposed = nn.ConvTranspose2d(20, 6, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.grouped(self.first(x).relu()).relu())
        return self.transposed(self.pointwise(x.relu()).relu()).mean((2, 3))


class Encoder(nn.Module):
    """A transformer of one layer: the mean over positions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(24, 3, 40, dropout=0.0, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)).mean(1)


SMALL_MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (Convolutions, (3, 9, 11)),
    "encoder": (Encoder, (7, 24)),
}


# --- importance


def importance(asked: Asked, name: str, batch_size: int) -> None:
    """Seconds and peak memory of two batches: a plain pass, ours, the twin of its kernels, vmap."""
    case = TINY[name] if asked.small else {**bench_importance.CASES, **bench_importance.ON_GPU}[name]
    torch.manual_seed(0)
    model = case.make().to(asked.device).eval()
    batches = [case.samples(2 if asked.small else batch_size).to(asked.device) for _ in range(2)]
    for precision in ("tf32", "float32") if asked.on_gpu else ("float32",):
        plain = None
        for way, (use, measure) in importance_ways(asked, precision).items():
            with tf32(precision == "tf32"), use:
                row = attempted(asked, partial(measure, model, batches))
            plain = plain or row.get("seconds")
            if plain and "seconds" in row:
                row["to plain"] = row["seconds"] / plain
            asked.note(model=name, batch=len(batches[0]), precision=precision, way=way, **row, **proofs(asked, way))


def proofs(asked: Asked, way: str) -> dict[str, str]:
    """What became of our kernels."""
    if way != "ours" or not asked.on_gpu:
        return {}
    return {"kernels": "given up" if fused._failed else f"{len(fused._proved)} proved"}


def importance_ways(asked: Asked, precision: str) -> dict[str, tuple[Any, Callable[[nn.Module, list[Tensor]], object]]]:
    own = {way: (use, bench_importance.ours) for way, use in ways(asked).items()}
    found = {"plain": (fused.used("never"), bench_importance.plain), **own}
    return found if precision == "tf32" else {**found, "vmap": (fused.used("never"), bench_importance.vectorized)}


def attempted(asked: Asked, function: Callable[[], object]) -> dict[str, Any]:
    """What is measured, or the error: as out of memory, after which other ways go on."""
    try:
        return measured(function, torch.device(asked.device), 1 if asked.small else 3)
    except Exception as error:
        return {"error": sentence(error)}


def measured(function: Callable[[], object], device: torch.device, rounds: int) -> dict[str, Any]:
    """The first call, with all that is compiled in it; the fastest of later ones; megabytes at the peak of one."""
    first = timed(function, device)
    seconds = min(timed(function, device) for _ in range(rounds))
    with PeakMemory(device) as peak:
        timed(function, device)
    return {"first": first, "seconds": seconds, "peak MB": peak.megabytes}


def tiny_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=4)
    nn.init.normal_(model.heads[-1].weight)  # pyright: ignore[reportArgumentType]; torchvision leaves zeros there
    return model


TINY = {
    "vit_b_16-224-64": Case(tiny_vit, bench_importance.randn(3, 16, 16), 2),
    "resnet50-224": Case(Convolutions, bench_importance.randn(3, 9, 11), 2),
    "minilm": Case(Encoder, bench_importance.randn(7, 24), 2),
}


# --- training, waiting, embedding, search


def step(asked: Asked) -> None:
    """A training step without protection, with MAS attached, with its penalty in the loss, with a Gram."""
    cases = {"mlp": 8} if asked.small else {"resnet18": 224, "transformer": 128}
    for model, size in cases.items():
        options = argparse.Namespace(model=model, size=size, batch=8 if asked.small else 64, optimizer="adamw")
        options.steps, options.repeats, options.warm_up = (1, 2, 0) if asked.small else (5, 7, 20)
        options.device, options.images, options.clock = asked.device, None, "wall"
        for row in bench_training_step.measure(options):
            memory = {} if row["extra_memory"] is None else {"peak MiB": row["extra_memory"] / 2**20}
            milliseconds = 1000 * row["median_seconds"]
            asked.note(model=model, protection=row["protection"], ms=milliseconds, ratio=row["ratio"], **memory)


class Reads(TorchDispatchMode):
    """Counts what Python waits for: values that it reads off tensors, and copies to the CPU."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, to = func.overloadpacket.__name__, str((kwargs or {}).get("device"))
        reading = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "bincount"}
        if name in reading or (name == "_to_copy" and to == "cpu" and args[0].device.type != "cpu"):
            self.found[name.strip("_")] += 1
        return func(*args, **(kwargs or {}))


def waiting(asked: Asked) -> None:
    """How often Python waits for the device in a training step, and in a batch of importance."""
    size, batch = (8, 8) if asked.small else (64, 64)
    options = argparse.Namespace(
        model="mlp" if asked.small else "resnet18", size=size, batch=batch, device=asked.device, images=None
    )
    model, tasks = bench_training_step.made(options)
    inputs, _ = tasks[0][0]
    for name in ("none", "attached", "gram"):
        training = bench_training_step.Training(name, model, tasks, "adamw", "wall")
        training.step()
        asked.note(what=f"a training step, {name}", **waits(asked, training.step))
    with asked.kernels():
        tm.mas_importance(model, [inputs])  # kernels prove themselves in the first batch
        asked.note(what="importance of one batch", **waits(asked, lambda: tm.mas_importance(model, [inputs])))
        asked.note(what="importance of two batches", **waits(asked, lambda: tm.mas_importance(model, [inputs] * 2)))


def waits(asked: Asked, function: Callable[[], object]) -> dict[str, Any]:
    with Reads() as reads:
        function()
    kinds = ", ".join(f"{name} {count}" for name, count in reads.found.items())
    row: dict[str, Any] = {"reads": sum(reads.found.values()), "of": kinds}
    if asked.on_gpu:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
        torch.cuda.set_sync_debug_mode("default")
        row["torch warns"] = sum("synchroniz" in str(each.message) for each in caught)
    return row


def embedding(asked: Asked) -> None:
    """Images a second: of the bare model on a batch that is there, and of `tm.embed` from images in the memory."""
    names, size, batch = (["conv4"], 16, 4) if asked.small else (["resnet50", "vit_b_16"], 224, 256)
    for name in names:
        options = {"dim": 128} | ({"pretrained": False} if name == "resnet50" else {})
        model = tm.make_model(name, (3, size, size), options=options).to(asked.device).eval()
        images = torch.randn(4 * batch, 3, size, size)
        dataset = LabelledDataset(images, torch.zeros(len(images), dtype=torch.int64), ["none"])
        there = images[:batch].to(asked.device)
        for precision in ("tf32", "float32") if asked.on_gpu else ("float32",):
            with tf32(precision == "tf32"), torch.inference_mode():
                bare = measured(partial(model, there), torch.device(asked.device), 1 if asked.small else 3)
            with tf32(precision == "tf32"):
                began = time.perf_counter()
                tm.embed(model, dataset, batch_size=batch)
                rate = len(images) / (time.perf_counter() - began)
            bare_rate = batch / bare["seconds"]
            asked.note(model=name, precision=precision, **{"bare images/s": bare_rate, "embed images/s": rate})


def search(asked: Asked) -> None:
    """Seconds for the ten nearest by faiss on the CPU, and on the GPU where faiss has it."""
    import faiss

    gallery, queries, dim = (500, 20, 16) if asked.small else (250_000, 10_000, 128)
    vectors = nn.functional.normalize(torch.randn(gallery + queries, dim)).numpy()
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors[:gallery])  # pyright: ignore[reportCallIssue]
    began = time.perf_counter()
    _, expected = flat.search(vectors[gallery:], 10)  # pyright: ignore[reportCallIssue]
    asked.note(where="faiss, CPU", gallery=gallery, queries=queries, seconds=time.perf_counter() - began)
    on_gpu: Any = faiss
    if not asked.on_gpu or not hasattr(faiss, "StandardGpuResources") or on_gpu.get_num_gpus() < 1:
        asked.note(where="faiss, GPU", error="this faiss has no GPU: faiss-gpu is not installed, or there is none")
        return
    index = on_gpu.index_cpu_to_gpu(on_gpu.StandardGpuResources(), 0, flat)
    index.search(vectors[gallery : gallery + 10], 10)
    began = time.perf_counter()
    _, found = index.search(vectors[gallery:], 10)
    seconds, same = time.perf_counter() - began, float((found == expected).mean())
    asked.note(where="faiss, GPU", gallery=gallery, queries=queries, seconds=seconds, same=same)


PARTS: dict[str, Callable[[Asked], None]] = {
    "machine": machine,
    "numbers": numbers,
    "importance-vit": partial(importance, name="vit_b_16-224-64", batch_size=64),
    "importance-resnet": partial(importance, name="resnet50-224", batch_size=64),
    "importance-minilm": partial(importance, name="minilm", batch_size=256),
    "waiting": waiting,
    "step": step,
    "embedding": embedding,
    "search": search,
}
