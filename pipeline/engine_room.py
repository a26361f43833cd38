"""`EngineRoom`: processors that engines on CPUs need not share with the rest of their run.

What reads, prepares and moves rows needs many short turns of a processor, and the kernel gives them
where the engine computes as readily as elsewhere. So while the engines are the slower half, all
processes of the run but ranks keep off as many processors as the ranks use. While the engines lack
rows, everything computes everywhere.
"""

import os
from collections.abc import Container, Set
from contextlib import suppress
from pathlib import Path

from pipeline.processes import command_line, descendants
from pipeline.watch import Sight

_MOST_IDLE = 0.1  # of the ranks' time, where they count as the slower half
_RANK = b"ray::Rank"  # in a command line


class EngineRoom:
    """Makes room, and takes it back, on the driver's machine and among the driver's descendants.

    So only a Ray that the driver started itself is touched, and nothing that somebody has bound to
    processors by choice. Ranks may compute everywhere. Where they need all processors,
    nothing changes.

    Args:
        num_threads: of each engine.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._all = os.sched_getaffinity(0)
        self._rest = self._all  # where all but ranks compute

    def show(self, sight: Sight) -> None:
        """Decide again, and move processes that have started since."""
        make = sight.idle_share is not None and sight.idle_share <= _MOST_IDLE
        if make or self._rest != self._all:
            self._move(make=make)

    def close(self, sight: Sight) -> None:
        """Let every process compute everywhere."""
        if self._rest != self._all:
            self._move(make=False)

    def _move(self, *, make: bool) -> None:
        processes = [os.getpid(), *descendants(os.getpid())]
        ranks = {each for each in processes if _RANK in command_line(each)}
        num_left = len(self._all) - self._num_threads * len(ranks)
        rest = self._all
        if make and num_left > 0:
            rest = set(sorted(self._all)[:num_left])  # the first often serve the devices
        for each in processes:
            _compute_on(self._all if each in ranks else rest, each, (self._all, self._rest))
        self._rest = rest


def _compute_on(processors: Set[int], process: int, instead_of: Container[Set[int]]) -> None:
    """Move all threads of a process that compute there; those that it starts meanwhile too."""
    seen: set[str] = set()
    with suppress(OSError):  # it has ended
        while threads := {path.name for path in Path(f"/proc/{process}/task").iterdir()} - seen:
            for thread in map(int, threads):
                with suppress(OSError):  # likewise
                    if os.sched_getaffinity(thread) in instead_of:
                        os.sched_setaffinity(thread, processors)
            seen |= threads
