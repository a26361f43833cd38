#!/usr/bin/env python
"""Check a job before it starts, with the options of that job; start no Ray and write nothing.

It runs as `python -m jobs.doctor` and as a file; `--help` is the manual page.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file, Python puts jobs/ on the path in place of the root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.checks.finding import Finding
from jobs.cli import config_file
from jobs.cli.options import Parser, add_options, count, positive

if TYPE_CHECKING:
    from pipeline.dry_run import DryRun

_PROG = "doctor"
_GROUP_SIZES = (1, 2, 4, 8)  # numbers of ranks whose memory is reported
_JOBS = ("caption_videos", "describe_images", "parse_documents")  # modules of this folder

_DESCRIPTION = """\
Check what a job (--job) would do, with the options and defaults of that job: the columns of the
input; sample rows from its whole length, with their decoding time, tokens and errors; every tensor
of the checkpoint; the memory of a rank; whether the installed decoders refuse hostile media; and a
forecast from a few answered rows. Nothing is written and no Ray is started. The options below are
those of %s."""

_EPILOG = """\
Each line is `ok`, `note` (worth a look) or `BAD` (the job would be refused, or would fail).

examples:
  python -m jobs.doctor --input clips.parquet --output captions --model demo
  python -m jobs.doctor --job parse_documents --input papers.parquet --output parsed --model demo
  python -m jobs.doctor --config run.yaml --rows 100 --answers 0

exit codes:
  0    no line is BAD
  1    at least one line is BAD
  2    refused: arguments or files
"""
_OPTIONS = """
--job: job whose options and defaults are used
--rows N: sample rows to prepare
--answers N: sample rows to answer for the forecast, by a whole copy of the model on this machine,
    if memory allows; 0: no forecast
--no-attacks: skip the check with hostile media
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = config_file.parse(partial(make_parser, _job_of(arguments)), arguments)
    is_bad = False
    try:
        for finding in _check(options):
            print(finding, flush=True)
            is_bad |= finding.level == "BAD"
    except (ValueError, OSError) as error:
        print(f"{_PROG}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return int(is_bad)


def make_parser(job: str = _JOBS[0]) -> Parser:
    """Make the parser of a job, with the options of the doctor added."""
    parser: Parser = import_module(f"jobs.{job}").make_parser()
    parser.prog, parser.description, parser.epilog = _PROG, _DESCRIPTION % job, _EPILOG
    add_options(
        parser.add_argument_group("what to check"),
        _OPTIONS,
        {
            "--job": {"choices": _JOBS, "default": _JOBS[0]},
            "--rows": {"type": positive, "default": 20},
            "--answers": {"type": count, "default": 2},
        },
    )
    return parser


def _job_of(arguments: Sequence[str]) -> str:
    """Find the job whose options the other arguments are; exit with 2 for an unknown one."""
    parser = Parser(prog=_PROG, add_help=False)
    parser.add_argument("--job", choices=_JOBS, default=_JOBS[0])
    return parser.parse_known_args(arguments)[0].job


def _check(options: argparse.Namespace) -> Iterator[Finding]:
    """Run all checks, the quick ones first.

    Raises:
        ValueError: a job would refuse an argument, the input or the checkpoint.
    """
    import torch

    from jobs.checks import attacks, sampled_rows, trial, weights
    from jobs.cli.pipeline_config import pipeline_config
    from model.inputs.processor import Processor
    from model.network.weights import check_checkpoint
    from pipeline.cluster.deployment import choose_deployment
    from pipeline.dry_run import dry_run
    from pipeline.preflight import open_input

    config = pipeline_config(options)
    source = open_input(config)
    columns = ", ".join(f"{field.name} ({field.type})" for field in source.row_schema.read)
    text = f"{source.num_rows} rows in {len(source.files)} file(s); used: {columns}"
    yield Finding("ok", "input", text)
    if source.left_out:
        yield Finding("note", "input", f"left out: {source.left_out}")
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    plan = dry_run(config, num_gpus=num_gpus, where="")
    yield _planned(plan)
    if config.device == "cuda" and not num_gpus:
        text = "this machine has no GPU for --device cuda; checked for CPUs instead"
        yield Finding("note", "machines", text)
        config = replace(config, device="cpu")
    num_experts = check_checkpoint(config.checkpoint).text.n_routed_experts
    try:
        deployment = choose_deployment(config, [num_gpus], num_experts).explained(config)
        yield Finding("ok", "machines", f"{deployment} (if the job ran on this machine alone)")
    except ValueError as error:
        deployment = choose_deployment(config, [config.expert_parallel or 1], num_experts)
        yield Finding("note", "machines", f"the job cannot run on this machine alone: {error}")
    config = replace(config, engine=deployment.engine_of(config.engine))
    footprint = weights.read_footprint(config.checkpoint, config.engine)
    group_sizes = dict.fromkeys((deployment.num_ranks, *_GROUP_SIZES))  # the chosen one first
    yield from weights.findings(footprint, config.engine, list(group_sizes))
    processor = Processor.from_checkpoint(config.checkpoint)
    if not options.no_attacks:
        yield from attacks.findings(processor)
    rows = sampled_rows.prepare_sample(config, source, processor, options.rows)
    yield from sampled_rows.findings(rows, source.num_rows)
    good = [row for row in rows if row.asked]
    if good:
        yield trial.cache_finding(good, footprint, config.engine)
    if not options.answers or not good:
        return
    if (finding := trial.no_room(footprint, config.engine)) is not None:
        yield finding
        return
    done = trial.run_trial(config, good[: options.answers])
    yield from trial.answer_findings(done)
    num_cpus = os.cpu_count() or 1
    yield from trial.forecast(done, good, plan.num_todo, deployment.num_groups, num_cpus)


def _planned(plan: "DryRun") -> Finding:
    """Describe how many rows the job would process, and whether the recipe allows it."""
    if plan.changes and not plan.config.new_recipe:
        changes = "; ".join(plan.changes)
        return Finding("BAD", "plan", f"the output was begun under another recipe: {changes}")
    counts = plan.counts
    text = f"{counts.new} rows new, {counts.done} done, {counts.failed} failed"
    return Finding("ok", "plan", f"{text}; {plan.num_todo} to do")


if __name__ == "__main__":
    sys.exit(main())
