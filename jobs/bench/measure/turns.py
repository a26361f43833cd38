"""Time several works in turns, so that compared works are measured within the same seconds.

The speed of a shared machine varies by factors within minutes. The quotient of two works that ran
one after the other is still meaningful; that of two separate measurements is not. Rounds during
which other processes were busy are repeated; after too many, the least disturbed ones count.
"""

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

_QUIET = 0.1  # share of the processors that others may use in a round that counts
MOST_TRIES = 2  # most rounds, as a multiple of the requested ones


@dataclass(frozen=True)
class Turns:
    """The seconds of each work in each round."""

    seconds: Mapping[str, list[float]]

    def typical(self, work: str) -> float:
        """Return the median seconds of a work."""
        return median(self.seconds[work])

    def quotient(self, work: str, other: str) -> float:
        """Return the median over the rounds of one work's seconds by the other's."""
        rounds = zip(self.seconds[work], self.seconds[other], strict=True)
        return median(one / another for one, another in rounds)

    def rates(self, name: str, unit: str, number: float) -> dict[str, float]:
        """Compare "ours", which does `number` units, with "limit" and, if measured, "theirs"."""
        found = {
            f"{name}_{unit}_per_s": round(number / self.typical("ours"), 2),
            f"{name}_of_limit": round(self.quotient("limit", "ours"), 3),
        }
        if "theirs" in self.seconds:
            found[f"{name}_vs_transformers"] = round(self.quotient("theirs", "ours"), 2)
        return found


class Others:
    """Measures the CPU use of other processes from now on; it is 0 without /proc.

    Child processes count as this process once they have ended and were waited for.
    """

    def __init__(self) -> None:
        self._wall_s, self._busy_s, self._own_s = _clocks()

    def share(self) -> float:
        """Return the share of all CPU time since this object was made."""
        wall_s, busy_s, own_s = _clocks()
        others_s = (busy_s - self._busy_s) - (own_s - self._own_s)
        available_s = (os.cpu_count() or 1) * (wall_s - self._wall_s)
        return max(0.0, others_s / available_s)


def _clocks() -> tuple[float, float, float]:
    """Return the wall time, the busy time of all CPUs, and the CPU time of this process."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return time.perf_counter(), 0.0, 0.0
    own_s = sum(os.times()[:4])  # user, system, and those of children
    # proc_stat(5): user nice system idle iowait irq softirq steal
    ticks = list(map(int, stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]))
    busy_s = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy_s, own_s


def take_turns(works: Mapping[str, Callable[[], float]], num_rounds: int) -> Turns:
    """Run each work once to warm up, then once per round, in order; each returns its seconds."""
    for work in works.values():
        work()
    rounds: list[tuple[float, dict[str, float]]] = []  # CPU share of others, seconds of each work
    while (
        len(rounds) < MOST_TRIES * num_rounds
        and sum(share < _QUIET for share, _ in rounds) < num_rounds
    ):
        gc.collect()  # now, so that it does not run during a work
        others = Others()
        seconds = {name: work() for name, work in works.items()}
        rounds.append((others.share(), seconds))
    quietest = sorted(rounds, key=lambda each: each[0])[:num_rounds]
    return Turns({name: [seconds[name] for _, seconds in quietest] for name in works})


@torch.inference_mode()
def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def by_key(found: Mapping[Any, Mapping[str, object]]) -> dict[str, object]:
    """Turn measurements by case and key into measurements by key and case that has it."""
    keys = dict.fromkeys(key for each in found.values() for key in each)
    return {key: {case: each[key] for case, each in found.items() if key in each} for key in keys}
