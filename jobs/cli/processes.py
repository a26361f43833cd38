"""Find, kill and inspect processes of this machine, for chaos runs and measurements."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

from pipeline.cluster.processes import descendants


def find(pid: int, sign: re.Pattern[bytes]) -> list[int]:
    """Return the descendants of a process whose command line matches `sign`."""
    return [each for each in descendants(pid) if sign.search(command_line(each))]


def command_line(pid: int) -> bytes:
    """Return the arguments of a process, each followed by a zero byte; empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and has not ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill(pid: int) -> bool:
    """Send SIGKILL to a process; return False if there is no such process."""
    return _send(pid, signal.SIGKILL)


def stop(pid: int) -> bool:
    """Send SIGSTOP to a process, which then hangs; return False if there is no such process."""
    return _send(pid, signal.SIGSTOP)


def _send(pid: int, signum: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
        return True
    return False


def private_bytes(pid: int) -> int:
    """Return the resident memory that a process shares with no other, in bytes."""
    with suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")
    return 0
