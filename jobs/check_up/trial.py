"""Some sampled rows answered by the engine in this process, for an estimate of the whole job."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.check_up.finding import Finding
from jobs.check_up.sampled_rows import SampledRow
from pipeline.config import PipelineConfig
from pipeline.machines import load_engine


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the engine did."""

    num_rows: int
    num_generated_tokens: int
    seconds: float
    load_s: float


def run_trial(config: PipelineConfig, rows: Sequence[SampledRow]) -> Trial:
    """Load the model, answer `rows` together, and say how long it took."""
    import torch

    has_gpu = torch.cuda.is_available() and config.device != "cpu"
    started = time.perf_counter()
    device = "cuda" if has_gpu else "cpu"
    engine = load_engine(
        config.checkpoint, replace(config.engine, device=device), config.dispatch, None
    )
    loaded = time.perf_counter()
    for row in rows:
        for prompt in row.prompts:
            engine.add(row.row_id, prompt, config.sampling)
    num_tokens = 0
    with torch.inference_mode():
        while engine.has_work:
            for _, outcome in engine.step():
                num_tokens += getattr(outcome, "num_generated_tokens", 0)
    return Trial(
        num_rows=len(rows),
        num_generated_tokens=num_tokens,
        seconds=time.perf_counter() - loaded,
        load_s=loaded - started,
    )


def forecast(
    trial: Trial, decode_s: float, num_rows: int, num_groups: int, num_cpus: int
) -> Finding:
    """How long the job takes if all rows are like the sample.

    Decoding and answering overlap, so the slower of them counts. The engine answers a few rows at a
    time here and `--batch-size` in a job, which is faster: take it as the most.
    """
    answer_s = trial.seconds / max(1, trial.num_rows) / num_groups
    prepare_s = decode_s / max(1, num_cpus - 1)
    seconds = num_rows * max(answer_s, prepare_s)
    tokens = num_rows * trial.num_generated_tokens / max(1, trial.num_rows)
    slower = "answering" if answer_s > prepare_s else "decoding"
    tried = f"{trial.num_rows} rows answered at once in {trial.seconds:.1f} s"
    return Finding(
        "ok",
        "forecast",
        f"{tried} (loading {trial.load_s:.1f} s): {num_rows} rows take at most about "
        f"{_duration(seconds)} with {num_groups} group(s), bound by {slower}, and give about "
        f"{tokens:,.0f} tokens",
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"
