"""Priorities and descendants of processes of this machine, by Linux's /proc."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MORE_NICE = 10  # gives a tenth of the share of other processes, if all want to compute
_MOST_NICE = 19  # of setpriority(2)


def lower_priority() -> None:
    """Lower the priority of this process and of all that it starts from then on; call it once.

    There is a process that prepares rows for each processor, so that no processor is idle if
    decoding is the slower half of a run. But engines, which compute themselves or feed a GPU, must
    not wait for them. Processes of lower priority still get some time on a machine that is busy
    with other work; with none, decoding would time out.
    """
    for task in Path("/proc/self/task").iterdir():  # on Linux each thread has its own niceness
        thread = int(task.name)
        with suppress(ProcessLookupError):  # the thread has ended meanwhile
            niceness = os.getpriority(os.PRIO_PROCESS, thread) + _MORE_NICE
            os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _MOST_NICE))


def descendants(pid: int) -> Iterator[int]:
    """Yield the ids of the processes that a process started, and of those that they started."""
    with suppress(OSError):  # a process has ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)
