"""Export the verdicts of reviewers as Parquet, JSON lines, Label Studio tasks and WebVTT.

The files come from a browser and are checked as strictly as any input: a verdict must belong to
this output and its recipe, name an existing row, and be the only one on that row.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.review_page.page import VERDICT_FORMAT
from jobs.review_page.rows import Output
from jobs.review_page.sections import prompt_of, windows_of
from pipeline.column_types import seconds_of
from pipeline.media.windows import PageWindows, TimeWindows
from pipeline.prompts.window_answers import TIMELINE_FIELD

_KINDS = ("accept", "reject", "edit")
_ADDED = ("verdict", "final_caption", "judged_at")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one row."""

    row_id: str
    kind: Literal["accept", "reject", "edit"]
    caption: str | None  # the edited caption
    judged_at: str | None  # ISO 8601, by the reviewer's clock


def read_verdicts(paths: Sequence[Path], recipe_sha256: str) -> dict[str, Verdict]:
    """Return the verdicts in files that the page saved, by row id.

    Raises:
        ValueError: a file was not saved by the page or belongs to another output, or two files
            disagree on a row; the message names file and row.
    """
    verdicts: dict[str, Verdict] = {}
    for path in paths:
        for line in _lines(path, recipe_sha256):
            verdict = _verdict(line, path)
            other = verdicts.setdefault(verdict.row_id, verdict)
            if (other.kind, other.caption) != (verdict.kind, verdict.caption):
                raise ValueError(
                    f"{path}: row {verdict.row_id!r} is {verdict.kind} here and {other.kind} "
                    "before; agree on one and remove the other"
                )
    if not verdicts:
        raise ValueError(f"{', '.join(map(str, paths))}: no verdicts")
    return verdicts


def export(output: Output, verdicts: Mapping[str, Verdict], directory: Path) -> list[Path]:
    """Write the judged rows of `output` in all formats; return the files, and the WebVTT directory.

    Raises:
        ValueError: the output lacks a judged row, or has a column whose name is needed.
    """
    rows = {row["row_id"]: row for row in output.rows.to_pylist()}
    if missing := [row_id for row_id in verdicts if row_id not in rows]:
        raise ValueError(f"{output.path} has no row {missing[0]!r} ({len(missing)} such verdicts)")
    if taken := [name for name in _ADDED if name in output.rows.column_names]:
        raise ValueError(f"{output.path} has a column {taken[0]!r} of its own; rename it")
    directory.mkdir(parents=True, exist_ok=True)
    judged = [(rows[row_id], verdict) for row_id, verdict in verdicts.items()]
    return [
        _write_parquet(output, verdicts, directory / "verdicts.parquet"),
        _write_lines(output, judged, directory / "captions.jsonl"),
        *_write_label_studio(output, judged, directory),
        _write_vtt(output, judged, directory / "webvtt"),
    ]


def final_caption(caption: str | None, verdict: Verdict) -> str | None:
    """Return what a caption is after the review; None if it was rejected."""
    return {"accept": caption, "edit": verdict.caption, "reject": None}[verdict.kind]


def _lines(path: Path, recipe_sha256: str) -> list[Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict) or value.get("format") != VERDICT_FORMAT:
        raise ValueError(f"{path} is not a file of verdicts that the review page saved")
    if value.get("recipe_sha256") != recipe_sha256:
        raise ValueError(
            f"{path} judges captions of another recipe, those of {value.get('output')!r}"
        )
    lines = value.get("verdicts")
    return lines if isinstance(lines, list) else []


def _verdict(line: Any, path: Path) -> Verdict:
    row_id = line.get("row_id") if isinstance(line, dict) else None
    if not isinstance(row_id, str):
        raise ValueError(f"{path}: a verdict names no row: {line!s:.100}")  # noqa: TRY004
    kind, caption, judged_at = (line.get(name) for name in ("verdict", "caption", "judged_at"))
    if kind not in _KINDS:
        raise ValueError(
            f"{path}: row {row_id!r} has the verdict {kind!r}; it must be one of "
            f"{', '.join(_KINDS)}"
        )
    if kind == "edit" and not isinstance(caption, str):
        raise ValueError(f"{path}: row {row_id!r} was edited and has no caption")
    return Verdict(
        row_id=row_id,
        kind=kind,
        caption=caption if kind == "edit" else None,
        judged_at=judged_at if isinstance(judged_at, str) else None,
    )


def _write_parquet(output: Output, verdicts: Mapping[str, Verdict], path: Path) -> Path:
    """Write the judged rows with all their columns, the verdict and the final caption."""
    mask = pa.array([row_id in verdicts for row_id in output.rows["row_id"].to_pylist()])
    table = output.rows.filter(mask)
    judged = [verdicts[row_id] for row_id in table["row_id"].to_pylist()]
    finals = list(map(final_caption, table["caption"].to_pylist(), judged))
    for name, values, kind in (
        ("verdict", [verdict.kind for verdict in judged], pa.string()),
        ("final_caption", finals, pa.large_string()),
        ("judged_at", [verdict.judged_at for verdict in judged], pa.string()),
    ):
        table = table.append_column(name, pa.array(values, kind))
    pq.write_table(table, path)
    return path


def _write_lines(output: Output, judged: Sequence[tuple[dict, Verdict]], path: Path) -> Path:
    """Write one JSON object per row: id, media, prompt, verdict and captions."""
    with path.open("w", encoding="utf-8") as file:
        for row, verdict in judged:
            line = {
                **_facts(output, row, "video"),
                "verdict": verdict.kind,
                "caption": final_caption(row["caption"], verdict),
                "model_caption": row["caption"],
                "frame_times_s": row["frame_times_s"],
            }
            text = json.dumps(line, ensure_ascii=False)
            for mark in "\u0085\u2028\u2029":  # some readers take these as line ends too
                text = text.replace(mark, f"\\u{ord(mark):04x}")
            file.write(text + "\n")
    return path


_LABEL_CONFIG = """\
<View>
  <{tag} name="{name}" value="${name}"/>
  <TextArea name="caption" toName="{name}" editable="true"/>
  <Choices name="verdict" toName="{name}">
    <Choice value="accept"/><Choice value="reject"/><Choice value="edit"/>
  </Choices>
</View>
"""


def _write_label_studio(
    output: Output, judged: Sequence[tuple[dict, Verdict]], directory: Path
) -> list[Path]:
    """Write tasks to import into a project, and the labelling interface that they need.

    The interface shows videos, images or PDFs, like the output. The caption of the model is a
    prediction, and the final caption is an annotation.
    Format: https://labelstud.io/guide/tasks, "Basic Label Studio JSON format".
    """
    tag = _label_tag(output)
    name = tag.lower()
    tasks = []
    for row, verdict in judged:
        final = final_caption(row["caption"], verdict)
        choice = _region(name, "verdict", "choices", {"choices": [verdict.kind]})
        texts = [_caption_region(name, final)] if final else []
        guesses = [_caption_region(name, row["caption"])] if row["caption"] else []
        tasks.append(
            {
                "data": _facts(output, row, name),
                "annotations": [{"result": [*texts, choice]}],
                "predictions": [{"model_version": output.recipe_sha256[:12], "result": guesses}],
            }
        )
    path, config = directory / "label_studio.json", directory / "label_studio.xml"
    path.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
    config.write_text(_LABEL_CONFIG.format(tag=tag, name=name), encoding="utf-8")
    return [path, config]


def _label_tag(output: Output) -> str:
    """Return the object tag of Label Studio for the media of an output."""
    if isinstance(windows_of(output.recipe), PageWindows):
        return "Pdf"
    seconds = output.rows["media_duration_s"].drop_null().to_pylist()
    return "Image" if seconds and not any(seconds) else "Video"


def _caption_region(shown: str, text: str) -> dict[str, Any]:
    return _region(shown, "caption", "textarea", {"text": [text]})


def _region(shown: str, name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": shown, "type": kind, "value": value}


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
            if window["caption"]:
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


def _facts(output: Output, row: Mapping[str, Any], media_name: str) -> dict[str, str | None]:
    """Return the id of a row, the path of its media, if it has one, and its prompt."""
    columns = output.recipe["columns"]
    media, prompt = (row.get(columns.get(name) or "") for name in ("video", "prompt"))
    path = media.get("path") if isinstance(media, Mapping) else media
    return {
        "row_id": row["row_id"],
        media_name: path if isinstance(path, str) else None,
        "prompt": prompt or prompt_of(output.recipe),
    }
