"""`CpuAffinity`: processors that engines on CPUs need not share with the rest of their run.

What reads, prepares and moves rows needs many short turns of a processor, and the kernel gives them
where the engine computes as readily as elsewhere. So while the engines are the slower half, all
threads of the run but theirs keep off as many processors as they use; those of ranks that receive
and answer too. While the engines lack rows, everything computes everywhere.
"""

import os
from collections.abc import Iterator, Set
from contextlib import suppress
from pathlib import Path

from parallel.ranks.worker import ENGINE_THREAD
from pipeline.cluster.processes import descendants
from pipeline.monitor.snapshot import Snapshot

_MOST_IDLE = 0.1  # of the ranks' time, where they count as the slower half


class CpuAffinity:
    """Makes room, and takes it back, on the driver's machine and among the driver's descendants.

    So only a Ray that the driver started itself is touched, and nothing that somebody has bound to
    processors by choice. Engines may compute everywhere. Where they need all processors,
    nothing changes.

    Args:
        num_threads: of each engine.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._all = os.sched_getaffinity(0)
        self._rest = self._all  # where all but engines compute

    def show(self, snapshot: Snapshot) -> None:
        """Decide again, and move threads that have started since."""
        make = snapshot.idle_share is not None and snapshot.idle_share <= _MOST_IDLE
        if make or self._rest != self._all:
            self._move(make=make)

    def close(self, snapshot: Snapshot) -> None:
        """Let everything compute everywhere."""
        if self._rest != self._all:
            self._move(make=False)

    def _move(self, *, make: bool) -> None:
        processes = [os.getpid(), *descendants(os.getpid())]
        num_engines = sum(any(map(_computes, _threads(each))) for each in processes)
        num_left = len(self._all) - self._num_threads * num_engines
        rest = self._all
        if make and num_left > 0:
            rest = set(sorted(self._all)[:num_left])  # the first often serve the devices
        for each in processes:
            self._move_threads(each, rest)
        self._rest = rest

    def _move_threads(self, process: int, rest: Set[int]) -> None:
        """Move all threads, and look again for new ones, which begin where their starter was."""
        seen: set[Path] = set()
        while threads := set(_threads(process)) - seen:
            for thread in threads:
                with suppress(OSError):  # it has ended
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
