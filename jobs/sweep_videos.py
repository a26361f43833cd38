#!/usr/bin/env python
"""Answer questions about videos in every cell of a grid, and name the cheapest good cell.

Each clip is decoded once for all cells and all its questions. The job runs as `python -m
jobs.sweep_videos`, as a file, and under `ray job submit`; `--help` prints the manual page.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, Python puts jobs/ on the path in place of the root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli.main import run_command
from jobs.cli.options import Parser, add_options, job_parser
from jobs.sweep.names import ANSWER_TOKENS, LAYOUT_NAMES, MODES

_DESCRIPTION = """\
Answer a dataset of questions about videos in every cell of a grid (frames, sizes, timestamps,
prompts, sampling, ranks), score the answers, and print the cheapest cell whose accuracy is within
one standard error of the best, as the command line of the full job. A clip is decoded once for all
its questions and cells, and each cell sees exactly the pixels that a job of its own would see (for
a damaged video, its row may report damage that only another cell met). The same command continues
after any interruption.

The grid is a YAML file of options with their values:
  frames: [1, 4, 16]        # or fps, or both: they are one axis
  frame-tokens: [64, 256]
  timestamps: [none, seconds]
axes: frames, fps, max-frames, keyframes, frame-tokens, tokens-per-row, timestamps, prompt (texts
with {question} and {options}, or such texts by name), max-tokens, temperature, top-p, samples (the
answer is their majority vote), expert-parallel, groups, dispatch, wire-dtype (each value of the
last four needs a run of its own, which decodes the clips again)"""

_EPILOG = """\
For the layouts and the columns that they read, see the first lines of jobs/sweep/layouts.py.

scores: strict (an answer that names no option is wrong), expected (it counts 1/k, like a guess),
logit (the likeliest letter as the first token; not for thinking models). Standard errors are
clustered by video. An open answer is right if it equals the truth but for case, markup, outer
marks and spaces. An answer that names several options names none; docs/sweeps.md has the rules.

files in the output directory:
  answers.parquet    one row for each question in each cell, with the settings of the cell
  summary.csv        one row for each cell
  sweep.png          accuracy and tokens against frames and visual tokens
  tasks.png          accuracy of each task against frames
  _runs*/            the outputs of the runs
  _clips.parquet     the input of the runs

examples:
  python -m jobs.sweep_videos --input test.parquet --layout video-mme \\
      --video-path 'videos/{videoID}.mp4' --grid grid.yaml --output sweep \\
      --model moonshotai/Kimi-VL-A3B-Instruct
  python -m jobs.demo.quiz --output quiz --clips 40 && python -m jobs.sweep_videos \\
      --input quiz/questions.parquet --layout open --grid grid.yaml --output sweep --model demo

The frames of all cells of a clip count together for --max-rgb-bytes and --max-decode-bytes.

exit codes: those of caption_videos
"""
_OPTIONS = """
--grid YAML: file of options with their values, which give the cells
--layout: layout of the dataset
--video-path TEMPLATE: path of a video, with {column}; default: the one of the layout, in the folder
    of the input
--score: score by which to choose the cell
"""
_TAKEN = ("prompts", "prompt_column", "schema", "columns")  # the grid and the layout set these


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_command(make_parser, arguments, _sweep)


def make_parser() -> Parser:
    """Make the parser of the command line, with its manual page."""
    parser = job_parser("sweep_videos", _DESCRIPTION, _EPILOG)
    parser.usage = (
        "%(prog)s --input PARQUET --layout NAME --grid YAML --output DIR --model MODEL [option ...]"
    )
    add_options(
        parser.add_argument_group("sweep"),
        _OPTIONS,
        {
            "--grid": {"required": True},
            "--layout": {"required": True, "choices": LAYOUT_NAMES},
            "--score": {"choices": MODES, "default": "strict"},
        },
    )
    parser.set_defaults(temperature=0.0, max_tokens=ANSWER_TOKENS)
    return parser


def _sweep(options: argparse.Namespace) -> object:
    """Run the sweep, and return the text to print."""
    from jobs import caption_videos
    from jobs.cli.ray_cluster import connect, ended_by_signals
    from jobs.sweep.finding import conclude
    from jobs.sweep.grid import read_grid
    from jobs.sweep.layouts import LAYOUTS, read_items
    from jobs.sweep.work import config_of, plan_work, write_clips
    from pipeline.output.store import open_store
    from pipeline.run import run

    for name in _TAKEN:
        if getattr(options, name) is not None:
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} cannot be used in sweeps: the grid and the layout define the prompts"
            )
    if options.shard is not None or options.check_shards:
        raise ValueError("--shard and --check-shards cannot be used in sweeps: a sweep is one job")
    if options.fail_if_errors is not None:
        raise ValueError(
            "--fail-if-errors cannot be used in sweeps: summary.csv counts errors by cell"
        )
    if options.score == "logit" and LAYOUTS[options.layout].options is None:
        raise ValueError("--score logit needs options to choose from; open questions have none")
    prompt = LAYOUTS[options.layout].prompt
    cells = read_grid(options.grid, make_parser, options, prompt)
    dataset = read_items(
        options.input, options.layout, video_path=options.video_path, limit=options.limit
    )
    if dataset.left_out:
        print(f"left out of the input: {dataset.left_out}", flush=True)
    work = plan_work(dataset, cells)
    uri = options.output.rstrip("/")
    configs = [config_of(work, own, uri, folder) for folder, own in work.runs.items()]
    print(work, flush=True)
    if options.dry_run:
        return "nothing was started"
    store = open_store(uri)
    store.prepare()
    store.write("_run.yaml", options.run_yaml.encode())
    write_clips(work, store)
    enter = ended_by_signals if options.inline else connect
    for config in configs:
        print(run(config, connect=enter, inline=options.inline), flush=True)
    return conclude(work, store, caption_videos.make_parser, options)


if __name__ == "__main__":
    sys.exit(main())
