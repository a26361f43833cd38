"""Measure how evenly the ranks of a group work, and check that their number changes no caption.

    python -m jobs.bench.rank_balance [--ranks 1,2,4] [--rows 200]

One group of each number of ranks captions the same generated clips: the demo checkpoint in float32,
greedily, through the whole pipeline. For each number the output shows

  level       mean by greatest tokens of a rank, over the steps; 1 is best
  wait_share  share of the time of steps with work that a rank waited for others to begin
  steps       number of steps with work
  changed     captions that differ from those of the first number

The last line of the output is one JSON object; the exit code is 0 only if no caption differs.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from jobs.bench.command import bench_parser, print_json, print_value
from jobs.cli.checkpoint import find_checkpoint
from jobs.cli.options import positive, positive_list
from jobs.cli.ray_cluster import connect
from jobs.demo.clips import write_clips
from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from parallel.experts.policy import Exchange
from pipeline.config import PipelineConfig
from pipeline.media.frame_sampling import FrameSampling
from pipeline.prompts.instructions import Instructions
from pipeline.run import run
from pipeline.schema import InputColumns

_NUM_FRAMES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Caption with each number of ranks; return 0 if no caption differs."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="ranks-") as directory, connect():
        found = _compare(options, Path(directory))
    print_json({"rows": options.rows, "ranks": found})
    return int(any(numbers["changed"] for numbers in found.values()))


def _compare(options: argparse.Namespace, directory: Path) -> dict[int, dict[str, float]]:
    clips = write_clips(directory / "clips.parquet", options.rows, seed=0)
    found: dict[int, dict[str, float]] = {}
    first: dict[str, str] = {}
    for num_ranks in options.ranks:
        config = _config(options, clips, directory / f"{num_ranks}-ranks", num_ranks)
        report = run(config, connect=connect, show_progress=options.progress)
        rows = pq.read_table(config.output).to_pylist()
        captions = {row["row_id"]: row["caption"] for row in rows}
        first = first or captions
        found[num_ranks] = {
            **report.usage.ranks,
            "changed": sum(captions[row] != first[row] for row in first),
            "generated_tokens": sum(row["num_generated_tokens"] for row in rows),
            "seconds": round(report.seconds, 1),
        }
        print_value(f"{num_ranks} ranks", found[num_ranks])
    return found


def _config(
    options: argparse.Namespace, clips: Path, output: Path, num_ranks: int
) -> PipelineConfig:
    return PipelineConfig(
        input=str(clips),
        output=str(output),
        checkpoint=find_checkpoint("demo"),
        columns=InputColumns(id="id"),
        carry=(),
        instructions=Instructions(frames=FrameSampling(num_frames=_NUM_FRAMES)),
        sampling=SamplingParams(max_tokens=options.max_tokens),
        engine=EngineConfig(dtype="float32", cache_gib=0.25, max_batch_size=options.batch_size),
        num_groups=1,
        expert_parallel=num_ranks,
        exchange=Exchange(options.dispatch, options.wire_dtype),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = bench_parser("jobs.bench.rank_balance", __doc__)
    add = parser.add_argument
    add("--ranks", type=positive_list, default="1,2,4", metavar="R,...", help="group sizes")
    add("--rows", type=positive, default=200, metavar="N", help="generated clips")
    add("--batch-size", type=positive, default=8, metavar="N", help="captions at a time, per rank")
    add("--max-tokens", type=positive, default=48, metavar="N", help="longest caption, in tokens")
    add(
        "--dispatch",
        choices=("auto", "all_to_all", "all_gather"),
        default="auto",
        help="as for caption_videos",
    )
    add(
        "--wire-dtype",
        choices=("auto", "bfloat16", "float8"),
        default="auto",
        help="as for caption_videos",
    )
    add("--progress", action="store_true", help="draw progress bars")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
