"""A second device on a machine that has none: real values, under the name of torch's `meta` device.

Inside `with other_device():` a tensor that is made on, or moved to, "meta" has values, which are computed on the CPU.
Where it meets a tensor of the CPU, that is an error, as on a GPU. What has to wait for such a device, since Python
reads a value off a tensor, is counted. Memory that nobody has written to holds nan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
_AUTOCAST, _TENSOR = torch.autocast, torch.tensor
_OPS = torch.ops.aten
# Python reads a value, or the number of rows depends on values.
_READS = {
    _OPS._local_scalar_dense.default: "item",
    _OPS.equal.default: "equal",
    _OPS.nonzero.default: "nonzero",
    _OPS.masked_select.default: "masked_select",
    _OPS._unique2.default: "unique",
    _OPS.bincount.default: "bincount",
}
# These take tensors of the CPU, too; others take numbers of it, tensors without dimensions, but those that join.
_COPIES = (_OPS.copy_.default, _OPS._foreach_copy_.default)
_INDEXES = (_OPS.index.Tensor, _OPS.index_put_.default, _OPS.index_put.default, _OPS._index_put_impl_.default)
_UNWRITTEN = (_OPS.empty.memory_format, _OPS.empty_like.default, _OPS.new_empty.default, _OPS.empty_strided.default)
_PRODUCTS = {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "conv1d", "conv2d"}
_JOINS = (_OPS.cat.default, _OPS.stack.default)


@contextmanager
def other_device() -> Iterator[OtherDevice]:
    """Inside it there is the device."""
    with pytest.MonkeyPatch.context() as patch, OtherDevice() as device, Autocast() as autocast:
        patch.setattr(torch, "autocast", autocast.entered)
        patch.setattr(torch, "tensor", _tensor)
        yield device


class OtherDevice(TorchDispatchMode):
    """Knows the device; `other_device` begins and ends it.

    Attributes:
        reads: how often Python waited for it, by what it asked.
    """

    def __init__(self):
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if _is_composed(func):  # of others, which come one by one
            with self:
                return func.decompose(*args, **kwargs)
        if func in _READS and any(isinstance(each, OnDevice) for each in tree_leaves(args)):
            self.reads[_READS[func]] += 1
        if func is _OPS._to_copy.default and isinstance(args[0], OnDevice) and _device(kwargs) == "cpu":
            self.reads["to the cpu"] += 1
        return _run(func, args, kwargs)


class Autocast(TorchFunctionMode):
    """torch's autocast on the device, which torch does not know by name: products are in the short type."""

    def __init__(self):
        super().__init__()
        self.dtypes: list[torch.dtype | None] = []  # of the regions that this is in; None where it is off

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        dtype = self.dtypes[-1] if self.dtypes else None
        if dtype is None or getattr(func, "__name__", "") not in _PRODUCTS:
            return func(*args, **kwargs)

        def short(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, OnDevice) and value.dtype == torch.float32 else value

        return func(*tree_map(short, args), **tree_map(short, kwargs))

    @contextmanager
    def entered(
        self, device: str, dtype: torch.dtype = torch.bfloat16, enabled: bool = True, **options: Any
    ) -> Iterator[None]:
        if device != NAME:
            with _AUTOCAST(device, dtype, enabled, **options):
                yield
            return
        self.dtypes.append(dtype if enabled else None)
        try:
            yield
        finally:
            self.dtypes.pop()


class OnDevice(Tensor):
    """A tensor of the device: its values are in `raw`, on the CPU."""

    raw: Tensor
    is_meta = False  # it has values
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnDevice:
        return Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=NAME,
        )

    def __init__(self, raw: Tensor):
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})

    # What torch makes of Python's numbers for the device it thinks this is, would have no values.

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:
        return _TENSOR(data, dtype=dtype or self.dtype).to(NAME)

    def __getitem__(self, index: Any) -> Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        made = tuple(_TENSOR(each) if isinstance(each, list) else each for each in parts)
        return super().__getitem__(made if isinstance(index, tuple) else made[0])

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor of the device has no array: copy it to the CPU first")

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.raw.__reduce_ex__(protocol)  # what is saved is read on the CPU

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        copied = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        vars(copied).update({key: value for key, value in vars(self).items() if key != "raw"})  # as being a parameter
        return copied  # pyright: ignore[reportReturnType]


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    if _is_composed(func):
        return func.decompose(*args, **kwargs)
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, OnDevice)]
    assert all(isinstance(each, OnDevice) or each.device.type != NAME for each in tensors), f"{func}: no values"
    wanted = _device(kwargs)
    if not there and wanted != NAME:
        return func(*args, **kwargs)
    _refuse_mixing(func, there, [each for each in tensors if not isinstance(each, OnDevice)], kwargs)
    inside = dict(kwargs, device=torch.device("cpu")) if wanted else kwargs
    result = func(*tree_map(_raw, args), **tree_map(_raw, inside))
    if wanted == "cpu" or (func is _OPS.copy_.default and not isinstance(args[0], OnDevice)):
        return args[0] if func is _OPS.copy_.default else result
    if func in _UNWRITTEN and result.is_floating_point():
        result.fill_(torch.nan)
    made = tree_map(lambda each: OnDevice(each) if isinstance(each, Tensor) else each, result)
    return return_and_correct_aliasing(func, args, kwargs, made) if there else made


def _refuse_mixing(func: Any, there: list[OnDevice], here: list[Tensor], kwargs: dict) -> None:
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU draws on the device")
    if func in _COPIES or func in _INDEXES or not there:
        return
    if func in _JOINS or any(each.ndim for each in here):
        shapes = [tuple(each.shape) for each in here]
        if here:
            raise RuntimeError(
                f"{func}: tensors of the CPU, {shapes}, meet {[tuple(e.shape) for e in there]} of the device"
            )


def _is_composed(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    made = _TENSOR(data, **options)
    return made if device is None else made.to(device)


def _device(kwargs: dict) -> str | None:
    asked = kwargs.get("device")
    return None if asked is None else torch.device(asked).type


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, OnDevice) else value
