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

from jobs.cli.options import Formatter, Parser, add_options, positive, positive_or

if TYPE_CHECKING:
    from jobs.review_page.html_file import PageSettings
    from jobs.review_page.row_json import Side
    from jobs.review_page.rows import Output
    from jobs.review_verdicts.merge import Merged

_PROG = "review"
_FRAME_PX, _MANY_ROWS_FRAME_PX, _MANY_ROWS = 288, 128, 1500  # so that a page stays within a file
_PAGE_PX, _ENLARGED_PX, _MANY_DOCUMENTS = 448, 1200, 500
_BY_NUMBER = -1  # a default that depends on the number of rows
_CLIP_KIB = 512
_REASONS = "wrong, invented, missing, vague"

_DESCRIPTION = """\
Write an HTML page on which people judge the rows of an output directory: frames with their times,
or pages with their numbers, beside the caption; with --against, the rows of a second output beside
them. The page needs no server and no network. In the page you filter, search, accept, reject, edit
and comment with keys (? lists them), and download the verdicts as a file; --apply then merges such
files and writes the judged rows."""

_EPILOG = """\
Frames and pages are decoded again from the input that _run.yaml names (or --input), with the recipe
of the output. If that fails, the row says so. Verdicts are kept only in your browser until you
download them.

--apply writes, for the judged rows:
  verdicts.parquet      all columns of the output, and verdict, final_caption, judged_at, review_*
  captions.jsonl        row_id, video, prompt, verdict, caption, model_caption, frame_times_s, notes
  label_studio.json     tasks with predictions and annotations; label_studio.xml: the interface
  webvtt/*.vtt          the final caption over its span; accepted lists of captions by window
  rejected.parquet      with --rejected: rejected rows, as the input of another run
  comparison.parquet    of a blind comparison: which output was better, row by row

examples:
  python -m jobs.review captions
  python -m jobs.review captions --against captions-16-frames --page both.html
  python -m jobs.review captions --against captions-16-frames --blind
  python -m jobs.review captions --status error --no-frames
  python -m jobs.review captions --split 3 --shared 30
  python -m jobs.review captions --apply review-verdicts.json --export reviewed
"""
_PAGE_OPTIONS = f"""
--page HTML: HTML file to write
--against DIR: second output to compare with
--blind: hide which output a caption is of, and shuffle the sides of each row; with --against
--split N: write a page for each of N reviewers, who share the rows
--shared N: rows that every reviewer of --split gets, to tell how far they agree (default: 20)
--status: show only rows with this status
--max-rows N: most rows to show; of a larger output, random ones
--seed N: seed of all random choices
--input PARQUET: input of the run, if it has moved
--allow-uri PREFIX: let rows name media below this URI, besides those that the run allowed
--no-frames: do not decode the media
--frame-px N: longer side of frames (default: {_FRAME_PX}, of more than {_MANY_ROWS} rows \
{_MANY_ROWS_FRAME_PX}) or pages (default: {_PAGE_PX}), in px; never more than the model saw
--enlarged-px N: longer side of a page of a document that is enlarged, from the source; 0: as the \
model saw it (default: {_ENLARGED_PX}, of more than {_MANY_DOCUMENTS} documents 0)
--with-clips KIB: embed a small copy of each video to play, of at most so many KiB (default of the \
option: {_CLIP_KIB})
--max-frames N: most frames per row: for each way of sampling it, or for all its windows or pages
--max-mib N: most MiB of thumbnails and text in one file; further rows go to further files
--workers N: processes to decode with
--reason TEXT: a reason that a reviewer can give by a key; may be repeated (default: {_REASONS})
--tag TEXT: a tag that a reviewer can give; may be repeated
--reviewer NAME: name that the page puts into its files of verdicts
"""
_VERDICT_OPTIONS = """
--apply JSON: file of verdicts that the page saved; may be repeated, the majority then decides
--export DIR: directory for the judged rows
--accepted: write only rows that were accepted or edited
--rejected: also write the rejected rows as the input of another run
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page or apply verdicts, and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if problem := _problem(options):
        parser.error(problem)
    try:
        for line in _apply(options) if options.apply else _write(options):
            print(line)
    except (ValueError, OSError) as error:
        print(f"{_PROG}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the options together."""
    if options.blind and options.against is None:
        return "--blind compares two outputs; name the second one with --against"
    if options.shared < 0:
        return f"--shared is a number of rows, not {options.shared}"
    if (options.accepted or options.rejected) and not options.apply:
        return "--accepted and --rejected need files of verdicts; name them with --apply"
    return None


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
            "--split": {"type": positive, "default": 1},
            "--shared": {"type": int, "default": 20},
            "--status": {"choices": ("ok", "truncated", "damaged", "error")},
            "--max-rows": {"type": positive, "default": 10_000},
            "--seed": {"type": int, "default": 0},
            "--allow-uri": {"action": "append", "default": []},
            "--frame-px": {"type": positive},
            "--enlarged-px": {"type": positive_or("0"), "default": _BY_NUMBER},
            "--with-clips": {"type": positive, "nargs": "?", "const": _CLIP_KIB},
            "--reason": {"action": "append"},
            "--tag": {"action": "append", "default": []},
            "--reviewer": {"default": ""},
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
    from jobs.review_page.page import deal, write_pages
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
    settings = _settings(options)
    paths = []
    dealt = deal(list(side.sections), options.split, options.shared, options.seed)
    for number, row_ids in enumerate(dealt, 1):
        page = options.page
        if options.split > 1:
            page = page.with_name(f"{page.stem}-reviewer-{number}{page.suffix}")
        paths += write_pages(page, side.only(row_ids), theirs, settings)
    yield f"{output.rows.num_rows} of {output.num_rows} rows of {output.path}"
    if options.split > 1:
        yield f"{min(options.shared, output.rows.num_rows)} rows are on each reviewer's page"
    if options.blind:
        yield "rows with the same caption in both outputs, or with none in one, are left out"
    notes = [frames.note for frames in side.frames.values() if frames.note]
    if notes:
        yield f"{len(notes)} rows without frames; the first one: {notes[0]}"
    for path in paths:
        yield f"{path.absolute()} ({path.stat().st_size / 2**20:.1f} MiB)"


def _settings(options: argparse.Namespace) -> "PageSettings":
    from jobs.review_page.html_file import PageSettings

    return PageSettings(
        max_bytes=options.max_mib << 20,
        reasons=tuple(options.reason or _REASONS.split(", ")),
        tags=tuple(options.tag),
        reviewer=options.reviewer,
        blind_seed=options.seed if options.blind else None,
    )


def _side(output: "Output", options: argparse.Namespace) -> "Side":
    """Read an output and decode the frames of its rows; without its input, each row says so.

    Raises:
        ValueError: the recipe has another version, or --input cannot be read.
    """
    from jobs.review_page.clips import Clips
    from jobs.review_page.row_frames import RowFrames
    from jobs.review_page.row_json import Side
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
            frame_px=options.frame_px or _frame_px(output.rows.num_rows, are_pages),
            max_frames=options.max_frames,
            page_px=_enlarged_px(options, output.rows.num_rows),
            clips=Clips(options.with_clips << 10) if options.with_clips else None,
        )
    except ValueError as error:
        if options.input is not None:
            raise
        note = RowFrames(note=f"no frames: {error}")
        return Side(output=output, sections=sections, frames=dict.fromkeys(sections, note))
    return Side(output=output, sections=sections, frames=decoder.decode(options.workers))


def _frame_px(num_rows: int, are_pages: bool) -> int:
    if are_pages:
        return _PAGE_PX
    return _FRAME_PX if num_rows <= _MANY_ROWS else _MANY_ROWS_FRAME_PX


def _enlarged_px(options: argparse.Namespace, num_rows: int) -> int | None:
    """Return the longer side of an enlarged page; None: no larger than the model saw it."""
    if options.enlarged_px != _BY_NUMBER:
        return options.enlarged_px
    return _ENLARGED_PX if num_rows <= _MANY_DOCUMENTS else None


def _apply(options: argparse.Namespace) -> Iterator[str]:
    """Merge files of verdicts, write the judged rows, and yield what a reader wants to know."""
    from jobs.review_page.rows import read_output
    from jobs.review_verdicts.agreement import agreement
    from jobs.review_verdicts.export import export
    from jobs.review_verdicts.files import read_verdict_files
    from jobs.review_verdicts.merge import check_rows, merge
    from jobs.review_verdicts.rejected import write_rejected

    output = read_output(options.captions, max_rows=0)
    files = read_verdict_files(options.apply, output.recipe_sha256)
    merged = merge(files)
    output = read_output(options.captions, only=list(merged.verdicts))
    if files[0].is_blind:
        yield from _compare(options, output, merged)
        return
    check_rows(output, merged)
    yield _counts(merged)
    voices = [[each.kind for each in said.values() if each.kind] for said in merged.voices.values()]
    if (found := agreement(voices)) is not None:
        yield str(found)
    written = merged.only("accept", "edit") if options.accepted else merged
    for path in export(output, written, options.export):
        yield str(path.absolute())
    if options.rejected:
        row_ids = list(merged.only("reject").verdicts)
        yield from write_rejected(
            output, row_ids, options.export / "rejected.parquet", options.input
        )


def _compare(options: argparse.Namespace, output: "Output", merged: "Merged") -> Iterator[str]:
    from jobs.review_page.rows import read_output
    from jobs.review_verdicts.comparison import compare

    if options.against is None:
        raise ValueError("these are blind comparisons; name the second output with --against")
    comparison = compare(output, read_output(options.against, only=list(merged.voices)), merged)
    yield from comparison.lines()
    yield str(comparison.write(options.export).absolute())


def _counts(merged: "Merged") -> str:
    kinds = [verdict.kind or "only notes" for verdict in merged.verdicts.values()]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    return f"{len(kinds)} verdicts: {', '.join(f'{n} {kind}' for kind, n in counts.items())}"


if __name__ == "__main__":
    sys.exit(main())
