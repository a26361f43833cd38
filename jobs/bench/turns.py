"""Works timed in turns, so that what is compared was measured within the same seconds.

The speed of a shared host swings by factors within minutes. A quotient of neighbours in time
survives that; one of two numbers from two moments does not.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch


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


def take_turns(works: Mapping[str, Callable[[], float]], num_rounds: int) -> Turns:
    """Do each work, which returns its seconds, once to warm up, then once a round, in order."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-1, num_rounds):
        gc.collect()  # here, lest it comes in the midst of a work
        for name, work in works.items():
            took = work()
            if number >= 0:
                seconds[name].append(took)
    return Turns(seconds)


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
