#!/usr/bin/env python
"""Caption the videos of a Parquet dataset with Kimi-VL: one row in, one row out.

Runs as `python -m jobs.caption_videos`, as a file, and under `ray job submit`; `--help` is the
manual page. Imports beyond the standard library wait until the arguments are known to be good.
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
the output, whatever fails: a video that cannot be used becomes a row with status "error", a code
and a message. Run the same command again after any interruption, and it continues where it was."""

_EPILOG = """\
output columns:
  row_id                the id column as text, or <file>#<row number>
  (columns of the input, without media bytes)
  caption               the text; null for errors
  reasoning             what a thinking model wrote before its answer; else null
  status                ok | truncated (something else than the model ended it) |
                        damaged (captioned from what could be decoded) | error
  error_code, error     why there is no caption: a code of a closed list, and a sentence
  attempts              how often the row was started
  finish_reason         stop | length (--max-tokens) | repetition (--loop-guard)
  num_prompt_tokens, num_generated_tokens
  mean_logprob, min_logprob   of the generated tokens
  samples               with --samples: all texts of the row, the first one again
  token_logprobs        with --token-logprobs: of each token of the caption, its stop token too
  (name of a prompt)    with --prompts: its answers
  answers               with --prompts: status, error, counts ... of each, and the text of those
                        that were cut, or that a column with the type of a schema cannot hold
  timeline              with --window-s: start_s, end_s, caption, status, error, counts ... of each
                        window; the status of a row is that of its worst window
  frame_times_s         when the frames that the model saw appear in the video
  frame_width, frame_height, num_visual_tokens   what it saw of them
  media_duration_s, media_fps, media_width, media_height, media_codec, media_rotation,
  media_is_vfr, media_is_interlaced   what the video is
  num_decode_errors     damaged packets and frames met while decoding

files in the output directory:
  part-*.parquet        the rows; pandas.read_parquet(DIR) and pyarrow read them all
  _run.yaml             the options of the last run; --config DIR/_run.yaml repeats it
  _recipe.json          all that changes the captions; another recipe is refused
  _report.json          what the last run did
  _error.txt            why the last run failed, in full
  _starts.json          what a killed run was working on
  _files.json           with --make-ids-unique: the files whose rows have names
  _old-*/               rows of another recipe (--new-recipe)

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
    """Run the job; the exit code."""
    return run_command(make_parser, arguments)


def make_parser() -> Parser:
    """The command line, and its manual page."""
    return job_parser("caption_videos", _DESCRIPTION, _EPILOG + EXIT_CODES)


if __name__ == "__main__":
    sys.exit(main())
