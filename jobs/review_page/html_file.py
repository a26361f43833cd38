"""One HTML file of a review: its rows as JSON, its pictures, one style and one script (`HtmlFile`).

Captions are untrusted text. The file contains them as JSON in which `<` is escaped, and its script
turns them into text nodes, never into markup. The content security policy allows the one script and
the one style by their hashes, images and clips from `data:` only, and no string to become markup or
code.
"""

import base64
import hashlib
import html
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

from jobs.review_page.row_frames import RowFrames
from jobs.review_page.row_json import Side, text_len
from jobs.review_page.rows import as_json
from jobs.review_page.sections import describe, prompt_of

VERDICT_FORMAT = "moonsweep-verdicts-2"
VERDICTS = ("accept", "reject", "edit", "unsure")
CHOICES = ("left", "right", "tie", "neither")  # of a blind comparison
REASONS = ("wrong", "invented", "missing", "vague")
_ASSETS = Path(__file__).parent / "assets"
# One script, since the policy allows one by its hash. The start is the last.
_SCRIPTS = ("base", "verdicts", "filters", "diff", "pictures", "cards", "judge", "health", "moving")
_ROW_BYTES = 2048  # size of a row without texts and thumbnails, roughly


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """What a page offers to its reviewer."""

    max_bytes: int = 192 << 20
    reasons: Sequence[str] = REASONS
    tags: Sequence[str] = ()
    reviewer: str = ""
    blind_seed: int | None = None  # shuffles the sides of each row, and hides whose they are


@dataclass(frozen=True)
class PageRow:
    """A row of the page as JSON, and the pictures of both sides."""

    json: dict[str, Any]
    left: RowFrames
    right: RowFrames

    @property
    def num_bytes(self) -> int:
        """Bytes of its texts and pictures, roughly."""
        texts = text_len(self.json) + text_len(self.json.get("other"))
        return _ROW_BYTES + texts + self.left.num_bytes + self.right.num_bytes


@dataclass(frozen=True)
class HtmlFile:
    """One file of a review."""

    rows: Sequence[PageRow]
    side: Side
    other: Side | None
    settings: PageSettings
    verdict_file: str
    files: str

    @property
    def is_blind(self) -> bool:
        """Whether the page hides which output a caption is of."""
        return self.settings.blind_seed is not None

    def text(self) -> Iterator[str]:
        """Yield the file in pieces, since its pictures may take much memory."""
        style = (_ASSETS / "page.css").read_text(encoding="utf-8")
        script = "\n".join(
            (_ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in (*_SCRIPTS, "main")
        )
        has_clips = any(row.left.clip is not None for row in self.rows)
        yield (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" content="'
            f'{_policy(style, script, has_clips)}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="referrer" content="no-referrer">\n'
            f"<title>{html.escape(self._title)}</title>\n<style>{style}</style></head><body>\n"
            f"{self._body()}"
        )
        for number, row in enumerate(self.rows):
            row.json["number"] = number
            yield from _blocks("f", number, row.left)
            if row.json.get("other") is not None:
                row.json["other"].pop("digest", None)  # verdicts are on the row at the left
                row.json["other"]["number"] = number
                yield from _blocks("g", number, replace(row.right, clip=None))
        yield f'<script type="application/json" id="data">{_inert(self._data())}</script>\n'
        yield f"<script>{script}</script>\n</body></html>\n"

    @property
    def _title(self) -> str:
        if self.is_blind:
            return "Blind comparison"
        beside = f" beside {self.other.output.name}" if self.other else ""
        return f"Review of {self.side.output.name}{beside}"

    def _data(self) -> dict[str, Any]:
        output, settings = self.side.output, self.settings
        other = None if self.other is None else self.other.output.name
        return {
            "verdict_format": VERDICT_FORMAT,
            "verdict_file": self.verdict_file,
            "mode": "blind" if self.is_blind else "review",
            "output": "" if self.is_blind else output.name,
            "output_label": "left" if self.is_blind else output.name,
            "other": "right" if self.is_blind else other,
            "recipe_sha256": output.recipe_sha256,
            "reviewer": settings.reviewer,
            "reasons": list(settings.reasons),
            "tags": list(settings.tags),
            "labels": [*settings.reasons, *settings.tags],
            "rows": [row.json for row in self.rows],
        }

    def _body(self) -> str:
        rows = [row.json for row in self.rows]
        statuses = Counter(row["status"] for row in rows)
        codes = Counter(f"error: {row['error_code']}" for row in rows if row["error_code"])
        text = {
            "title": self._title,
            "counts": self._counts(statuses, codes),
            "next_key": "o" if self.is_blind else "n",
        }
        changed = '<label><input type="checkbox" id="changed"> changed only</label>'
        options = [*sorted(statuses.items()), *sorted(codes.items())]
        labels = dict.fromkeys([*self.settings.reasons, *self.settings.tags])
        return Template((_ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
            {name: html.escape(value) for name, value in text.items()},
            heads="" if self.is_blind else "\n".join(_heads(self.side, self.other)),
            statuses="".join(_option(name, f"{name} ({number})") for name, number in options),
            verdicts="".join(map(_option, CHOICES if self.is_blind else VERDICTS)),
            labels="".join(map(_option, labels)),
            changed=changed if self.other and not self.is_blind else "",
            files=self.files,
        )

    def _counts(self, statuses: Counter[str], codes: Counter[str]) -> str:
        num_errors = statuses["error"]
        found = [f"{number} {name}" for name, number in statuses.items() if name != "error"]
        if num_errors:
            by_code = ", ".join(f"{number} {name[7:]}" for name, number in codes.items())
            found.append(f"{num_errors} with an error ({by_code})")
        counts = ", ".join(found)
        if not self.is_blind and len(self.rows) < self.side.output.num_rows:
            num_rows = self.side.output.num_rows
            counts += f"; {len(self.rows)} of the {num_rows} rows of the output are in this file"
        return counts


def _option(value: str, label: str | None = None) -> str:
    return f'<option value="{html.escape(value)}">{html.escape(label or value)}</option>'


def _heads(side: Side, other: Side | None) -> Iterator[str]:
    """Yield how each output was made, and in which settings the recipes differ."""
    for each in (side, other):
        if each is not None:
            recipe = each.output.recipe
            prompt = as_json(prompt_of(recipe), 2000)
            line = f"{each.output.name}: {describe(recipe)}"
            yield f"<p>{html.escape(line)}</p>"
            yield f'<p class="text prompt">prompt: {html.escape(prompt)}</p>'
    if other is not None:
        from pipeline.output.recipe import differences

        changed = "; ".join(differences(side.output.recipe, other.output.recipe)) or "nothing"
        yield f"<p>{html.escape(f'changed in the recipe: {changed}')}</p>"


def _policy(style: str, script: str, has_clips: bool) -> str:
    """Return the content security policy of a page with this style and script."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        f"img-src data:; {'media-src data:; ' if has_clips else ''}"
        "base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _blocks(prefix: str, number: int, frames: RowFrames) -> Iterator[str]:
    """Yield the pictures and the clip of a row as blocks of data, which the script reads."""
    pictures = [picture for section in frames.sections for picture in section.pictures]
    larger = [each.larger for each in pictures if each.larger is not None]
    clips = [] if frames.clip is None else [frames.clip]
    for name, files in ((prefix, [each.jpeg for each in pictures]), (f"{prefix}L", larger)):
        if files:
            yield _block(f"{name}{number}", files)
    if clips:
        yield _block(f"v{number}", clips)


def _block(name: str, files: Sequence[bytes]) -> str:
    text = " ".join(base64.b64encode(file).decode() for file in files)
    return f'<script type="text/plain" id="{name}">{text}</script>\n'


def _inert(value: Any) -> str:
    """Format JSON that can neither end the element that contains it nor begin another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
