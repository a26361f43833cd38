"""Write judged rows as Parquet, JSON lines, Label Studio tasks and WebVTT (`export`)."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.review_page.rows import Output
from jobs.review_page.sections import time_label, windows_of
from jobs.review_verdicts.files import Verdict
from jobs.review_verdicts.label_studio import media_facts, write_label_studio
from jobs.review_verdicts.merge import Merged
from pipeline.column_types import seconds_of
from pipeline.media.windows import TimeWindows
from pipeline.prompts.window_answers import TIMELINE_FIELD

_VOICES = pa.list_(pa.struct([("reviewer", pa.string()), ("verdict", pa.string())]))
_PARTS = pa.list_(pa.struct([("part", pa.string()), ("verdict", pa.string())]))


def export(output: Output, merged: Merged, directory: Path) -> list[Path]:
    """Write the judged rows of `output` in all formats; return the files, and the WebVTT directory.

    Raises:
        ValueError: the output has a column whose name is needed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = {row["row_id"]: row for row in output.rows.to_pylist()}
    judged = [(rows[row_id], verdict) for row_id, verdict in merged.verdicts.items()]
    return [
        _write_parquet(output, merged, directory / "verdicts.parquet"),
        _write_lines(output, judged, directory / "captions.jsonl"),
        *write_label_studio(output, judged, directory, final_caption),
        _write_vtt(output, judged, directory / "webvtt"),
    ]


def final_caption(caption: str | None, verdict: Verdict) -> str | None:
    """Return what a caption is after the review; None if it was neither accepted nor edited."""
    return {"accept": caption, "edit": verdict.caption}.get(verdict.kind or "")


def _write_parquet(output: Output, merged: Merged, path: Path) -> Path:
    """Write the judged rows with all their columns, the verdict and the final caption."""
    verdicts = merged.verdicts
    mask = pa.array([row_id in verdicts for row_id in output.rows["row_id"].to_pylist()])
    table = output.rows.filter(mask)
    judged = [verdicts[row_id] for row_id in table["row_id"].to_pylist()]
    finals = list(map(final_caption, table["caption"].to_pylist(), judged))
    parts = [
        [{"part": name, "verdict": kind} for name, kind in each.parts.items()] for each in judged
    ]
    voices = [
        [
            {"reviewer": reviewer, "verdict": verdict.kind}
            for reviewer, verdict in merged.voices[each.row_id].items()
        ]
        for each in judged
    ]
    for name, values, kind in (
        ("verdict", [verdict.kind for verdict in judged], pa.string()),
        ("final_caption", finals, pa.large_string()),
        ("judged_at", [verdict.judged_at for verdict in judged], pa.string()),
        ("review_reasons", [list(each.reasons) for each in judged], pa.list_(pa.string())),
        ("review_tags", [list(each.tags) for each in judged], pa.list_(pa.string())),
        ("review_comment", [each.comment for each in judged], pa.string()),
        ("review_parts", parts, _PARTS),
        ("review_voices", voices, _VOICES),
    ):
        if name in table.column_names:
            raise ValueError(f"{output.path} has a column {name!r} of its own; rename it")
        table = table.append_column(name, pa.array(values, kind))
    pq.write_table(table, path)
    return path


def _write_lines(output: Output, judged: Sequence[tuple[dict, Verdict]], path: Path) -> Path:
    """Write one JSON object per row: id, media, prompt, verdict and captions."""
    with path.open("w", encoding="utf-8") as file:
        for row, verdict in judged:
            line = {
                **media_facts(output, row, "video"),
                "verdict": verdict.kind,
                "caption": final_caption(row["caption"], verdict),
                "model_caption": row["caption"],
                "frame_times_s": row["frame_times_s"],
                "reasons": verdict.reasons,
                "tags": verdict.tags,
                "comment": verdict.comment,
                "parts": verdict.parts,
            }
            text = json.dumps(line, ensure_ascii=False)
            for mark in "\u0085\u2028\u2029":  # some readers take these as line ends too
                text = text.replace(mark, f"\\u{ord(mark):04x}")
            file.write(text + "\n")
    return path


def _write_vtt(output: Output, judged: Sequence[tuple[dict, Verdict]], directory: Path) -> Path:
    """Write a WebVTT file for each row that has a final caption."""
    directory.mkdir(exist_ok=True)
    for row, verdict in judged:
        cues = [
            f"{clock(start_s)} --> {clock(max(end_s, start_s + 0.001))}\n{cue_text(text)}"
            for start_s, end_s, text in _cues(output, row, verdict)
        ]
        if cues:
            path = directory / f"{file_name(row['row_id'])}.vtt"
            path.write_text("\n\n".join(["WEBVTT", *cues]) + "\n", encoding="utf-8")
    return directory


def _cues(
    output: Output, row: Mapping[str, Any], verdict: Verdict
) -> Iterator[tuple[float, float, str]]:
    """Yield start, end and text: the caption over the span of the row, or captions by window."""
    windows, caption = windows_of(output.recipe), final_caption(row["caption"], verdict)
    is_list = isinstance(windows, TimeWindows) and windows.merge is None
    if is_list and verdict.kind == "accept":
        for window in row[TIMELINE_FIELD.name] or ():
            is_rejected = verdict.parts.get(time_label(window)) == "reject"
            if window["caption"] and not is_rejected:
                yield window["start_s"], window["end_s"], window["caption"]
        return
    if caption and (times_s := row["frame_times_s"]):
        columns = output.recipe["columns"]
        start_s, end_s = (
            seconds_of(pa.scalar(row.get(columns.get(side) or ""))) for side in ("start_s", "end_s")
        )
        start_s = start_s or 0.0
        end_s = end_s or span_end_s(start_s, times_s)
        yield start_s, end_s, caption


def span_end_s(start_s: float, times_s: Sequence[float]) -> float:
    """Return the end of a span whose frames are in the middle of its equal parts."""
    return times_s[-1] + max(0.0, times_s[0] - start_s)


def clock(time_s: float) -> str:
    """Format a time as hh:mm:ss.mmm for WebVTT."""
    seconds, millis = divmod(round(time_s * 1000), 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{millis:03}"


def cue_text(text: str) -> str:
    """Escape text for a cue: https://www.w3.org/TR/webvtt1/#webvtt-cue-text."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"\s*[\r\n]\s*", "\n", escaped).strip()


def file_name(row_id: str) -> str:
    """Return a name that is safe in any directory and different for each row id."""
    digest = hashlib.sha256(row_id.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9-]+', '_', row_id)[-80:]}-{digest}"
