"""The answers about a row's windows as one row: `timeline` of a video, `pages` of a document.

A window that failed keeps its place in the list, with its error, and the status of the row tells of
it. The other windows keep their text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.media.windows import TimeWindows, Windows
from pipeline.prompts.fan_in import (
    DETAIL_FIELDS,
    RULES,
    PromptResult,
    Rule,
    fan_in,
    first_error,
    null,
    total_of,
)
from pipeline.prompts.pages import split_answer
from pipeline.schema import RESULT_FIELDS, WINDOW_FIELD, Status

_CAPTION, _TOKENS = map(pa.schema(RESULT_FIELDS).field, ("caption", "num_visual_tokens"))
_WINDOW_DETAILS = (*DETAIL_FIELDS, _TOKENS)
_SECONDS = (pa.field("start_s", pa.float64()), pa.field("end_s", pa.float64()))
_PAGE_NUMBERS = (pa.field("first_page", pa.int32()), pa.field("last_page", pa.int32()))

TIMELINE_FIELD = pa.field("timeline", pa.list_(pa.struct([*_SECONDS, _CAPTION, *_WINDOW_DETAILS])))
PAGES_FIELD = pa.field("pages", pa.list_(pa.large_string()))  # null for a page that failed
NUM_PAGES_FIELD = pa.field("num_pages", pa.int32())
TRUNCATED_PAGES_FIELD = pa.field("truncated_pages", pa.list_(pa.int32()))  # numbers from 1 on
PAGE_WINDOWS_FIELD = pa.field(  # the pages of each prompt
    "page_windows", pa.list_(pa.struct([*_PAGE_NUMBERS, *_WINDOW_DETAILS]))
)

_Answered = tuple[PromptResult, float, float]  # a window's result, its start and its end


def window_fields(windows: Windows | None) -> list[pa.Field]:
    """The result columns that windows add."""
    if windows is None:
        return []
    return list(_TIME_COLUMNS if isinstance(windows, TimeWindows) else _PAGE_COLUMNS)


def windows_in_rows(table: pa.Table, windows: Windows) -> pa.Table:
    """Join the answered windows of each row, as `fan_in` does, with the `window_fields`."""
    rules = dict(RULES) | {
        "error": first_error(lambda result: _name(result, windows)),
        "num_visual_tokens": total_of("num_visual_tokens"),
    }
    if isinstance(windows, TimeWindows):
        rules |= {"caption": _of_windows(_captions), "frame_times_s": _of_windows(_frame_times)}
        columns = _TIME_COLUMNS
    else:
        rules |= {"caption": _of_windows(_document), "frame_times_s": null}
        columns = _PAGE_COLUMNS
    return fan_in(table, rules, [(field, _of_windows(rule)) for field, rule in columns.items()])


def labelled(start_s: float, end_s: float, caption: str) -> str:
    """A caption with its start and end before it, as a line of a list of captions."""
    return f"{start_s:.1f} - {end_s:.1f} s: {caption}"


def _name(result: PromptResult, windows: Windows) -> str:
    """Name a window in an error message."""
    start, end = result[WINDOW_FIELD.name].values()
    if isinstance(windows, TimeWindows):
        return f"{start:.1f} - {end:.1f} s"
    return f"page {end:.0f}" if end - start == 1 else f"pages {start + 1:.0f} to {end:.0f}"


def _of_windows(rule: Callable[[Sequence[_Answered]], Any]) -> Rule:
    """Make a rule of one for windows; it gives null for a row that failed before it had any."""

    def of_row(results: Sequence[PromptResult]) -> Any:
        if results[0][WINDOW_FIELD.name] is None:
            return None
        return rule([(result, *result[WINDOW_FIELD.name].values()) for result in results])

    return of_row


def _captions(windows: Sequence[_Answered]) -> str | None:
    """All captions with their seconds, one in a line; null if there is none."""
    lines = [
        labelled(start, end, result["caption"])
        for result, start, end in windows
        if result["caption"] is not None
    ]
    return "\n".join(lines) if lines else None


def _frame_times(windows: Sequence[_Answered]) -> list[float] | None:
    """The frame times of all windows, each once."""
    times = {time for result, *_ in windows for time in result["frame_times_s"] or ()}
    return sorted(times) or None


def _timeline(windows: Sequence[_Answered]) -> list[dict[str, Any]]:
    return [
        {"start_s": start, "end_s": end, "caption": result["caption"], **_details(result)}
        for result, start, end in windows
    ]


def _details(result: PromptResult) -> dict[str, Any]:
    return {field.name: result[field.name] for field in _WINDOW_DETAILS}


def _document(windows: Sequence[_Answered]) -> str | None:
    """The text of all pages, in order; null if no page has a text."""
    texts = [text for text in _pages(windows) if text is not None]
    return "\n\n".join(text.strip() for text in texts if text.strip()) if texts else None


def _pages(windows: Sequence[_Answered]) -> list[str | None]:
    return [text for result, *pages in windows for text in split_answer(result["caption"], *pages)]


def _truncated_pages(windows: Sequence[_Answered]) -> list[int]:
    """The pages whose text was cut short, and those that the cut answer did not reach."""
    cut: list[int] = []
    for result, start, end in windows:
        if result["status"] == Status.TRUNCATED:
            texts = split_answer(result["caption"], start, end)
            num_begun = sum(text is not None for text in texts)
            # The last page that was begun is the one that was cut: start + num_begun, from 1 on.
            cut += range(int(start) + num_begun, int(end) + 1)
    return cut


def _page_windows(windows: Sequence[_Answered]) -> list[dict[str, Any]]:
    return [
        {"first_page": int(start) + 1, "last_page": int(end), **_details(result)}
        for result, start, end in windows
    ]


# The columns that windows add, each with the rule that joins the windows of a row.
_TIME_COLUMNS = {TIMELINE_FIELD: _timeline}
_PAGE_COLUMNS = {
    PAGES_FIELD: _pages,
    NUM_PAGES_FIELD: lambda windows: int(windows[-1][2]),
    TRUNCATED_PAGES_FIELD: _truncated_pages,
    PAGE_WINDOWS_FIELD: _page_windows,
}
