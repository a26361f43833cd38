"""Collect the outputs of a sweep into one table with scores, one row per question and cell."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.sweep.answer_text import normal
from jobs.sweep.choices import parse_choice
from jobs.sweep.grid import Cell
from jobs.sweep.layouts import LETTERS, Item
from jobs.sweep.scores import vote
from jobs.sweep.work import Clip, Work, question_name, video_name
from pipeline.output.ledger import committed_parts
from pipeline.output.store import open_store

_TYPES = {
    **dict.fromkeys(["id", "video", "task", "cell", "text", "truth", "answer"], pa.string()),
    **dict.fromkeys(["logit_answer", "status", "error"], pa.string()),
    **dict.fromkeys(["strict", "expected", "logit", "rank_seconds"], pa.float64()),
    **dict.fromkeys(["num_frames", "num_visual_tokens"], pa.int32()),
    **dict.fromkeys(["num_prompt_tokens", "num_generated_tokens", "num_options"], pa.int32()),
    "texts": pa.list_(pa.string()),
    "choice_logprobs": pa.list_(pa.float32()),
    "is_unparsed": pa.bool_(),
}


def collect(work: Work, uri: str) -> pa.Table:
    """Return all answers, cell after cell; the settings of each cell are columns."""
    clips = {clip.id: clip for clip in work.clips}
    rows: list[dict[str, Any]] = []
    for folder, cells in work.runs.items():
        output = f"{uri}/{folder}"
        seconds = _rank_seconds(output, cells[0])
        for row in _rows_of(output):
            clip = clips[row["row_id"]]
            rows += [one | {"rank_seconds": seconds} for one in _of_clip(row, clip, cells)]
    order = {cell.name: number for number, cell in enumerate(work.cells)}
    rows.sort(key=lambda one: order[one["cell"]])
    table = pa.table({name: pa.array([row[name] for row in rows], _TYPES[name]) for name in _TYPES})
    for name in work.settings:
        table = table.append_column(name, _column([row.get(name) for row in rows]))
    return table


def _column(values: list[Any]) -> pa.Array:
    """Make a column of numbers if all values are numbers, else of text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def _rows_of(uri: str) -> Iterator[dict[str, Any]]:
    store = open_store(uri)
    for part in committed_parts(store):
        filesystem, path = store.path_of(part)
        yield from pq.read_table(path, filesystem=filesystem).to_pylist()


def _rank_seconds(uri: str, cell: Cell) -> float:
    """Return the seconds that a run took per clip, times its number of ranks."""
    report = json.loads(open_store(uri).read("_report.json") or b"{}")
    if not report.get("rows_written"):
        return float("nan")
    num_ranks = (cell.options.expert_parallel or 1) * (cell.options.groups or 1)
    return report["seconds"] * num_ranks / report["rows_written"]


def _of_clip(row: Mapping[str, Any], clip: Clip, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Yield the answers about one clip: cell after cell, and within a cell question by question."""
    answers = iter(row["answers"])
    for number, cell in enumerate(cells):
        for item, text in zip(clip.items, row[question_name(number)], strict=True):
            answer = next(answers)
            frames = answer["frame_times_s"]
            yield {
                "id": item.id,
                "video": video_name(clip.video),
                "task": item.task,
                "cell": cell.name,
                **cell.settings,
                "text": text,
                "truth": item.truth,
                "num_options": len(item.options),
                "num_frames": None if frames is None else len(frames),
                "texts": answer.get("samples"),  # texts of all samples; the first is `text`
                "choice_logprobs": answer["choice_logprobs"] if item.options else None,
                **{name: answer[name] for name in ("status", "error", "num_visual_tokens")},
                **{name: answer[name] for name in ("num_prompt_tokens", "num_generated_tokens")},
                **_scores(item, text, answer),
            }


def _scores(item: Item, text: str | None, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Score one answer; if there are several samples, the answer is their majority vote."""
    texts = answer.get("samples") or ([] if text is None else [text])
    if item.options:
        answered, truth = vote([parse_choice(each, item.options) for each in texts]), item.truth
    else:
        answered, truth = vote([normal(each) or None for each in texts]), normal(item.truth)
    right = float(answered == truth)
    scores = {
        "answer": answered,
        "is_unparsed": answered is None and text is not None,
        "strict": right,
        "expected": right,
        "logit": None,
        "logit_answer": None,
    }
    if not item.options:
        return scores
    if answered is None:
        scores["expected"] = 1.0 / len(item.options)
    likeliest = None
    if answer["choice_logprobs"] is not None:
        own = answer["choice_logprobs"][: len(item.options)]
        likeliest = LETTERS[int(np.argmax(own))]
    return scores | {"logit": float(likeliest == item.truth), "logit_answer": likeliest}
