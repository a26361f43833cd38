"""Processes of this machine: who computes first, which belong together, who holds memory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MORE_NICE = 10  # a tenth of the share of others, where all want to compute
_MOST_NICE = 19  # of setpriority(2)


def lower_priority() -> None:
    """Let others go before this process, once, and before all that it starts from then on.

    What prepares rows has a process for each processor, so that none is idle where decoding is the
    slower half. The engines, which compute themselves or feed a GPU, must not wait for it. It still
    gets a share of a machine that is busy with other work, or decoding would time out.
    """
    for task in Path("/proc/self/task").iterdir():  # threads, each of a niceness of its own
        thread = int(task.name)
        with suppress(ProcessLookupError):  # it has ended meanwhile
            niceness = os.getpriority(os.PRIO_PROCESS, thread) + _MORE_NICE
            os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _MOST_NICE))


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process started, and theirs."""
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)
