"""`CpuAffinity`: keeps some processors free for engines that compute on CPUs.

Threads that read, prepare and move rows run for many short times, and the kernel lets them
interrupt an engine as readily as any other thread. So while the engines are the slower half of a
run, all its other threads stay off as many processors as the engines use, even the threads of ranks
that receive and answer requests. While the engines wait for rows, every thread may run anywhere.
"""

import os
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from parallel.ranks.worker import ENGINE_THREAD
from pipeline.cluster.processes import descendants
from pipeline.monitor.snapshot import Snapshot

_MAX_IDLE_SHARE = 0.1  # up to so much idle time of ranks, the engines are the slower half


@dataclass
class CpuAffinity:
    """A reporter that binds the other threads of a run to processors that engines do not use.

    It touches only the driver and its descendants, so a Ray that the driver did not start is left
    alone, and so is a thread that someone else has bound to processors. Engines may run on all
    processors. If they need all of them, nothing changes.
    """

    num_threads: int  # of each engine

    def __post_init__(self) -> None:
        self._all = os.sched_getaffinity(0)
        self._rest = self._all  # processors of all threads but the engines'

    def show(self, snapshot: Snapshot) -> None:
        """Decide from the latest idle share, and move threads that have started since."""
        idle_share = snapshot.idle_share
        make_room = idle_share is not None and idle_share <= _MAX_IDLE_SHARE
        if make_room or self._rest != self._all:
            self._move(make_room=make_room)

    def close(self, snapshot: Snapshot) -> None:
        """Let every thread run on all processors again."""
        if self._rest != self._all:
            self._move(make_room=False)

    def _move(self, *, make_room: bool) -> None:
        processes = [os.getpid(), *descendants(os.getpid())]
        num_engines = sum(any(map(_computes, _threads(each))) for each in processes)
        num_left = len(self._all) - self.num_threads * num_engines
        rest = self._all
        if make_room and num_left > 0:
            # The engines get the last ones, since devices often interrupt the first.
            rest = set(sorted(self._all)[:num_left])
        for each in processes:
            self._move_threads(each, rest)
        self._rest = rest

    def _move_threads(self, process: int, rest: Set[int]) -> None:
        """Move all threads of a process until there are no new ones.

        A new thread inherits the processors of the thread that started it, which may be old ones.
        """
        seen: set[Path] = set()
        while threads := set(_threads(process)) - seen:
            for thread in threads:
                with suppress(OSError):  # it has ended
                    # Other processors than these two sets are somebody else's choice.
                    if os.sched_getaffinity(int(thread.name)) in (self._all, self._rest):
                        processors = self._all if _computes(thread) else rest
                        os.sched_setaffinity(int(thread.name), processors)
            seen |= threads


def _threads(process: int) -> Iterator[Path]:
    with suppress(OSError):  # it has ended
        yield from Path(f"/proc/{process}/task").iterdir()


def _computes(thread: Path) -> bool:
    with suppress(OSError):  # it has ended
        return (thread / "comm").read_text().strip() == ENGINE_THREAD
    return False
