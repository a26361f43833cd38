"""Memory of this process: the most that it had, and whether what is freed stays for its next step.

glibc maps every tensor above 32 MiB anew and unmaps it when it is freed, so each large intermediate
of each step pays for a page fault every 4 KiB: 200,000 faults in a prefill of 1,024 tokens at the
published widths. Kept, it costs nothing the second time; the process stays at its highest use.
"""

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

# <malloc.h>; the names of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER_BYTES = 2**31 - 1  # the largest value that it takes


def own_peak_bytes() -> int:
    """The most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, for the whole process and from now on.

    Returns:
        Whether it could be told so: glibc can, other C libraries have their own ways.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    parameters = (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    return all(mallopt(parameter, _NEVER_BYTES) == 1 for parameter in parameters)


def give_back_freed_memory() -> None:
    """Return whole free pages to the system, where the C library can.

    For processes whose buffers differ from row to row: between those that live, ever more of the
    freed ones cannot be used again.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes_of(process_id: int) -> int:
    """The most memory that a process on this machine has had resident; 0 when it has ended."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return sum(map(int, peaks)) << 10  # a zombie has none
