"""`Decoding`: sequences of an engine that all decode in every step."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from jobs.bench.device.bench import DeviceBench
from jobs.bench.measure.shapes import add_all, run_until_done
from jobs.bench.measure.turns import MOST_TRIES
from model.engine.engine import Engine

_WARM_UP = 8  # steps before the first measured one; within them all sequences must begin
_OTHER_ROUNDS = 3  # whose steps are counted or profiled, and not timed


@contextmanager
def decoding(
    bench: DeviceBench, num_sequences: int, *, has_graphs: bool = True
) -> "Iterator[Decoding]":
    """Start sequences, and check at the end that they decoded together.

    Raises NoRoomError before anything starts, and RuntimeError at the end.
    """
    sizes = bench.sizes
    num_rounds = MOST_TRIES * sizes.num_rounds + 1 + _OTHER_ROUNDS
    num_steps = 2 * _WARM_UP + num_rounds * sizes.decode_steps
    length = sizes.prompt_len + num_steps
    with bench.engine(num_sequences, length, has_graphs=has_graphs) as engine:
        found = Decoding(bench, engine, num_sequences, num_steps)
        yield found
        found.check()


class Decoding:
    """B sequences that decode in every step, behind prompts that share nothing."""

    def __init__(
        self, bench: DeviceBench, engine: Engine, num_sequences: int, num_steps: int
    ) -> None:
        self._bench, self._engine = bench, engine
        self._num_sequences = num_sequences
        self.context_len = bench.sizes.prompt_len  # of each sequence
        prompts = [bench.prompts.text(self.context_len) for _ in range(num_sequences)]
        # The second time only the last block of each prompt is computed, so that all sequences
        # begin within few steps.
        add_all(engine, prompts, max_tokens=1)
        run_until_done(engine)
        add_all(engine, prompts, max_tokens=num_steps)
        self.steps(_WARM_UP)

    def steps(self, number: int) -> None:
        """Generate so many tokens for each sequence."""
        for _ in range(number):
            if self._engine.step():
                raise RuntimeError("a sequence ended before all were measured")
        self.context_len += number

    def round(self) -> None:
        """Do the steps of one round."""
        self.steps(self._bench.sizes.decode_steps)

    def step_s(self) -> float:
        """Return the mean seconds of a step, over one round."""
        return self._bench.timed(self.round) / self._bench.sizes.decode_steps

    def experts_per_layer(self) -> float:
        """Return how many experts of a layer one step reads, the mean over layers."""
        before = self._engine.expert_load()
        self.steps(1)
        after = self._engine.expert_load()
        return float(np.mean([(after[layer] > before[layer]).sum() for layer in after] or [0]))

    def check(self) -> None:
        """Run to the end; raise RuntimeError if sequences did not decode together."""
        ended: list[int] = []
        while self._engine.has_work:
            ended.append(len(self._engine.step()))
        steps = np.flatnonzero(ended)
        if sum(ended) != self._num_sequences or steps[-1] - steps[0] > _WARM_UP:
            raise RuntimeError(f"{self._num_sequences} sequences did not decode together")
