#!/usr/bin/env python
"""Read the documents of a Parquet dataset with Kimi-VL: pages in, Markdown out.

The job of `caption_videos` with what documents want: each page is drawn at the checkpoint's limit
and asked about by itself. Runs as `python -m jobs.parse_documents`, as a file, and under `ray job
submit`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, Python puts jobs/ on the path in place of the root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli.main import run_command
from jobs.cli.options import EXIT_CODES, Parser, job_parser

_DESCRIPTION = """\
Turn documents into Markdown with Kimi-VL. A row holds a PDF, a scan (TIFF of many pages, or any
other picture), or a list of these, whose pages follow each other. PDFium draws each page of a PDF
at the largest size that the checkpoint takes (--frame-tokens), in a limited process of its own;
nothing in a document is run or opened. Each row of the input gives exactly one row of the output,
whatever fails, and the same command continues after any interruption."""

_EPILOG = """\
output columns, beside those of caption_videos (see python -m jobs.caption_videos --help):
  caption            the Markdown of the document: that of its pages, in order
  pages              list: the Markdown of each page; null for a page that failed
  num_pages          of the document
  truncated_pages    list: pages, from 1 on, whose Markdown was cut (--max-tokens, --loop-guard)
  page_windows       list, for each prompt: first_page, last_page, status, error_code, error,
                     finish_reason, num_visual_tokens, num_prompt_tokens, num_generated_tokens, ...
  media_width, media_height   of the first page: points (1/72 inch) of a PDF, else pixels
  num_visual_tokens, num_prompt_tokens, num_generated_tokens   of the whole document
The status of a row is that of its worst page; the pages that worked keep their text.

Pages that share a prompt (--pages-per-prompt) are told apart by the lines that the model writes
between them. Where it does not, the text stands at the first of them, and the others are null.

examples:
  python -m jobs.parse_documents --input papers.parquet --output parsed --model demo
  python -m jobs.parse_documents --input scans.parquet --output parsed \\
      --model moonshotai/Kimi-VL-A3B-Instruct --document-column file --max-pages 200
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_command(make_parser, arguments)


def make_parser() -> Parser:
    """The command line, and its manual page."""
    parser = job_parser("parse_documents", _DESCRIPTION, _EPILOG + EXIT_CODES, media="document")
    parser.set_defaults(
        prompt="Convert this document to Markdown: all of its text in reading order, headings, "
        "lists, tables, and formulas as LaTeX. Write only the Markdown.",
        frame_tokens="max",
        max_tokens=4096,
        temperature=0.0,
        loop_guard=256,  # rows of empty cells repeat themselves
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
