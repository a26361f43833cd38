"""Processes of this machine, run together, found in /proc, killed: for drills and measurements."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

from pipeline.cluster.processes import descendants


def find(pid: int, sign: re.Pattern[bytes]) -> list[int]:
    """The descendants of a process whose command line holds a sign."""
    return [each for each in descendants(pid) if sign.search(command_line(each))]


def command_line(pid: int) -> bytes:
    """Its arguments, each with a zero behind it; nothing where it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
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
    """Resident memory of a process that it does not share, such as by the object store."""
    with suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")
    return 0
