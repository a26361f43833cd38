#!/usr/bin/env python
"""Describe the images of a Parquet dataset with Kimi-VL: one row in, one row out.

This is the job of `caption_videos` with defaults for images: the model gets them at their own size,
without times. It runs as `python -m jobs.describe_images`, as a file, and under `ray job submit`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, Python puts jobs/ on the path in place of the root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli.main import run_command
from jobs.cli.options import EXIT_CODES, Parser, job_parser

_DESCRIPTION = """\
Describe the images of a Parquet dataset with Kimi-VL. A row holds one image, or a list of them that
the model sees together, in their order. Images are rotated as their EXIF data say and shown at
their own size, up to the limit of the checkpoint (--frame-tokens). --frames or --fps choose frames
of an animated image. Each row of the input gives exactly one row of the output, even if processes
fail, and the same command continues after any interruption."""

_EPILOG = """\
output columns and files are those of caption_videos (see python -m jobs.caption_videos --help);
frame_width, frame_height and media_* describe the first image of a row, num_visual_tokens counts
all images.

examples:
  python -m jobs.describe_images --input photos.parquet --output described --model demo
  python -m jobs.describe_images --input products.parquet --output described \\
      --model moonshotai/Kimi-VL-A3B-Instruct --image-column photos --tokens-per-row 4096 \\
      --prompt 'What do these photos of one product show?'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_command(make_parser, arguments)


def make_parser() -> Parser:
    """Make the parser of the command line, with its manual page."""
    parser = job_parser("describe_images", _DESCRIPTION, _EPILOG + EXIT_CODES, media="image")
    parser.set_defaults(
        prompt="Describe this image in detail.", frame_tokens="max", timestamps="none"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
