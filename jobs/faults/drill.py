"""A fire drill: caption clips, kill and stop ranks meanwhile, and see that nothing was lost.

    python -m jobs.faults.drill
    python -m jobs.faults.drill --kill-rank 3 --at-step 100 --stop-rank 0 --at-step 40

Groups of ranks caption the same clips twice: undisturbed, and under faults. Ranks are counted over
all groups: with two ranks a group, rank 3 is the second of the second. Steps are those
with work, of the process that is hit. The last line is JSON; the exit code is 0 only if every row
came out exactly once with the same text, and every fault fell.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from jobs.cli.checkpoint import find_checkpoint
from jobs.cli.options import Formatter, Parser, positive
from jobs.cli.ray_cluster import connect
from jobs.demo.clips import write_clips
from jobs.faults.faulty_engine import Fault, load_hurt_engine, make_blows, random_blows
from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from parallel.experts.policy import Exchange
from pipeline.config import PipelineConfig
from pipeline.media.frame_sampling import FrameSampling
from pipeline.monitor.report import Report
from pipeline.prompts.instructions import Instructions
from pipeline.run import RunError, run
from pipeline.schema import InputColumns

_NUM_FRAMES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill; the exit code."""
    options = parse(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="drill-") as directory, connect():
            result = drill(options, Path(directory))
    except ValueError as error:
        print(f"drill: error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"drill: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0 if is_well(result) else 1


def drill(options: argparse.Namespace, directory: Path) -> dict[str, float]:
    """Caption in peace and under faults, and compare.

    Raises:
        ValueError: the faults that were asked for cannot be.
        RunError: a run stopped.
    """
    asked = _asked_blows(options)
    peace = _config(options, directory, "peace")
    _say("in peace ...")
    undisturbed = run(peace, connect=connect, show_progress=options.progress)
    faults = asked or _random_blows(options, undisturbed)
    for fault in faults:
        _say(f"rank {fault.rank} of group {fault.group}, step {fault.step}: {fault.kind}")
    storm = replace(peace, output=str(directory / "storm"), max_group_failures=3 * len(faults) + 3)
    factory = partial(load_hurt_engine, faults)
    report = run(storm, connect=connect, engine_factory=factory, show_progress=options.progress)
    for failure in report.usage.group_failures:
        _say(failure)
    return {**compare(peace, storm), **_deaths(faults, report)}


def compare(peace: PipelineConfig, storm: PipelineConfig) -> dict[str, float]:
    """Count rows of two outputs, and captions that differ."""
    expected, got = (
        pq.read_table(
            config.output, columns=["row_id", "caption", "error_code", "error"]
        ).to_pylist()
        for config in (peace, storm)
    )
    found = {row["row_id"]: row for row in got}
    copies = Counter(row["row_id"] for row in got)
    changed = [row for row in expected if found.get(row["row_id"]) != row]
    for row in changed:
        _say(f"{row} became {found.get(row['row_id'])}")
    return {
        "rows_in": pq.read_metadata(peace.input).num_rows,
        "rows_out": len(got),
        "duplicates": sum(count - 1 for count in copies.values()),
        "text_changed": len(changed),
    }


def is_well(result: dict[str, float]) -> bool:
    """Whether nothing was lost, doubled or changed, and every fault fell."""
    return (
        result["rows_out"] == result["rows_in"]
        and not result["duplicates"]
        and not result["text_changed"]
        and result["deaths"] >= result["faults"]
    )


def _deaths(faults: Sequence[Fault], report: Report) -> dict[str, float]:
    return {
        "faults": len(faults),
        "deaths": len(report.usage.group_failures),
        "longest_pause_s": round(report.usage.longest_pause_s, 2),
        "seconds": round(report.seconds, 1),
    }


def _config(options: argparse.Namespace, directory: Path, name: str) -> PipelineConfig:
    clips = directory / "clips.parquet"
    write_clips(clips, options.rows, options.seed)
    return PipelineConfig(
        input=str(clips),
        output=str(directory / name),
        checkpoint=find_checkpoint(options.model),
        columns=InputColumns(id="id"),
        carry=(),
        instructions=Instructions(frames=FrameSampling(num_frames=_NUM_FRAMES)),
        sampling=SamplingParams(max_tokens=options.max_tokens),
        # In float32 a text does not depend on which rows happen to be computed together.
        engine=EngineConfig(dtype="float32", cache_gib=0.25, max_batch_size=options.batch_size),
        num_groups=options.groups,
        expert_parallel=options.expert_parallel,
        exchange=Exchange(options.dispatch),
    )


def _asked_blows(options: argparse.Namespace) -> list[Fault]:
    if len(options.steps) != len(options.faults):
        raise ValueError("each --kill-rank and --stop-rank needs an --at-step after it")
    num_ranks = options.groups * options.expert_parallel
    for _, rank in options.faults:
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank {rank} does not exist among {num_ranks}")
    asked = zip(options.faults, options.steps, strict=True)
    return make_blows([(kind, rank, step) for (kind, rank), step in asked], options.expert_parallel)


def _random_blows(options: argparse.Namespace, undisturbed: Report) -> list[Fault]:
    """Blows early enough to fall."""
    per_group = -(-options.num_blows // options.groups)
    return random_blows(
        options.num_blows,
        num_groups=options.groups,
        num_ranks=options.expert_parallel,
        last_step=int(undisturbed.usage.ranks["steps"] / (2 * per_group)),
        seed=options.seed,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line."""
    parser = Parser(
        prog="python -m jobs.faults.drill", description=__doc__, formatter_class=Formatter
    )
    add = parser.add_argument
    add("--model", default="demo", help="as for the main job")
    add("--rows", type=positive, default=200, metavar="N", help="generated clips")
    add("--groups", type=positive, default=2, metavar="N", help="copies of the model")
    add("--expert-parallel", type=_several, default=2, metavar="R", help="ranks of a group")
    add("--dispatch", choices=("auto", "all_to_all", "all_gather"), default="auto", help="as there")
    add("--batch-size", type=positive, default=8, metavar="N", help="captions at the same time")
    add("--max-tokens", type=positive, default=48, metavar="N", help="of a caption")
    add("--seed", type=int, default=0, help="of clips and random faults")
    add("--progress", action="store_true", help="draw bars")
    add("--random", dest="num_blows", type=positive, default=4, metavar="N", help="random faults")
    for kind in ("kill", "stop"):
        add(
            f"--{kind}-rank",
            dest="faults",
            action="append",
            default=[],
            type=lambda text, kind=kind: (kind, int(text)),
            metavar="RANK",
            help=f"{kind} this rank's process; may be repeated",
        )
    add(
        "--at-step",
        dest="steps",
        action="append",
        type=positive,
        default=[],
        metavar="STEP",
        help="of the rank named before",
    )
    return parser.parse_args(arguments)


def _several(text: str) -> int:
    """A number of ranks; a group of one has no peers that could be left waiting."""
    if (number := positive(text)) < 2:
        raise argparse.ArgumentTypeError("a drill needs at least 2 ranks a group")
    return number


def _say(text: str) -> None:
    print(f"drill: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
