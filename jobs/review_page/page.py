"""Write rows and frames into HTML files that need no server, no network and no other file.

Captions are untrusted text. The page contains them as JSON in which `<` is escaped, and its script
turns them into text nodes, never into markup. The content security policy allows the one script and
the one style by their hashes, images from `data:` only, and no string to become markup or code.

A file holds at most `max_bytes` of thumbnails and texts; further rows go to further files.
"""

import base64
import hashlib
import html
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from jobs.review_page.row_frames import RowFrames, SectionFrames
from jobs.review_page.rows import RESULTS, Output, as_json
from jobs.review_page.sections import RowSections, Section, describe, prompt_of
from pipeline.prompts.window_answers import PAGES_FIELD

VERDICT_FORMAT = "moonsweep-verdicts-1"
_HERE = Path(__file__).parent
_ROW_BYTES = 2048  # size of a row without texts and thumbnails, roughly


@dataclass(frozen=True, kw_only=True)
class Side:
    """One output, and of its rows the sections that are shown and their frames."""

    output: Output
    sections: Mapping[str, RowSections]
    frames: Mapping[str, RowFrames]


def write_pages(path: Path, side: Side, other: Side | None, max_bytes: int) -> list[Path]:
    """Write the page, as several files if thumbnails and texts take more than `max_bytes` in one.

    `path` is the first file; the next ones have `-2` and so on before their suffix. `other` is the
    output to compare with.
    """
    rows = [_row(row, side) for row in side.output.rows.to_pylist()]
    if other is not None:
        theirs = {row["row_id"]: row for row in other.output.rows.to_pylist()}
        for row in rows:
            their = theirs.get(row["id"])
            row["other"] = None if their is None else _row(their, other)
            row["changed"] = _outcome(row) != _outcome(row["other"])
    parts = list(_cut(rows, side, other, max_bytes))
    more = range(2, len(parts) + 1)
    paths = [path, *(path.with_name(f"{path.stem}-{each}{path.suffix}") for each in more)]
    for place, (file, part) in enumerate(zip(paths, parts, strict=True)):
        links = _links(paths, place)
        with file.open("w", encoding="utf-8") as stream:
            stream.writelines(_html(part, side, other, f"{file.stem}-verdicts.json", links))
    return paths


def _html(
    rows: Sequence[dict[str, Any]], side: Side, other: Side | None, verdict_file: str, links: str
) -> Iterator[str]:
    """Yield the text of one file in pieces, since its thumbnails may take much memory."""
    style, script = (_HERE / "page.css").read_text(), (_HERE / "page.js").read_text()
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{html.escape(side.output.name)}</title>\n<style>{style}</style></head><body>\n"
        f"{_body(rows, side, other, links)}"
    )
    for number, row in enumerate(rows):
        row["number"] = number
        yield _sprites(f"f{number}", side.frames.get(row["id"]))
        if other is not None and row["other"] is not None:
            row["other"]["number"] = number
            yield _sprites(f"g{number}", other.frames.get(row["id"]))
    data = {
        "verdict_format": VERDICT_FORMAT,
        "verdict_file": verdict_file,
        "output": side.output.name,
        "recipe_sha256": side.output.recipe_sha256,
        "prompt": prompt_of(side.output.recipe),
        "other": other and {"output": other.output.name},
        "rows": rows,
    }
    yield f'<script type="application/json" id="data">{_inert(data)}</script>\n'
    yield f"<script>{script}</script>\n</body></html>\n"


def _row(row: Mapping[str, Any], side: Side) -> dict[str, Any]:
    """Collect what the script shows of a row, as JSON values."""
    row_frames, sections = side.frames.get(row["row_id"], RowFrames()), side.sections[row["row_id"]]
    recipe = side.output.recipe
    frames = row_frames.sections or (SectionFrames(sprites=(), num_frames=0),) * len(sections.shown)
    apart = {PAGES_FIELD.name, *(each["name"] for each in recipe.get("questions", ()))}
    own_prompt = row.get(recipe.get("columns", {}).get("prompt") or "")
    return {
        "id": row["row_id"],
        "digest": row_digest(row, side.output),
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


def row_digest(row: Mapping[str, Any], output: Output) -> str:
    """Return 16 digits that differ between rows whose ids, recipes or results differ.

    The browser keeps a verdict under them, so that no verdict shows up at another caption.
    """
    results = [row[name] for name in RESULTS]
    text = json.dumps([output.recipe_sha256, *results], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _section(section: Section, frames: SectionFrames) -> dict[str, Any]:
    return {
        "label": section.label,
        "answers": [[each.name, each.text, each.error] for each in section.answers],
        "sprites": [{"marks": each.marks, "width_px": each.width_px} for each in frames.sprites],
        "num_frames": frames.num_frames,
    }


def _outcome(row: Mapping[str, Any] | None) -> object:
    """Return the outcome of a row, for the comparison of two outputs."""
    return row and (row["caption"], row["status"], row["error_code"], _texts(row))


def _texts(row: Mapping[str, Any]) -> list[Any]:
    return [answer for section in row["sections"] for answer in section["answers"]]


def _text_len(row: Mapping[str, Any] | None) -> int:
    if row is None:
        return 0
    texts = [row["caption"], *(text for answer in _texts(row) for text in answer)]
    return sum(len(text) for text in texts if text is not None)


def _cut(
    rows: Sequence[dict[str, Any]], side: Side, other: Side | None, max_bytes: int
) -> Iterator[Sequence[dict[str, Any]]]:
    """Yield the rows of each file."""
    begin = num_bytes = 0
    for number, row in enumerate(rows):
        size = _ROW_BYTES + _text_len(row) + _text_len(row.get("other"))
        size += sum(
            each.frames.get(row["id"], RowFrames()).num_bytes
            for each in (side, other)
            if each is not None
        )
        if number > begin and num_bytes + size > max_bytes:
            yield rows[begin:number]
            begin, num_bytes = number, 0
        num_bytes += size
    yield rows[begin:]


def _body(rows: Sequence[Mapping[str, Any]], side: Side, other: Side | None, links: str) -> str:
    statuses = Counter(row["status"] for row in rows)
    codes = Counter(f"error: {row['error_code']}" for row in rows if row["error_code"])
    counts = ", ".join(f"{number} {name}" for name, number in [*statuses.items(), *codes.items()])
    if len(rows) < side.output.num_rows:
        counts += f"; {len(rows)} of the {side.output.num_rows} rows of the output are in this file"
    choices = "".join(
        f'<option value="{html.escape(name)}">{html.escape(name)} ({number})</option>'
        for name, number in [*sorted(statuses.items()), *sorted(codes.items())]
    )
    changed = '<label><input type="checkbox" id="changed"> changed only</label>'
    beside = f" beside {other.output.name}" if other else ""
    text = {"title": f"Review of {side.output.name}{beside}", "counts": counts}
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        {name: html.escape(value) for name, value in text.items()},
        heads="\n".join(_heads(side, other)),
        statuses=choices,
        changed=changed if other else "",
        take=", <kbd>t</kbd> take the right one" if other else "",
        files=links,
    )


def _heads(side: Side, other: Side | None) -> Iterator[str]:
    """Yield how each output was made, and in which settings the recipes differ."""
    for each in (side, other):
        if each is not None:
            recipe = each.output.recipe
            prompt = as_json(prompt_of(recipe), 300)
            line = f"{each.output.name}: {describe(recipe)}, prompt: {prompt}"
            yield f'<div class="facts">{html.escape(line)}</div>'
    if other is not None:
        from pipeline.output.recipe import differences

        changed = "; ".join(differences(side.output.recipe, other.output.recipe)) or "nothing"
        yield f'<div class="facts">{html.escape(f"changed in the recipe: {changed}")}</div>'


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
    return f"<div>files: {' '.join(links)} (filters and verdicts are of one file)</div>"


def _policy(style: str, script: str) -> str:
    """Return the content security policy of a page with this style and script."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _sprites(name: str, frames: RowFrames | None) -> str:
    """Return the sprites of a row as a block of data, which the script reads when needed."""
    sections = frames.sections if frames else ()
    jpegs = [sprite.jpeg for section in sections for sprite in section.sprites]
    text = " ".join(base64.b64encode(jpeg).decode() for jpeg in jpegs)
    return f'<script type="text/plain" id="{name}">{text}</script>\n' if jpegs else ""


def _inert(value: Any) -> str:
    """Format JSON that can neither end the element that contains it nor begin another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else round(number, 3)
