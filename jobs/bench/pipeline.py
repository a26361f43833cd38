"""Measure the pipeline without its model: ceiling, memory, resuming, overlap, starting.

    python -m jobs.bench.pipeline ceiling     rows/s with an engine that answers at once
    python -m jobs.bench.pipeline slow        memory over time with a slow engine, as a PNG
    python -m jobs.bench.pipeline planning    seconds and memory before the first row of many
    python -m jobs.bench.pipeline overlap     a whole run compared with its stages alone
    python -m jobs.bench.pipeline start       seconds of three rows from typing to exit, and of Ray

The last line of the output is one JSON object.
"""

import argparse
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from jobs.bench.command import bench_parser, print_json
from jobs.bench.flow.overlap import measure_overlap
from jobs.bench.flow.paced import run_with
from jobs.bench.flow.planning import measure_planning
from jobs.bench.flow.start import measure_start
from jobs.cli.checkpoint import DEMO
from jobs.cli.processes import command_line, private_bytes
from jobs.demo.clips import encode, write_clips
from model.engine.config import EngineConfig
from pipeline.cluster.processes import descendants
from pipeline.config import PipelineConfig
from pipeline.media.frame_sampling import FrameSampling
from pipeline.monitor.object_store import object_store_use
from pipeline.prompts.instructions import Instructions
from pipeline.stages.sizing import row_bytes

_SAMPLE_S = 0.5
_ROWS = {"ceiling": 3000, "slow": 2000, "planning": 100_000, "overlap": 1500}
_FEW = 64  # rows of the short run that measures the start
_CAPTIONS = 4  # per row, in the case with several
_KINDS = {  # kinds of processes, by their command lines
    "rank": re.compile(rb"^ray::Rank"),
    "prepare": re.compile(rb"_Preparer"),
    "decoder": re.compile(rb"sandbox_process"),
    "generate": re.compile(rb"_Generator"),
    "rest of Ray": re.compile(rb""),
}
_MINUTE_RATE = 15  # frames per second


def ceiling(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Measure rows/s of all stages with an engine that answers at once, for rows of two sizes."""
    rates: dict[str, object] = {}
    clip = small_clip(num_frames=1, width_px=64, height_px=64)
    for name, num_bytes, num_rows in (("1kB", 1000, options.rows), ("5MB", 5_000_000, 150)):
        for rows_per_batch in (1, 8):
            source = write_input(folder / f"{name}.parquet", padded(clip, num_bytes), num_rows)
            config = make_config(source, folder / f"{name}-{rows_per_batch}", num_frames=1)
            config = replace(config, rows_per_batch=rows_per_batch)
            report = run_with(config, inf)
            rates[f"{name}_batches_of_{rows_per_batch}"] = round(report.rates["rows_per_s"], 1)
    return {"rows_per_s": rates}


def slow(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Measure memory over time while decoded frames could pile up before a slow engine."""
    clip = minute_clip()
    source = write_input(folder / "slow.parquet", clip, options.rows)
    config = make_config(source, folder / "slow", num_frames=8, keyframes_only=True)
    samples: list[dict[str, float]] = []
    report = run_with(config, options.rows_per_s, partial(_sample_memory, samples))
    memory = pd.DataFrame(samples).set_index("seconds") / 1e6
    axes = memory.plot(figsize=(9, 4.2), ylabel="MB", ylim=(0, None))
    axes.figure.savefig(options.chart, format="png")
    middle = memory.loc[0.2 * memory.index[-1] : 0.95 * memory.index[-1]]
    half = len(middle) // 2
    spilled = report.usage.spilled_bytes
    return {
        "rows": report.rows_written,
        "seconds": round(report.seconds, 1),
        "clips_mb_of_all_rows": round(report.rows_written * len(clip) / 1e6),
        "frames_mb_of_all_rows": round(report.rows_written * row_bytes(config) / 1e6),
        "mb_first_half": middle[:half].mean().round().to_dict(),
        "mb_second_half": middle[half:].mean().round().to_dict(),
        "store_mb_most": round(memory["object store"].max()),
        "spilled_mb": None if spilled is None else round(spilled / 1e6),
    }


def overlap(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Measure how well stages overlap, on short clips and on minutes of 720p.

    The short clips are those of the demo, once with several captions each; there are a tenth as
    many minutes of 720p.
    """
    num_rows = options.rows // 10
    num_several = options.rows // _CAPTIONS
    short = write_clips(folder / "short.parquet", options.rows + _FEW, seed=0)
    found: dict[str, object] = {"demo_clips": measure_overlap(short, _FEW)}
    if num_several:
        several = write_clips(folder / "several.parquet", num_several + _FEW, seed=0)
        found[f"demo_clips_{_CAPTIONS}_captions"] = measure_overlap(several, _FEW, _CAPTIONS)
    if num_rows:
        minutes = write_input(folder / "minutes.parquet", minute_clip(), num_rows + _FEW // 4)
        found["minutes_of_720p"] = measure_overlap(minutes, _FEW // 4)
    return found


def start(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Measure a run of three rows from typing to exit, and Ray's own start and end."""
    del options  # it is always three rows
    return measure_start(folder)


def planning(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Measure what comes before the first row of a run of many rows, and of one that continues."""
    return measure_planning(folder, options.rows)


def make_config(
    source: Path, output: Path, *, num_frames: int, keyframes_only: bool = False
) -> PipelineConfig:
    """Configure a run with the demo checkpoint, for its image processor."""
    return PipelineConfig(
        input=str(source),
        output=str(output),
        checkpoint=DEMO,
        carry=(),
        instructions=Instructions(
            frames=FrameSampling(num_frames=num_frames, keyframes_only=keyframes_only),
            max_frame_tokens=256,
        ),
        engine=EngineConfig(max_batch_size=32),
        device="cpu",
    )


def small_clip(*, num_frames: int, width_px: int, height_px: int) -> bytes:
    """Encode a moving gradient as MP4."""
    ramp = np.add.outer(np.arange(height_px), np.arange(width_px)).astype(np.uint8)
    frames = [np.repeat(np.roll(ramp, 9 * n, axis=1)[..., None], 3, 2) for n in range(num_frames)]
    return encode(np.stack(frames), 8)


def minute_clip() -> bytes:
    """Encode a minute of 720p: a texture that drifts, with a keyframe every second."""
    return encode(_minute_frames(), _MINUTE_RATE, crf="38", g=str(_MINUTE_RATE))


def _minute_frames() -> Iterator[NDArray[np.uint8]]:
    texture = np.random.default_rng(0).integers(40, 200, (90, 160, 3), np.uint8)
    image = np.kron(texture, np.ones((8, 8, 1), np.uint8))  # 1280 x 720
    for number in range(60 * _MINUTE_RATE):
        yield np.roll(image, 3 * number, axis=1)


def padded(clip: bytes, num_bytes: int) -> bytes:
    """Pad a clip to `num_bytes` with a box that readers skip (ISO/IEC 14496-12, 8.1.2)."""
    num_more = max(8, num_bytes - len(clip))
    return clip + num_more.to_bytes(4, "big") + b"free" + bytes(num_more - 8)


def write_input(path: Path, clip: bytes, num_rows: int) -> Path:
    """Write a Parquet file with the same clip in every row."""
    group = max(1, min(num_rows, (64 << 20) // len(clip)))
    schema = pa.schema([("video", pa.large_binary())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, num_rows, group):
            rows = min(group, num_rows - start)
            writer.write_table(pa.table([[clip] * rows], schema))
    return path


def _sample_memory(samples: list[dict[str, float]], ended: threading.Event) -> None:
    """Sample the bytes of the object store and of each kind of process, by seconds."""
    started_s = time.monotonic()
    while not ended.wait(_SAMPLE_S):
        if not ray.is_initialized():
            continue
        store = object_store_use(ray.get_runtime_context().gcs_address)
        if store is not None:
            seconds = time.monotonic() - started_s
            memory = {"seconds": seconds, "object store": store.used_bytes, **_memory_by_kind()}
            samples.append(memory)


def _memory_by_kind() -> dict[str, int]:
    """Return the resident bytes of all processes by kind, without the object store."""
    memory = dict.fromkeys(_KINDS, 0) | {"driver": private_bytes(os.getpid())}
    for pid in descendants(os.getpid()):
        command = command_line(pid)
        kind = next(name for name, sign in _KINDS.items() if sign.search(command))
        memory[kind] += private_bytes(pid)
    return memory


def _never() -> NoReturn:
    raise AssertionError("all rows are done")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and return the exit code."""
    parser = bench_parser("jobs.bench.pipeline", __doc__)
    benches = {each.__name__: each for each in (ceiling, slow, planning, overlap, start)}
    parser.add_argument("bench", choices=list(benches), help="what to measure")
    defaults = ", ".join(f"{number} for {name}" for name, number in _ROWS.items())
    add = parser.add_argument
    add("--rows", type=int, help=f"rows of the input; default: {defaults}")
    add("--rows-per-s", type=float, default=4.0, help="rate of the slow engine")
    add("--chart", default="flow.png", help="file for the chart of the slow engine's memory")
    options = parser.parse_args(arguments)
    options.rows = options.rows or _ROWS.get(options.bench)
    with tempfile.TemporaryDirectory(prefix="bench-flow-") as folder:
        found = benches[options.bench](Path(folder), options)
        print_json(found if options.bench == "start" else {options.bench: found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
