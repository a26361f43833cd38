"""Answer some sampled rows with an engine in this process, to forecast the time of a whole job."""

import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.checks.finding import Finding, Level
from jobs.checks.sampled_rows import SampledRow
from jobs.checks.weights import Footprint, free_gib
from model.config import BLOCK_SIZE
from model.engine.config import EngineConfig
from model.engine.fit.capacity import default_batch_size
from model.malloc import own_peak_bytes
from pipeline.cluster.groups import load_engine
from pipeline.config import PipelineConfig
from pipeline.monitor.printable import printable
from pipeline.monitor.progress import duration_text

_GIB = 1 << 30
_MOST_CHARACTERS = 200  # of an answer that is shown
_MOST_PROMPTS = 16  # answered of one row: a long document has hundreds


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The measurements of one trial."""

    num_threads: int  # of the engine, on CPUs that also prepare rows; 0 on a GPU
    num_rows: int
    num_prompts: int  # of these rows; long documents have more
    num_generated_tokens: int
    seconds: float
    load_s: float
    peak_gib: float  # memory of this process, or of the GPU
    answers: Sequence[tuple[str, str]] = ()  # id of a row, and the text of its first answer


def no_room(footprint: Footprint, engine: EngineConfig) -> Finding | None:
    """Return the finding that replaces a trial if no whole copy fits into memory, else None."""
    needed, (free, where) = footprint.rank_gib(1, engine), free_gib(engine.device)
    if needed <= free:
        return None
    text = (
        f"none: answering rows needs one whole copy, {needed:.1f} GiB, but {free:.1f} GiB are free "
        f"on {where}; --answers 0 leaves this out"
    )
    return Finding("note", "forecast", text)


def run_trial(config: PipelineConfig, rows: Sequence[SampledRow]) -> Trial:
    """Load a whole copy of the model, answer `rows` together, and measure the time.

    If a row has very many prompts, only the first ones are answered.
    """
    import torch

    has_gpu = config.engine.device == "cuda"
    started = time.perf_counter()
    engine = load_engine(config.checkpoint, config.engine, config.exchange, None)
    loaded = time.perf_counter()
    num_prompts = num_tokens = 0
    texts: dict[str, str] = {}
    for number, row in enumerate(rows):
        for place, (prompt, params) in enumerate(row.asked[:_MOST_PROMPTS]):
            engine.add(f"{number}.{place}", prompt, params)
            num_prompts += 1
    with torch.inference_mode():
        while engine.has_work:
            for request_id, outcome in engine.step():
                num_tokens += getattr(outcome, "num_generated_tokens", 0)
                texts[request_id] = getattr(outcome, "text", str(outcome))
    peak_bytes = torch.cuda.max_memory_allocated() if has_gpu else own_peak_bytes()
    return Trial(
        num_threads=0 if has_gpu else config.engine.num_threads,
        num_rows=len(rows),
        num_prompts=num_prompts,
        num_generated_tokens=num_tokens,
        seconds=time.perf_counter() - loaded,
        load_s=loaded - started,
        peak_gib=peak_bytes / _GIB,
        answers=[(row.row_id, texts[f"{number}.0"]) for number, row in enumerate(rows)],
    )


def answer_findings(trial: Trial) -> Iterator[Finding]:
    """Show the first answer of each row that the trial answered."""
    for row_id, text in trial.answers:
        shown = textwrap.shorten(printable(text), _MOST_CHARACTERS, placeholder=" ...")
        yield Finding("ok", "answer", f"{printable(row_id)}: {shown}")


def cache_finding(
    rows: Sequence[SampledRow], footprint: Footprint, engine: EngineConfig
) -> Finding:
    """Report how many sequences like the sampled ones fit into the cache of a rank."""
    if engine.cache_fraction is not None:
        text = "the size of the cache is known only once the weights are loaded"
        return Finding("note", "memory", text)
    if engine.cache_gib is None and engine.device != "cpu":
        text = "the size of the cache is known only once a worst-case step has been measured"
        return Finding("note", "memory", text)
    cache_gib, width = footprint.cache_gib(engine), footprint.token_bytes()
    num_tokens = int(cache_gib * _GIB) // (width * BLOCK_SIZE) * BLOCK_SIZE
    batch_size = engine.max_batch_size or default_batch_size(engine.device)
    longest = max(row.longest for row in rows)
    num_held = num_tokens // longest
    level: Level = "ok" if num_held >= batch_size else "note"
    if num_held == 0:
        level = "BAD"
    text_of = (
        f"--cache-gib {cache_gib:g} holds {num_tokens:,} tokens: {num_held} sequences like "
        f"the longest sampled ({longest} tokens with its answer), for --batch-size {batch_size}"
    )
    return Finding(level, "memory", text_of)


def forecast(
    trial: Trial, rows: Sequence[SampledRow], num_rows: int, num_groups: int, num_cpus: int
) -> Iterator[Finding]:
    """Forecast the time and tokens of the job, if all rows are like the sample.

    Decoding and answering overlap, so the slower of them decides, or the CPU time of both if they
    share processors. The engine answers a few rows at a time here and `--batch-size` in a job,
    which is faster, so the forecast is an upper limit.

    `rows` are those of the sample that can be used, `num_rows` is that of the job, and
    `num_groups` is the number of copies of the model. The trial answered at least one prompt.
    """
    decode_s = sum(row.seconds for row in rows) / len(rows)
    prompts_per_row = sum(len(row.asked) for row in rows) / len(rows)
    engine_s = trial.seconds / trial.num_prompts * prompts_per_row
    bounds = {
        "answering": engine_s / num_groups,
        "decoding": decode_s / num_cpus,
        "the processors, which both need": (decode_s + trial.num_threads * engine_s) / num_cpus,
    }
    slower = max(bounds, key=lambda name: bounds[name])  # the first of equals
    seconds = num_rows * bounds[slower]
    yield Finding(
        "ok",
        "forecast",
        f"{trial.num_prompts} prompts of {trial.num_rows} rows answered at once in "
        f"{trial.seconds:.1f} s (loading {trial.load_s:.1f} s): {num_rows} rows take at most about "
        f"{duration_text(seconds)} with {num_groups} group(s), bound by {slower}; to this comes "
        "the start: Ray, and loading",
    )

    prompt = num_rows * sum(row.num_tokens for row in rows) / len(rows)
    visual = num_rows * sum(row.num_visual_tokens for row in rows) / len(rows)
    generated = num_rows * trial.num_generated_tokens / trial.num_prompts * prompts_per_row
    yield Finding(
        "ok",
        "forecast",
        f"they have about {prompt:,.0f} prompt tokens, {visual:,.0f} of them visual, and generate "
        f"about {generated:,.0f} tokens; the peak memory of the trial was {trial.peak_gib:.1f} GiB",
    )
