"""Measure whether a run takes only as long as the slower of its stages, on the demo checkpoint.

Prepare and engine run alone, each in this process on one thread, over the same rows; then the
pipeline runs both. The time to start (Ray, groups, workers) is subtracted: the pipeline also runs
over a few rows, and the difference is the time of the other rows. Engine and pipeline run in turns,
because the speed of a shared machine varies.
"""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.bench.measure.shapes import run_until_done
from jobs.bench.measure.turns import timed
from jobs.cli.checkpoint import DEMO
from jobs.cli.ray_cluster import connect
from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from model.inputs.prompt import Prompt
from parallel.experts.policy import Exchange
from pipeline.cluster.groups import load_engine
from pipeline.config import PipelineConfig
from pipeline.fetch.media_access import MediaAccess
from pipeline.input.plan import plan
from pipeline.input.reader import read_split
from pipeline.input.source import open_source
from pipeline.media.frame_sampling import FrameSampling
from pipeline.monitor.report import Report
from pipeline.output.ledger import OutputIndex
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.prepare import Prepare
from pipeline.prompts.prompt_columns import decode_prompt
from pipeline.run import run

_STARTS = 3  # runs over a few rows; they differ by a second
_TURNS = 2


def measure_overlap(source: Path, num_few: int, num_captions: int = 1) -> dict[str, object]:
    """Measure the seconds of both stages alone and of a whole run, and their ratio.

    A short run over `num_few` rows is subtracted from all results. Several captions per row are
    sampled, so the engine is busy longer.
    """
    temperature = 0.7 if num_captions > 1 else 0.0
    sampling = SamplingParams(max_tokens=96, n=num_captions, temperature=temperature)
    config = PipelineConfig(
        input=str(source),
        output=str(source.with_suffix(".captions")),
        checkpoint=DEMO,
        carry=(),
        instructions=Instructions(frames=FrameSampling(num_frames=8)),
        sampling=sampling,
        engine=EngineConfig(cache_gib=0.5),
        device="cpu",
    )
    prepare_s, prompts = _prepare_alone(config)
    prepare_s *= 1 - num_few / len(prompts)
    few = [_whole(config, f"few-{number}", limit=num_few) for number in range(_STARTS)]
    start_s = statistics.median(report.seconds for report in few)
    engine_alone_s, whole = [_engine_alone(config, prompts[num_few:])], []
    for number in range(_TURNS):
        whole.append(_whole(config, f"whole-{number}"))
        engine_alone_s.append(_engine_alone(config, prompts[num_few:]))
    # Each whole run is between two runs of the engine.
    engine_s = statistics.mean(map(statistics.mean, itertools.pairwise(engine_alone_s)))
    whole_s = [report.seconds - start_s for report in whole]
    rows_s = statistics.mean(whole_s)
    return {
        "rows": len(prompts) - num_few,
        "prepare_s": round(prepare_s, 2),
        "engine_s": round(engine_s, 2),
        "whole_s": round(rows_s, 2),
        "of_the_slower": round(rows_s / max(prepare_s, engine_s), 3),
        "each_engine_s": [round(each, 2) for each in engine_alone_s],
        "each_whole_s": [round(each, 2) for each in whole_s],
        "start_s": round(start_s, 2),
        "slower_stage": whole[-1].usage.slower_stage,
    }


def _whole(config: PipelineConfig, name: str, limit: int | None = None) -> Report:
    named = replace(config, limit=limit, output=f"{config.output}-{name}")
    return run(named, connect=connect, show_progress=False)


def _prepare_alone(config: PipelineConfig) -> tuple[float, list[Prompt]]:
    """Return the seconds of the prepare stage over all rows in one process, and the prompts."""
    source = open_source(config.input, config.columns, carry=config.carry)
    processor = Processor.from_checkpoint(config.checkpoint)
    access = MediaAccess(base=source.folder)
    stage = Prepare(processor, source.row_schema, config.instructions, access.open)
    prompts: list[Prompt] = []
    started_s = None
    for split in plan(source, OutputIndex.empty()).splits:
        for rows in read_split(source.filesystem, source.row_schema, split, max_rows=1):
            if started_s is None:
                stage(rows)  # starts the decoding process
                started_s = time.perf_counter()
            prompt = decode_prompt(stage(rows), 0)
            assert prompt is not None
            prompts.append(prompt)
    assert started_s is not None
    stage.close()
    return time.perf_counter() - started_s, prompts


def _engine_alone(config: PipelineConfig, prompts: Sequence[Prompt]) -> float:
    """Return the seconds of the engine over prompts that all wait from the start."""
    engine = load_engine(config.checkpoint, config.engine, Exchange(), None)
    engine.add("first", prompts[0], replace(config.sampling, max_tokens=2))
    run_until_done(engine)
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, config.sampling)
    return timed(lambda: run_until_done(engine))
