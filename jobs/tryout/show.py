"""Show answers as text for a terminal."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.tryout.session import Answer
from pipeline.monitor.printable import printable
from pipeline.schema import Status

_INDENT = " " * 12
_MOST_TIMES = 16  # more are shortened to the first and last ones


def answer_lines(answer: Answer, names: Sequence[str], width: int) -> Iterator[str]:
    """Yield the lines of one row: what the model saw, its answers, what they took.

    `names` are those of the prompts that have columns of their own; `width` is in characters.
    """
    row = answer.row
    yield printable(row["row_id"])
    if row["frame_times_s"] is not None:
        yield _labelled("saw", _seen(row), width)
    if answer.own_prompt is not None:
        yield _labelled("prompt", answer.own_prompt, width)
    if row["status"] != Status.OK:
        reason = f": {row['error_code']}: {row['error']}" if row["error_code"] else ""
        yield _labelled(row["status"], reason.removeprefix(": ") or _cut(row), width)
    for name, text in _texts(row, names):
        yield _labelled(name, text, width)
    yield _labelled("took", _took(answer), width)


def _texts(row: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the texts of a row, each with its label."""
    if row.get("reasoning"):
        yield "reasoning", row["reasoning"]
    for window in row.get("timeline") or ():
        text = window["caption"] or f"{window['error_code']}: {window['error']}"
        yield f"{window['start_s']:g}-{window['end_s']:g} s", text
    for number, text in enumerate(row.get("pages") or (), 1):
        yield f"page {number}", text or "none"
    if row.get("pages"):
        return  # the caption is all pages once more
    if names:
        for name in names:
            yield name, "none" if row[name] is None else str(row[name])
    elif row["caption"] is not None:
        yield "answer", row["caption"]


def _seen(row: Mapping[str, Any]) -> str:
    times = [f"{time:.1f}" for time in row["frame_times_s"]] if row["media_duration_s"] else []
    if len(times) > _MOST_TIMES:
        times = [*times[: _MOST_TIMES // 2], "...", *times[-_MOST_TIMES // 2 :]]
    count = len(row["frame_times_s"])
    size = f"{row['frame_width']}x{row['frame_height']}"
    what = f"{count} of {size}, {row['num_visual_tokens']:,} tokens"
    return f"{what}; at {' '.join(times)} s" if times else what


def _took(answer: Answer) -> str:
    row = answer.row
    parts = [f"{answer.prepare_s:.1f} s to prepare"]
    if row["num_generated_tokens"] is not None:
        parts.append(
            f"{answer.answer_s:.1f} s to answer {row['num_prompt_tokens']:,} tokens with "
            f"{row['num_generated_tokens']:,}"
        )
    return ", ".join(parts)


def _cut(row: Mapping[str, Any]) -> str:
    return f"the answer ended by {row['finish_reason']}" if row["finish_reason"] else ""


def _labelled(label: str, text: str, width: int) -> str:
    """Return a text behind its label, broken into lines of a readable width."""
    lines = [
        line
        for paragraph in text.splitlines() or [""]
        for line in textwrap.wrap(printable(paragraph), max(20, width - len(_INDENT))) or [""]
    ]
    label = f"  {printable(label)}".ljust(len(_INDENT) - 1) + " "
    return label + f"\n{_INDENT}".join(lines)
