"""Parse the command line of a job, run the job, and report a failure in one line.

Only the standard library is imported until the arguments are known to be good.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli.options import Parser

if TYPE_CHECKING:
    from pipeline.config import PipelineConfig
    from pipeline.monitor.report import Report
    from pipeline.shard_check import ShardCheck

_ROOT = Path(__file__).resolve().parents[2]
_INTERRUPTED = "interrupted; what is committed stays, and the same command continues"


def run_command(
    make_parser: Callable[[], Parser],
    arguments: Sequence[str] | None,
    work: Callable[[argparse.Namespace], object] | None = None,
) -> int:
    """Run the job of a parser and return its exit code.

    `work` does what the options say and returns what to print; None runs the pipeline.
    `arguments` are the command line; None for that of this process.
    """
    from jobs.cli import config_file

    prog = make_parser().prog
    try:
        options = config_file.parse(make_parser, sys.argv[1:] if arguments is None else arguments)
        from pipeline.run import RunError
    except ModuleNotFoundError as error:
        return _fail(
            prog,
            2,
            f"{error}, for {sys.executable}; activate the environment (`make setup` makes it: "
            f". {_ROOT}/.venv/bin/activate) or install with `pip install {_ROOT}`",
        )
    try:
        print(done := (work or _run)(options))
    except ValueError as error:
        return _fail(prog, 2, error)
    except (RunError, OSError) as error:
        return _fail(prog, 1, error)
    except KeyboardInterrupt:
        return _fail(prog, 130, _INTERRUPTED)
    except SystemExit:  # of `connect`, on Ctrl-C or SIGTERM
        print(f"{prog}: {_INTERRUPTED}", file=sys.stderr)
        raise
    if isinstance(done, Done) and done.shards is not None and not done.is_consistent:
        return _fail(prog, 1, "not every row of the input is in the shards once")
    return _fail_if_errors(prog, options.fail_if_errors, done)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command did: a run, a comparison of the shards, or both."""

    report: "Report | None" = None
    shards: "ShardCheck | None" = None
    output: str = ""  # of the run, without credentials

    @property
    def is_consistent(self) -> bool:
        """Whether the shards have each row once, or this one only has to wait for others."""
        if self.shards is None or self.shards.is_whole:
            return True
        return self.report is not None and self.shards.is_waiting

    def __str__(self) -> str:
        known = [str(each) for each in (self.report, self.shards) if each is not None]
        return "\n".join([*known, *self._next_lines()])

    def _next_lines(self) -> list[str]:
        """Say where the results are and what to do with them; nothing if all rows failed."""
        if self.report is None or not self.output or self.report.error_share == 1:
            return []
        lines = [f"results: {self.output}"]
        if "://" not in self.output:
            lines.append(f"look at them: python -m jobs.review {shlex.quote(self.output)}")
        if codes := self.report.output.error_codes:
            lines.append(
                "try failed rows again: the same command with "
                f"--retry-failed {','.join(sorted(codes))}"
            )
        return lines


def _run(options: argparse.Namespace) -> object:
    """Run with these arguments and return the report; with `--dry-run` say what a run would do."""
    from jobs.cli.pipeline_config import pipeline_config
    from jobs.cli.ray_cluster import connect, ended_by_signals
    from pipeline.filesystems import without_secrets
    from pipeline.run import run
    from pipeline.shard_check import check_shards

    config = pipeline_config(options)
    if options.dry_run:
        if options.check_shards:
            raise ValueError("--dry-run and --check-shards exclude each other; give one of them")
        return _dry_run(config)
    if options.check_shards and config.shard is None:
        return Done(shards=check_shards(config))
    enter = ended_by_signals if options.inline else connect
    report = run(config, connect=enter, inline=options.inline)
    shards = check_shards(config, if_finished=True) if options.check_shards else None
    return Done(report=report, shards=shards, output=without_secrets(config.output))


def _fail_if_errors(prog: str, share: float | None, done: object) -> int:
    """3 if more than this share of the rows that a run wrote are errors, else 0."""
    if share is None or not isinstance(done, Done) or done.report is None:
        return 0
    if done.report.error_share <= share:
        return 0
    return _fail(
        prog,
        3,
        f"{done.report.error_share:.1%} of the rows that this run wrote are errors, and "
        f"--fail-if-errors allows {share:.1%}; the rows stay, and --retry-failed tries them again",
    )


def _dry_run(config: "PipelineConfig") -> object:
    """Tell what a run would do, with the GPUs of this machine in place of the cluster's."""
    import torch

    from jobs.cli.ray_cluster import find_address
    from pipeline.dry_run import dry_run

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    where = f"as on this machine alone, with {num_gpus} GPUs"
    if (address := find_address(os.environ)) is not None:
        where += f"; the run would use those of the Ray cluster ({address})"
    return dry_run(config, num_gpus=num_gpus, where=where)


def _fail(prog: str, code: int, reason: object) -> int:
    print(f"{prog}: error: {reason}", file=sys.stderr)
    return code
