"""Turn rows of an output into the JSON that the script of the page shows (`row_json`).

Each row has a digest, which differs between rows whose ids, recipes or results differ. Browser and
verdict files name rows by it, so no verdict is ever taken for one on another caption.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute as pc

from jobs.review_page.row_frames import RowFrames, SectionFrames
from jobs.review_page.rows import RESULTS, Output, as_json
from jobs.review_page.sections import RowSections, Section
from pipeline.prompts.window_answers import PAGES_FIELD


@dataclass(frozen=True, kw_only=True)
class Side:
    """One output, and of its rows the sections that are shown and their frames."""

    output: Output
    sections: Mapping[str, RowSections]
    frames: Mapping[str, RowFrames]

    def only(self, row_ids: Sequence[str]) -> "Side":
        """Return the same with these rows alone, in their order in the output."""
        rows = self.output.rows.filter(pc.field("row_id").isin(list(row_ids)))
        return replace(self, output=replace(self.output, rows=rows))


def row_json(row: Mapping[str, Any], side: Side) -> dict[str, Any]:
    """Collect what the script shows of a row, as JSON values."""
    row_frames, sections = side.frames.get(row["row_id"], RowFrames()), side.sections[row["row_id"]]
    recipe = side.output.recipe
    frames = row_frames.sections or (SectionFrames(pictures=(), num_frames=0),) * len(
        sections.shown
    )
    apart = {PAGES_FIELD.name, *(each["name"] for each in recipe.get("questions", ()))}
    own_prompt = row.get(recipe.get("columns", {}).get("prompt") or "")
    return {
        "id": row["row_id"],
        "digest": result_digest(row, side.output),
        "prompt": own_prompt,
        **{
            name: row[name]
            for name in (
                *("status", "error_code", "error", "caption", "reasoning", "finish_reason"),
                *("num_prompt_tokens", "num_generated_tokens"),
            )
        },
        "mean_logprob": _rounded(row["mean_logprob"]),
        "min_logprob": _rounded(row["min_logprob"]),
        "sections": [_section(*each) for each in zip(sections.shown, frames, strict=True)],
        "num_sections": sections.num_sections,
        "are_pages": sections.are_pages,
        "are_caption": sections.are_caption,
        "note": row_frames.note,
        "more": [
            [name, as_json(row[name])]
            for name in side.output.extra
            if row[name] is not None and name not in apart
        ],
    }


def result_digest(row: Mapping[str, Any], output: Output) -> str:
    """Return 16 digits that differ between rows whose ids, recipes or results differ."""
    results = [row[name] for name in RESULTS]
    return digest_of([output.recipe_sha256, *results])


def digest_of(value: Any) -> str:
    """Return 16 hexadecimal digits of a value's JSON."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def part_names(sections: RowSections) -> set[str | None]:
    """Name the prompts, windows or pages of a row, by the rule of `partOf` in the script."""
    return {
        answer.name if answer.name is not None else section.label
        for section in sections.shown
        for answer in section.answers
    }


def outcome(row: Mapping[str, Any] | None) -> object:
    """Return what a model made of a row, to compare two outputs."""
    if row is None:
        return None
    answers = [answer for section in row["sections"] for answer in section["answers"]]
    return row["caption"], row["status"], row["error_code"], answers


def text_len(row: Mapping[str, Any] | None) -> int:
    """Return the characters of a row's texts, roughly."""
    return 0 if row is None else sum(len(text) for text in _texts(row))


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    yield row["caption"] or ""
    for section in row["sections"]:
        for answer in section["answers"]:
            yield from (text for text in answer if text is not None)


def _section(section: Section, frames: SectionFrames) -> dict[str, Any]:
    return {
        "label": section.label,
        "answers": [[each.name, each.text, each.error] for each in section.answers],
        "pictures": [
            {
                "mark": each.mark,
                "width_px": each.width_px,
                "height_px": each.height_px,
                "is_larger": each.larger is not None,
            }
            for each in frames.pictures
        ],
        "num_frames": frames.num_frames,
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else round(number, 3)
