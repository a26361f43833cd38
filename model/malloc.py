"""Settings of the C library's malloc and of torch's on GPUs, and the peak memory of a process.

glibc maps every tensor above 32 MiB anew and unmaps it when it is freed. So each large intermediate
of each step pays for a page fault per 4 KiB: 200,000 faults in a prefill of 1,024 tokens at the
published widths. Memory that malloc keeps costs nothing the second time, but the process then stays
at its highest use.

On a GPU, torch keeps freed blocks itself. Steps of changing size cut them into pieces that fit no
later step; expandable segments map such pieces together again.
https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-alloc-conf
"""

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

# From <malloc.h>; see mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER_BYTES = 2**31 - 1  # the largest value of its int parameter

# torch 2.11 to 2.14 read both, and the older name wins; neither warns.
_OF_CUDA = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def own_peak_bytes() -> int:
    """Return the most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory, for the whole process from now on; False without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    parameters = (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    return all(mallopt(parameter, _NEVER_BYTES) == 1 for parameter in parameters)


def use_expandable_segments(device: str) -> None:
    """Set torch's memory to expandable segments if `device` is a GPU and nobody has set it.

    torch reads these variables once in a process, when CUDA is first used, so this comes before.
    """
    if device.startswith("cuda") and not any(name in os.environ for name in _OF_CUDA):
        os.environ[_OF_CUDA[0]] = "expandable_segments:True"


def give_back_freed_memory() -> None:
    """Return free pages to the system, where the C library can.

    This is for processes whose buffers differ from row to row. Their freed memory lies in pieces
    between living buffers, and ever more of it cannot be used again.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes_of(process_id: int) -> int:
    """Return the most memory that a process of this machine has had resident; 0 if it has ended."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return sum(map(int, peaks)) << 10  # a zombie has no such line
