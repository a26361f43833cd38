#!/usr/bin/env python
"""Ask a dataset of questions in every cell of a grid, and name the cheapest cell that is as good.

Each clip is decoded once for all cells and all its questions. Runs as `python -m
jobs.sweep_videos`, as a file, and under `ray job submit`; `--help` is the manual page.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, Python puts jobs/ on the path in place of the root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli.main import run_command
from jobs.cli.options import Parser, job_parser
from jobs.sweep.names import ANSWER_TOKENS, LAYOUT_NAMES, MODES

_DESCRIPTION = """\
Ask a dataset of questions about videos in every cell of a grid (frames, sizes, timestamps, prompts,
sampling, layouts of the model), score the answers, and print the cheapest cell whose accuracy is
within one standard error of the best, as the command line of the full job. A clip is decoded once
for all its questions and cells, and each cell sees exactly the pixels that a job of its own would
(of a damaged video it may be told of damage that another cell met). The same command continues
after any interruption.

The grid is a YAML file of options with their values:
  frames: [1, 4, 16]        # or fps, or both: they are one axis
  frame-tokens: [64, 256]
  timestamps: [none, seconds]
axes: frames, fps, max-frames, keyframes, frame-tokens, tokens-per-row, timestamps, prompt (texts
with {question} and {options}, or names with such texts), max-tokens, temperature, top-p, samples
(their vote counts), expert-parallel, groups, dispatch, wire-dtype (a run of its own for each of the
last four, with a decoding of its own)"""

_EPILOG = """\
layouts and the columns that they read: see the head of jobs/sweep/layouts.py

scores: strict (what names no option is wrong), expected (it is worth 1/k, as a guess), logit (the
likeliest letter as the first token; not for thinking models); standard errors clustered by video.
Open questions are right if the texts are the same but for case, outer marks and spaces.

files in the output directory:
  answers.parquet    a row for each question in each cell, with the settings of the cell
  summary.csv        a row for each cell
  sweep.png          accuracy and tokens against frames and visual tokens
  tasks.png          accuracy of each task against frames
  _runs*/            the outputs of the runs; _clips.parquet their input

examples:
  python -m jobs.sweep_videos --input test.parquet --layout video-mme \\
      --video-path 'videos/{videoID}.mp4' --grid grid.yaml --output sweep \\
      --model moonshotai/Kimi-VL-A3B-Instruct
  python -m jobs.demo.quiz --output quiz --clips 40 && python -m jobs.sweep_videos \\
      --input quiz/questions.parquet --layout open --grid grid.yaml --output sweep --model demo

The frames of all cells of a clip count together for --max-rgb-bytes and --max-decode-bytes.

exit codes: those of caption_videos
"""
_TAKEN = ("prompts", "prompt_column", "schema", "columns")  # by the grid and the layout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_command(make_parser, arguments, _sweep)


def make_parser() -> Parser:
    """The command line, and its manual page."""
    parser = job_parser("sweep_videos", _DESCRIPTION, _EPILOG)
    parser.usage = (
        "%(prog)s --input PARQUET --layout NAME --grid YAML --output DIR --model MODEL [option ...]"
    )
    group = parser.add_argument_group("sweep")
    group.add_argument("--grid", required=True, metavar="YAML", help="the cells")
    group.add_argument("--layout", required=True, choices=LAYOUT_NAMES, help="of the dataset")
    group.add_argument(
        "--video-path",
        metavar="TEMPLATE",
        help="where the videos lie, with {column}; default: as the layout names them, in the "
        "input's folder",
    )
    group.add_argument(
        "--score", choices=MODES, default="strict", help="by which the cell is chosen"
    )
    parser.set_defaults(temperature=0.0, max_tokens=ANSWER_TOKENS)
    return parser


def _sweep(options: argparse.Namespace) -> object:
    """Sweep; what to print."""
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
            raise ValueError(f"--{flag} is not for sweeps: the grid and the layout say what to ask")
    if options.fail_if_errors is not None:
        raise ValueError("--fail-if-errors is not for sweeps: summary.csv counts errors by cell")
    if options.score == "logit" and LAYOUTS[options.layout].options is None:
        raise ValueError("--score logit needs options to choose from; open questions have none")
    prompt = LAYOUTS[options.layout].prompt
    cells = read_grid(options.grid, make_parser, options, prompt)
    dataset = read_items(
        options.input, options.layout, video_path=options.video_path, limit=options.limit
    )
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
