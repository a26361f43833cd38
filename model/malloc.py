"""Settings of the C library's malloc, and the peak memory of a process.

glibc maps every tensor above 32 MiB anew and unmaps it when it is freed. So each large intermediate
of each step pays for a page fault per 4 KiB: 200,000 faults in a prefill of 1,024 tokens at the
published widths. Memory that malloc keeps costs nothing the second time, but the process then stays
at its highest use.
"""

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

# From <malloc.h>; see mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER_BYTES = 2**31 - 1  # the largest value of its int parameter


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
