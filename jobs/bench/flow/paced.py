"""Define `PacedEngine`, an engine without a model that answers at a given pace."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf

from jobs.cli.ray_cluster import connect
from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt, PromptError
from parallel.experts.load import ExpertLoad
from pipeline.config import PipelineConfig
from pipeline.monitor.report import Report
from pipeline.run import run

_ANSWER = Completion(
    text="a clip",
    token_ids=(1,),
    finish_reason="stop",
    num_prompt_tokens=1,
    num_generated_tokens=1,
    mean_logprob=0.0,
    min_logprob=0.0,
)


class PacedEngine:
    """Answers at a given pace, without looking at prompts; at an infinite pace, all at once."""

    def __init__(self, rows_per_s: float) -> None:
        self._rows_per_s = rows_per_s
        self._waiting: list[str] = []
        self._num_steps = 0

    @property
    def has_work(self) -> bool:
        """Whether any request waits."""
        return bool(self._waiting)

    def add(
        self, request_id: str, prompt: Prompt, params: SamplingParams, *, own_step: bool = False
    ) -> None:
        """Queue a prompt."""
        del prompt, params, own_step
        self._waiting.append(request_id)

    def step(self) -> Sequence[tuple[str, Completion | PromptError]]:
        """Answer the oldest request, or all."""
        self._num_steps += 1
        num_rows = len(self._waiting) if self._rows_per_s == inf else 1
        time.sleep(1 / self._rows_per_s)
        answered, self._waiting = self._waiting[:num_rows], self._waiting[num_rows:]
        return [(request_id, _ANSWER) for request_id in answered]

    def cancel(self, request_id: str) -> None:
        """Forget a request."""
        self._waiting = [each for each in self._waiting if each != request_id]

    def stats(self) -> Mapping[str, float]:
        """Return the number of steps."""
        return {"steps": self._num_steps}

    def expert_load(self) -> ExpertLoad:
        """Return nothing, because there are no experts."""
        return {}

    def close(self) -> None:
        """Do nothing, because nothing was opened."""


def run_with(
    config: PipelineConfig,
    rows_per_s: float,
    watch: Callable[[threading.Event], None] = lambda _: None,
) -> Report:
    """Run with a paced engine, while `watch` runs in another thread."""

    def factory(*_: object) -> PacedEngine:
        return PacedEngine(rows_per_s)

    ended = threading.Event()
    thread = threading.Thread(target=watch, args=(ended,), daemon=True)
    thread.start()
    try:
        return run(config, connect=connect, engine_factory=factory, show_progress=False)
    finally:
        ended.set()
        thread.join()
