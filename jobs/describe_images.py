#!/usr/bin/env python
"""Describe the images of a Parquet dataset with Kimi-VL: one row in, one row out.

The job of `caption_videos` with what images want: they go to the model at their own size, without
times. Runs as `python -m jobs.describe_images`, as a file, and under `ray job submit`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.cli.options import Parser

_ROOT = Path(__file__).resolve().parents[1]
if str(_ROOT) not in sys.path:  # as a file, only jobs/ is on the path
    sys.path.insert(0, str(_ROOT))

_DESCRIPTION = """\
Describe the images of a Parquet dataset with Kimi-VL. A row holds one image, or a list of them that
the model sees together, in their order. Images are turned as their EXIF data say and shown at their
own size, up to the limit of the checkpoint (--frame-tokens). Of an animated image the model sees as
many frames as --frames or --fps say. Each row of the input gives exactly one row of the output,
whatever fails, and the same command continues after any interruption."""

_EPILOG = """\
output columns and files: those of caption_videos (see python -m jobs.caption_videos --help);
frame_width, frame_height and media_* are of the first image of a row, num_visual_tokens of all.

examples:
  python -m jobs.describe_images --input photos.parquet --output described --model demo
  python -m jobs.describe_images --input products.parquet --output described \\
      --model moonshotai/Kimi-VL-A3B-Instruct --image-column photos --tokens-per-row 4096 \\
      --prompt 'What do these photos of one product show?'

exit codes:
  0    every row is answered, maybe with an error
  1    the run stopped; what is committed stays, and the same command continues
  2    refused: arguments, input, output or checkpoint
  3    --fail-if-errors: more rows than that are errors
  130  Ctrl-C (143 SIGTERM); as 1
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    from jobs.cli.main import run_command

    return run_command(make_parser, arguments)


def make_parser() -> "Parser":
    """The command line, and its manual page."""
    from jobs.cli.options import job_parser

    parser = job_parser("describe_images", _DESCRIPTION, _EPILOG, media="image")
    parser.set_defaults(
        prompt="Describe this image in detail.", frame_tokens="max", timestamps="none"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
