#!/usr/bin/env python
"""Review the output of a job in one HTML file that works offline, and apply the verdicts.

It runs as `python -m jobs.review` and as a file; `--help` is the manual page.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file, Python puts jobs/ on the path in place of the root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli.options import Formatter, Parser, add_options, positive

if TYPE_CHECKING:
    from jobs.review_page.page import Side
    from jobs.review_page.rows import Output

_PROG = "review"
_FRAME_PX, _PAGE_PX = 128, 448  # the text of a page must be readable

_DESCRIPTION = """\
Write an HTML page that shows the rows of an output directory: frames with their times, or pages
with their numbers; prompt, caption, status and counts; with --against, the rows of a second output
beside them, with the changes marked. Windows (--window-s), pages of documents, and prompts with
different frames are each shown with their own frames. The page needs no server and no network. In
the page you filter, search, accept, reject and edit with keys, and download the verdicts as a file;
--apply then writes the judged rows."""

_EPILOG = """\
Frames and pages are decoded again from the input that _run.yaml names (or --input), with the recipe
of the output. If that fails, the row says so. Verdicts are kept only in your browser until you
download them.

--apply writes, for the judged rows:
  verdicts.parquet      all columns of the output, and verdict, final_caption, judged_at
  captions.jsonl        row_id, video, prompt, verdict, caption, model_caption, frame_times_s
  label_studio.json     tasks with predictions and annotations; label_studio.xml: the interface
  webvtt/*.vtt          the final caption over its span; accepted lists of captions by window

examples:
  python -m jobs.review captions
  python -m jobs.review captions --against captions-16-frames --page both.html
  python -m jobs.review captions --status error --no-frames
  python -m jobs.review sweep/_runs --max-frames 32
  python -m jobs.review captions --apply review-verdicts.json --export reviewed
"""
_PAGE_OPTIONS = f"""
--page HTML: HTML file to write
--against DIR: second output to compare with
--status: show only rows with this status
--max-rows N: most rows to show; of a larger output, random ones
--seed N: seed of the random choice
--input PARQUET: input of the run, if it has moved
--allow-uri PREFIX: let rows name media below this URI, besides those that the run allowed
--no-frames: do not decode the media
--frame-px N: longer side of frames (default: {_FRAME_PX}) or pages (default: {_PAGE_PX}), in px
--max-frames N: most frames per row: for each way of sampling it, or for all its windows or pages
--max-mib N: most MiB of thumbnails and text in one file; further rows go to further files
--workers N: processes to decode with
"""
_VERDICT_OPTIONS = """
--apply JSON: file of verdicts that the page saved; may be repeated
--export DIR: directory for the judged rows
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page or apply verdicts, and return the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        for line in _apply(options) if options.apply else _write(options):
            print(line)
    except (ValueError, OSError) as error:
        print(f"{_PROG}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def make_parser() -> Parser:
    """Make the parser of the command line, with its manual page."""
    parser = Parser(prog=_PROG, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=Formatter)
    where = "output directory of a job, on a local disk"
    parser.add_argument("captions", type=_directory, metavar="DIR", help=where)
    add_options(
        parser.add_argument_group("page"),
        _PAGE_OPTIONS,
        {
            "--page": {"type": Path, "default": Path("review.html")},
            "--against": {"type": _directory},
            "--status": {"choices": ("ok", "truncated", "damaged", "error")},
            "--max-rows": {"type": positive, "default": 10_000},
            "--seed": {"type": int, "default": 0},
            "--allow-uri": {"action": "append", "default": []},
            "--frame-px": {"type": positive},
            "--max-frames": {"type": positive, "default": 16},
            "--max-mib": {"type": positive, "default": 192},
            "--workers": {"type": positive, "default": 2},
        },
    )
    verdicts = {
        "--apply": {"type": Path, "action": "append"},
        "--export": {"type": Path, "default": Path("reviewed")},
    }
    add_options(parser.add_argument_group("verdicts"), _VERDICT_OPTIONS, verdicts)
    return parser


def _directory(text: str) -> Path:
    """Parse a path; refuse a URI, because outputs on object stores cannot be read here."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URI; copy the output to a disk first")
    return Path(text)


def _write(options: argparse.Namespace) -> Iterator[str]:
    """Write the page, and yield lines that describe it."""
    from jobs.review_page.page import write_pages
    from jobs.review_page.rows import read_output

    output = read_output(
        options.captions, max_rows=options.max_rows, seed=options.seed, status=options.status
    )
    other = None
    if options.against is not None:
        other = read_output(options.against, only=output.rows["row_id"].to_pylist())
        if other.rows.num_rows == 0:
            raise ValueError(f"{options.against} has none of the rows of {options.captions}")
    side = _side(output, options)
    theirs = None if other is None else _side(other, options)
    paths = write_pages(options.page, side, theirs, options.max_mib << 20)
    yield f"{output.rows.num_rows} of {output.num_rows} rows of {output.path}"
    notes = [frames.note for frames in side.frames.values() if frames.note]
    if notes:
        yield f"{len(notes)} rows without frames; the first one: {notes[0]}"
    for path in paths:
        yield f"{path.absolute()} ({path.stat().st_size / 2**20:.1f} MiB)"


def _side(output: "Output", options: argparse.Namespace) -> "Side":
    """Read an output and decode the frames of its rows; without its input, each row says so.

    Raises:
        ValueError: the recipe has another version, or --input cannot be read.
    """
    from jobs.review_page.page import Side
    from jobs.review_page.row_frames import RowFrames
    from jobs.review_page.sections import sections_of_rows, windows_of
    from jobs.review_page.source_decoder import open_source_decoder
    from pipeline.media.windows import PageWindows

    sections = sections_of_rows(output, options.max_frames)
    if options.no_frames:
        return Side(output=output, sections=sections, frames={})
    are_pages = isinstance(windows_of(output.recipe), PageWindows)
    try:
        decoder = open_source_decoder(
            output,
            sections,
            input_uri=options.input,
            allowed_uris=tuple(options.allow_uri),
            frame_px=options.frame_px or (_PAGE_PX if are_pages else _FRAME_PX),
            max_frames=options.max_frames,
        )
    except ValueError as error:
        if options.input is not None:
            raise
        note = RowFrames(note=f"no frames: {error}")
        return Side(output=output, sections=sections, frames=dict.fromkeys(sections, note))
    return Side(output=output, sections=sections, frames=decoder.decode(options.workers))


def _apply(options: argparse.Namespace) -> Iterator[str]:
    """Write the judged rows in all formats, and yield lines that name the files."""
    from jobs.review_page.rows import read_output
    from jobs.review_page.verdicts import export, read_verdicts

    output = read_output(options.captions, max_rows=0)
    verdicts = read_verdicts(options.apply, output.recipe_sha256)
    output = read_output(options.captions, only=list(verdicts))
    paths = export(output, verdicts, options.export)
    kinds = [verdict.kind for verdict in verdicts.values()]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    yield f"{len(kinds)} verdicts: {', '.join(f'{n} {kind}' for kind, n in counts.items())}"
    for path in paths:
        yield str(path.absolute())


if __name__ == "__main__":
    sys.exit(main())
