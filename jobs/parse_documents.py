#!/usr/bin/env python
"""Read the documents of a Parquet dataset with Kimi-VL: pages in, Markdown out.

This is the job of `caption_videos` with defaults for documents: each page is rendered at the limit
of the checkpoint and gets a prompt of its own. It runs as `python -m jobs.parse_documents`, as a
file, and under `ray job submit`.
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
other image), or a list of these, whose pages follow each other. PDFium renders each page of a PDF
at the largest size that the checkpoint takes (--frame-tokens), in a sandboxed process; nothing in a
document is executed or opened. Each row of the input gives exactly one row of the output, even if
processes fail, and the same command continues after any interruption."""

_EPILOG = """\
output columns, besides those of caption_videos (see python -m jobs.caption_videos --help):
  caption            the Markdown of the document: its pages joined in order
  pages              list: the Markdown of each page; null for a page that failed
  num_pages          pages of the document
  truncated_pages    list: numbers, from 1 on, of pages whose Markdown was cut (--max-tokens,
                     --loop-guard)
  page_windows       list with one entry for each prompt: first_page, last_page, status, error_code,
                     error, finish_reason, num_visual_tokens, num_prompt_tokens,
                     num_generated_tokens, ...
  media_width, media_height   size of the first page: points (1/72 inch) of a PDF, else pixels
  num_visual_tokens, num_prompt_tokens, num_generated_tokens   sums over the whole document
The status of a row is that of its worst page; the pages that worked keep their text.

Pages that share a prompt (--pages-per-prompt) are separated at the lines that the model writes
between them. If it writes none, the first page gets the whole text, and the others are null.

examples:
  python -m jobs.parse_documents --input papers.parquet --output parsed --model demo
  python -m jobs.parse_documents --input scans.parquet --output parsed \\
      --model moonshotai/Kimi-VL-A3B-Instruct --document-column file --max-pages 200
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_command(make_parser, arguments)


def make_parser() -> Parser:
    """Make the parser of the command line, with its manual page."""
    parser = job_parser("parse_documents", _DESCRIPTION, _EPILOG + EXIT_CODES, media="document")
    parser.set_defaults(
        prompt="Convert this document to Markdown: all of its text in reading order, headings, "
        "lists, tables, and formulas as LaTeX. Write only the Markdown.",
        frame_tokens="max",
        max_tokens=4096,
        temperature=0.0,
        loop_guard=256,  # the empty cells of a table repeat themselves
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
