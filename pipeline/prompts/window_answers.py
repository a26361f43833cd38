"""What the windows of a row say, as one row: the `timeline` of a video, the `pages` of a document.

Each window is a part of the row (`pipeline.prompts.fan_in`) with its frames and its answer. A
window that failed is told in its place of the list, and in the row's status; the others keep their
text.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.media.windows import PageWindows, TimeWindows, Windows
from pipeline.prompts.fan_in import (
    PART_FIELDS,
    RULES,
    Part,
    Rule,
    fan_in,
    first_error,
    nothing,
    total_of,
)
from pipeline.schema import RESULT_FIELDS, WINDOW_FIELD, Status

_CAPTION, _TOKENS = (
    next(field for field in RESULT_FIELDS if field.name == name)
    for name in ("caption", "num_visual_tokens")
)
_OF_WINDOW = (*PART_FIELDS, _TOKENS)

TIMELINE_FIELD = pa.field(
    "timeline",
    pa.list_(
        pa.struct(
            [
                pa.field("start_s", pa.float64()),
                pa.field("end_s", pa.float64()),
                _CAPTION,
                *_OF_WINDOW,
            ]
        )
    ),
)
PAGES_FIELD = pa.field("pages", pa.list_(pa.large_string()))  # null for one that failed
NUM_PAGES_FIELD = pa.field("num_pages", pa.int32())
TRUNCATED_PAGES_FIELD = pa.field("truncated_pages", pa.list_(pa.int32()))  # from 1 on
PAGE_WINDOWS_FIELD = pa.field(
    "page_windows",  # what each prompt showed
    pa.list_(
        pa.struct(
            [pa.field("first_page", pa.int32()), pa.field("last_page", pa.int32()), *_OF_WINDOW]
        )
    ),
)

_Shown = tuple[Part, float, float]  # a window with its start and end

_PAGE_LINE = re.compile(r"^[ \t]*\[page (\d+)\][ \t]*$\n?", re.MULTILINE)


def window_fields(windows: Windows | None) -> list[pa.Field]:
    """The result columns that windows add."""
    if isinstance(windows, TimeWindows):
        return [TIMELINE_FIELD]
    if isinstance(windows, PageWindows):
        return [PAGES_FIELD, NUM_PAGES_FIELD, TRUNCATED_PAGES_FIELD, PAGE_WINDOWS_FIELD]
    return []


def page_line(page: int) -> str:
    """What stands before a page in a prompt of several, and before its text in the answer."""
    return f"[page {page}]\n"


PAGES_REQUEST = (
    "\nWrite the pages in their order, and before the text of each the line that stands before its "
    "picture, such as [page 1]."
)


def windows_in_rows(table: pa.Table, windows: Windows) -> pa.Table:
    """One row for each row of the input, with the `window_fields`.

    Args:
        table: answered windows, those of the same input row one after the other.
        windows: of which kind.
    """
    rules = dict(RULES) | {
        "error": first_error(lambda part: _name(part, windows)),
        "num_visual_tokens": total_of("num_visual_tokens"),
    }
    if isinstance(windows, TimeWindows):
        rules |= {"caption": _of_windows(_list), "frame_times_s": _of_windows(_frame_times)}
        columns = [(TIMELINE_FIELD, _timeline)]
    else:
        rules |= {"caption": _of_windows(_document), "frame_times_s": nothing}
        columns = [
            (PAGES_FIELD, _pages),
            (NUM_PAGES_FIELD, _num_pages),
            (TRUNCATED_PAGES_FIELD, _truncated_pages),
            (PAGE_WINDOWS_FIELD, _page_windows),
        ]
    return fan_in(table, rules, [(field, _of_windows(rule)) for field, rule in columns])


def labelled(start_s: float, end_s: float, caption: str) -> str:
    """A caption after its seconds, as lists of captions have it."""
    return f"{start_s:.1f} - {end_s:.1f} s: {caption}"


def _name(part: Part, windows: Windows) -> str:
    start, end = part[WINDOW_FIELD.name].values()
    if isinstance(windows, TimeWindows):
        return f"{start:.1f} - {end:.1f} s"
    return f"page {end:.0f}" if end - start == 1 else f"pages {start + 1:.0f} to {end:.0f}"


def _of_windows(rule: Callable[[Sequence[_Shown]], Any]) -> Rule:
    """The rule for rows that have windows; null for a row that failed before it had any."""

    def of_row(parts: Sequence[Part]) -> Any:
        if parts[0][WINDOW_FIELD.name] is None:
            return None
        return rule([(part, *part[WINDOW_FIELD.name].values()) for part in parts])

    return of_row


def _list(windows: Sequence[_Shown]) -> str | None:
    """All captions with their seconds, one a line."""
    lines = [
        labelled(start, end, part["caption"])
        for part, start, end in windows
        if part["caption"] is not None
    ]
    return "\n".join(lines) if lines else None


def _frame_times(windows: Sequence[_Shown]) -> list[float] | None:
    """Of all windows, each time once."""
    times = {time for part, *_ in windows for time in part["frame_times_s"] or ()}
    return sorted(times) or None


def _timeline(windows: Sequence[_Shown]) -> list[dict[str, Any]]:
    return [
        {"start_s": start, "end_s": end, "caption": part["caption"], **_numbers(part)}
        for part, start, end in windows
    ]


def _numbers(part: Part) -> dict[str, Any]:
    return {field.name: part[field.name] for field in _OF_WINDOW}


def _document(windows: Sequence[_Shown]) -> str | None:
    """The text of all pages, in order; null if no page has any."""
    texts = [text for text in _pages(windows) if text is not None]
    return "\n\n".join(text.strip() for text in texts if text.strip()) if texts else None


def _pages(windows: Sequence[_Shown]) -> list[str | None]:
    return [text for window in windows for text in _split(*window)]


def _split(part: Part, start: float, end: float) -> list[str | None]:
    """The text of each page of a window; null for those that the answer does not come to.

    An answer without the lines that it was asked for stands whole at its first page.
    """
    text, num_pages = part["caption"], int(end - start)
    if text is None or num_pages == 1:
        return [text] + [None] * (num_pages - 1)
    before, *found = _PAGE_LINE.split(text)
    numbers = [int(number) for number in found[::2]]
    texts: list[str | None] = [each.rstrip("\n") for each in found[1::2]]
    wanted = range(int(start) + 1, int(end) + 1)
    if before.strip() or not numbers or numbers != list(wanted[: len(numbers)]):
        texts = [text]
    return texts + [None] * (num_pages - len(texts))


def _num_pages(windows: Sequence[_Shown]) -> int:
    *_, (_, _, end) = windows
    return int(end)


def _truncated_pages(windows: Sequence[_Shown]) -> list[int]:
    """The pages whose text was cut, and those that it did not come to for that."""
    cut: list[int] = []
    for part, start, end in windows:
        if part["status"] == Status.TRUNCATED:
            num_begun = sum(text is not None for text in _split(part, start, end))
            cut += range(int(start) + num_begun, int(end) + 1)
    return cut


def _page_windows(windows: Sequence[_Shown]) -> list[dict[str, Any]]:
    return [
        {"first_page": int(start) + 1, "last_page": int(end), **_numbers(part)}
        for part, start, end in windows
    ]
