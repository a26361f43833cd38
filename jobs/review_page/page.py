"""Write the HTML files of a review, which need no server, no network and no other file.

A file holds at most `max_bytes` of pictures and texts; further rows go to further files.
"""

import html
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.review_page.html_file import HtmlFile, PageRow, PageSettings
from jobs.review_page.row_frames import RowFrames
from jobs.review_page.row_json import Side, digest_of, outcome, row_json


def write_pages(
    path: Path, side: Side, other: Side | None, settings: PageSettings | None = None
) -> list[Path]:
    """Write the page, as several files if thumbnails and texts take more than fits in one.

    `path` is the first file; the next ones have `-2` and so on before their suffix. `other` is the
    output to compare with.

    Raises:
        ValueError: no row can be compared blindly, since none has two different captions.
    """
    settings = settings or PageSettings()
    rows = list(_page_rows(side, other))
    if settings.blind_seed is not None:
        rows = [_shuffled(row, settings.blind_seed) for row in rows if _is_comparable(row.json)]
        if not rows:
            raise ValueError("no row has two different captions, so there is nothing to compare")
    parts = list(_cut(rows, settings.max_bytes))
    more = range(2, len(parts) + 1)
    paths = [path, *(path.with_name(f"{path.stem}-{each}{path.suffix}") for each in more)]
    for place, (file, part) in enumerate(zip(paths, parts, strict=True)):
        page = HtmlFile(
            part, side, other, settings, f"{file.stem}-verdicts", files=_links(paths, place)
        )
        with file.open("w", encoding="utf-8") as stream:
            stream.writelines(page.text())
    return paths


def deal(row_ids: Sequence[str], num_reviewers: int, num_shared: int, seed: int) -> list[list[str]]:
    """Deal rows to reviewers at random: `num_shared` rows to all of them, each other row to one."""
    drawn = list(row_ids)
    random.Random(seed).shuffle(drawn)
    shared, rest = drawn[:num_shared], drawn[num_shared:]
    return [shared + rest[number::num_reviewers] for number in range(num_reviewers)]


def _page_rows(side: Side, other: Side | None) -> Iterator[PageRow]:
    theirs = {} if other is None else {row["row_id"]: row for row in other.output.rows.to_pylist()}
    for row in side.output.rows.to_pylist():
        row_id = row["row_id"]
        here, right = row_json(row, side), RowFrames()
        if other is not None:
            their = theirs.get(row_id)
            here["other"] = None if their is None else row_json(their, other)
            here["changed"] = outcome(here) != outcome(here["other"])
            right = other.frames.get(row_id, right)
        yield PageRow(here, side.frames.get(row_id, RowFrames()), right)


def _is_comparable(row: dict[str, Any]) -> bool:
    """Tell whether both sides have a caption, and not the same one."""
    return bool(row["changed"] and row["other"] and row["caption"] and row["other"]["caption"])


def _shuffled(row: PageRow, seed: int) -> PageRow:
    """Put one of the two sides at the left, by a draw that depends on the seed and on both rows."""
    here, other = row.json, row.json["other"]
    pair = sorted([here["digest"], other["digest"]])
    is_swapped = int(digest_of([seed, *pair]), 16) % 2 == 1
    left, right = (other, {**here, "other": None}) if is_swapped else (here, other)
    frames = (row.right, row.left) if is_swapped else (row.left, row.right)
    if frames[0].clip is None:
        frames = (replace(frames[0], clip=frames[1].clip), frames[1])
    digest = digest_of([left["digest"], right["digest"]])
    both = {**left, "left": left["digest"], "digest": digest, "other": right, "changed": True}
    return PageRow(both, *frames)


def _cut(rows: Sequence[PageRow], max_bytes: int) -> Iterator[Sequence[PageRow]]:
    """Yield the rows of each file."""
    begin = num_bytes = 0
    for number, row in enumerate(rows):
        if number > begin and num_bytes + row.num_bytes > max_bytes:
            yield rows[begin:number]
            begin, num_bytes = number, 0
        num_bytes += row.num_bytes
    yield rows[begin:]


def _links(paths: Sequence[Path], place: int) -> str:
    """Link the files of the review, if there are several."""
    if len(paths) == 1:
        return ""
    links = [
        f"<b>{number + 1}</b>"
        if number == place
        else f'<a href="{html.escape(path.name)}">{number + 1}</a>'
        for number, path in enumerate(paths)
    ]
    return f"<span>files: {' '.join(links)} (each has its own rows and verdicts)</span>"
