"""Works timed in turns, so that what is compared was measured within the same seconds.

The speed of a shared machine swings by factors within minutes. A quotient of neighbours in time
survives that; one of two numbers from two moments does not. Rounds beside which other processes
were busy are done again, and if that does not end, the least disturbed ones count.
"""

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

_QUIET = 0.1  # share of the processors that others may use in a round that counts
MOST_TRIES = 2  # rounds, in units of those that are asked for


@dataclass(frozen=True)
class Turns:
    """Seconds of each work in each round."""

    seconds: Mapping[str, list[float]]

    def typical(self, work: str) -> float:
        """Median seconds of a work."""
        return median(self.seconds[work])

    def quotient(self, work: str, other: str) -> float:
        """Median over the rounds of one work's seconds by the other's."""
        rounds = zip(self.seconds[work], self.seconds[other], strict=True)
        return median(one / another for one, another in rounds)


class Others:
    """What other processes use of the processors, from now on; 0 where there is no /proc.

    Children count as this process once they have ended and were waited for.
    """

    def __init__(self) -> None:
        self._wall_s, self._busy_s, self._own_s = _clocks()

    def share(self) -> float:
        """Of all processors' time since this was made."""
        wall_s, busy_s, own_s = _clocks()
        others_s = (busy_s - self._busy_s) - (own_s - self._own_s)
        available_s = (os.cpu_count() or 1) * (wall_s - self._wall_s)
        return max(0.0, others_s / available_s)


def _clocks() -> tuple[float, float, float]:
    """Wall time, the processors' busy time, and this process's part of it."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return time.perf_counter(), 0.0, 0.0
    own_s = sum(os.times()[:4])  # user, system, and those of children
    # proc_stat(5): user nice system idle iowait irq softirq steal
    ticks = list(map(int, stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]))
    busy_s = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy_s, own_s


def take_turns(works: Mapping[str, Callable[[], float]], num_rounds: int) -> Turns:
    """Do each work, which returns its seconds, once to warm up, then once a round, in order."""
    for work in works.values():
        work()
    rounds: list[tuple[float, dict[str, float]]] = []  # share of others, seconds of each work
    while (
        len(rounds) < MOST_TRIES * num_rounds
        and sum(share < _QUIET for share, _ in rounds) < num_rounds
    ):
        gc.collect()  # here, lest it comes in the midst of a work
        others = Others()
        seconds = {name: work() for name, work in works.items()}
        rounds.append((others.share(), seconds))
    quietest = sorted(rounds, key=lambda each: each[0])[:num_rounds]
    return Turns({name: [seconds[name] for _, seconds in quietest] for name in works})


@torch.inference_mode()
def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def repeat(work: Callable[[], object], times: int) -> None:
    """Do a work several times."""
    for _ in range(times):
        work()
