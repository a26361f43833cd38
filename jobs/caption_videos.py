#!/usr/bin/env python
"""Caption the videos of a Parquet dataset with Kimi-VL: one row in, one row out.

It runs as `python -m jobs.caption_videos`, as a file, and under `ray job submit`; `--help` prints
the manual page. Libraries are imported only once the arguments are known to be good.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, Python puts jobs/ on the path in place of the root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli.main import run_command
from jobs.cli.options import EXIT_CODES, Parser, job_parser

_DESCRIPTION = """\
Caption the videos of a Parquet dataset with Kimi-VL. Each row of the input gives exactly one row of
the output, even if processes fail: a video that cannot be used becomes a row with status "error", a
code and a message. After any interruption, run the same command again, and it continues."""

_EPILOG = """\
output columns:
  row_id                the id column as text, or <file>#<row number>
  (input columns)       copied from the input, without media bytes
  caption               the text; null for rows with an error
  reasoning             what a thinking model wrote before its answer; null for other models
  status                ok | truncated (cut before the model ended it) |
                        damaged (captioned from what could be decoded) | error
  error_code, error     why there is no caption: one of a fixed list of codes, and a sentence
  attempts              how many times the row was started
  finish_reason         stop | length (--max-tokens) | repetition (--loop-guard)
  num_prompt_tokens, num_generated_tokens
  mean_logprob, min_logprob   log-probability of the generated tokens: mean and least
  samples               with --samples: all texts of the row, including the first
  token_logprobs        with --token-logprobs: one per token of the caption and its stop token
  (name of a prompt)    with --prompts: the answers to this prompt
  answers               with --prompts: status, error, counts ... of each answer, and its text if
                        it was cut, or does not fit into a column with the type of a schema
  timeline              with --window-s: start_s, end_s, caption, status, error, counts ... of each
                        window; the status of a row is that of its worst window
  frame_times_s         times of the frames that the model saw, in seconds of the video
  frame_width, frame_height, num_visual_tokens   size of these frames as the model saw them
  media_duration_s, media_fps, media_width, media_height, media_codec, media_rotation,
  media_is_vfr, media_is_interlaced, media_stream   properties of the video file
  num_decode_errors     damaged packets and frames found while decoding

files in the output directory:
  part-*.parquet        the rows; pandas.read_parquet(DIR) and pyarrow read all parts
  _run.yaml             the options of the last run; --config DIR/_run.yaml repeats it
  _recipe.json          the settings that change captions; a run with other ones is refused
  _report.json          counts and timings of the last run
  _error.txt            why the last run failed, in full
  _starts.json          the rows that a killed run was working on
  _files.json           with --make-ids-unique: the input files whose rows were named
  _shard.json           with --shard, which writes to shard-I-of-N/ below: what it is a shard of
  _old-*/               rows of an earlier recipe (--new-recipe)

examples:
  python -m jobs.caption_videos --input clips.parquet --output captions --model demo
  python -m jobs.caption_videos --input 'data/*.parquet' --output captions \\
      --model moonshotai/Kimi-VL-A3B-Instruct --fps 1 --max-frames 64 --timestamps mm:ss
  python -m jobs.caption_videos --input films.parquet --output captions \\
      --model moonshotai/Kimi-VL-A3B-Instruct --window-s 60 --fps 0.5 --merge
  ray job submit --working-dir . -- jobs/caption_videos.py --input s3://bucket/clips \\
      --output /shared/captions --model /shared/Kimi-VL-A3B-Instruct --allow-uri s3://bucket/
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_command(make_parser, arguments)


def make_parser() -> Parser:
    """Make the parser of the command line, with its manual page."""
    return job_parser("caption_videos", _DESCRIPTION, _EPILOG + EXIT_CODES)


if __name__ == "__main__":
    sys.exit(main())
