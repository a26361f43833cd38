"""Fake CUDA tensors on a machine without a GPU: shapes, dtypes and devices without numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Let tensors that are made in the `with` have `device="cuda"`; nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True), Detours():
        yield


class Detours(TorchFunctionMode):
    """Replace what asks for CUDA itself, which torch without CUDA does not have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, or what stands for it."""
        if func is torch.Tensor.__getitem__:
            return indexed(*args)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.to and torch.device("cuda") in map(device_of, args[1:]):
            return torch.ops.aten._to_copy(args[0], device=args[1], **(kwargs or {}))
        if func is torch.Tensor.contiguous:
            return args[0].clone(memory_format=torch.contiguous_format)
        if func is torch.nn.functional.rms_norm and args[0].device.type == "cuda":
            # One operation where torch has CUDA; torch without CUDA takes it apart.
            return args[0].clone()
        return func(*args, **(kwargs or {}))


def device_of(argument: object) -> torch.device | None:
    """Return the device, without its number, that an argument of `Tensor.to` names, if any."""
    return torch.device(argument.type) if isinstance(argument, torch.device) else None


def indexed(x: Tensor, index: object) -> Tensor:
    """Compute `x[index]` for an index of numbers, slices, None, an ellipsis and tensors."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(item is Ellipsis for item in items):
        place = next(number for number, item in enumerate(items) if item is Ellipsis)
        taken = sum(item is not None and item is not Ellipsis for item in items)
        items[place : place + 1] = [slice(None)] * (x.ndim - taken)
    dim, tensors = 0, []
    for item in items:
        if isinstance(item, int):
            x = x.select(dim, item)
            continue
        if item is None:
            x = x.unsqueeze(dim)
        elif isinstance(item, slice):
            x = torch.ops.aten.slice(x, dim, item.start, item.stop, item.step or 1)
        tensors.append(item if isinstance(item, Tensor) else None)
        dim += 1
    if any(tensor is not None for tensor in tensors):
        x = torch.ops.aten.index(x, tensors)
    return x
