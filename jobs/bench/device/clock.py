"""Time work on a device, count what it launches and how often the host waits for it."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from jobs.bench.measure.turns import timed

_WAIT = "called a synchronizing CUDA operation"  # c10/cuda/CUDAFunctions.cpp of torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_on(device: torch.device, work: Callable[[], object]) -> float:
    """Return the seconds from an idle device to one that has done all that `work` launches."""
    synchronise(device)
    return timed(lambda: (work(), synchronise(device)))


def host_waits(device: torch.device, work: Callable[[], object]) -> int | None:
    """Return how often `work` waits for a GPU, as torch sees it; None on a CPU.

    Torch sees copies and reads that wait, and not a wait for an event or a stream.
    """
    if device.type != "cuda":
        work()
        return None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(_WAIT in str(warning.message) for warning in seen)


@dataclass(frozen=True)
class Activity:
    """What a device did: how many kernels and copies, and for how long it was busy."""

    num_kernels: int
    busy_s: float


def activity(device: torch.device, work: Callable[[], object]) -> Activity:
    """Profile `work`. It runs slower than without; the seconds of the kernels are true.

    On a CPU operations stand in for kernels.
    """
    is_gpu = device.type == "cuda"
    profiled = ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU
    with profile(activities=[profiled]) as profiler:
        work()
        synchronise(device)
    events = profiler.events() or ()
    kind = DeviceType.CUDA if is_gpu else DeviceType.CPU
    spans = [
        (each.time_range.start, each.time_range.end) for each in events if each.device_type == kind
    ]
    return Activity(len(spans), covered(spans) / 1e6)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans: kernels of several streams may run together."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
