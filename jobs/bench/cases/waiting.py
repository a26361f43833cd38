"""Measure the time of the scheduler while many prompts wait, as a share of the engine's steps.

The demo checkpoint is the hard case: its steps take milliseconds, while those of the published
widths take hundreds of milliseconds.
"""

import math
import time

import numpy as np

from jobs.bench.cases.workbench import Workbench
from jobs.bench.measure.shapes import text_prompt
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.scheduler import Chunk, Scheduler
from model.engine.sequence import SamplingParams, Sequence

_BATCH_SIZE = 32


class ClockedScheduler(Scheduler):
    """A scheduler that adds up its seconds within steps."""

    spent_s = 0.0

    def plan(self, max_new_tokens: float = math.inf) -> list[Chunk]:
        """Plan like `Scheduler.plan`."""
        started = time.perf_counter()
        chunks = super().plan(max_new_tokens)
        self.spent_s += time.perf_counter() - started
        return chunks

    def finish(self, sequence: Sequence) -> None:
        """Finish like `Scheduler.finish`."""
        started = time.perf_counter()
        super().finish(sequence)
        self.spent_s += time.perf_counter() - started


def measure_scheduler(bench: Workbench) -> dict[str, object]:
    """Measure steps in which prompts begin, decode and finish while `num_waiting` others wait."""
    sizes = bench.sizes
    config = EngineConfig(max_batch_size=_BATCH_SIZE, cache_gib=0.25, num_threads=bench.num_threads)
    engine = Engine.from_checkpoint(bench.checkpoint, config)
    scheduler = ClockedScheduler(engine.pool, _BATCH_SIZE, config.max_step_tokens)
    engine.scheduler = scheduler
    rng = np.random.default_rng(0)
    num_unfinished = number = 0
    step_s = 0.0
    for _ in range(sizes.waiting_steps):
        while num_unfinished < sizes.num_waiting + _BATCH_SIZE:
            prompt = text_prompt(rng.integers(5, 600, sizes.prompt_len, dtype=np.int32))
            params = SamplingParams(max_tokens=8 + number % 32, loop_guard=0)
            engine.add(str(number), prompt, params)
            num_unfinished, number = num_unfinished + 1, number + 1
        started = time.perf_counter()
        num_unfinished -= len(engine.step())
        step_s += time.perf_counter() - started
    return {
        "scheduler_share": round(scheduler.spent_s / step_s, 5),
        "scheduler_us_per_step": round(1e6 * scheduler.spent_s / sizes.waiting_steps, 1),
    }
