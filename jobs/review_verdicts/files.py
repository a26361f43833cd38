"""Read the files of verdicts that the review page saves (`read_verdict_files`).

The files come from a browser and are checked as strictly as any input: a verdict must belong to
this output and its recipe, and be of a kind that the page knows. Files of the first version, which
knows accept, reject and edit alone, are read too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.review_page.html_file import CHOICES, VERDICT_FORMAT, VERDICTS

_FIRST_FORMAT = "moonsweep-verdicts-1"
_PART_VERDICTS = ("accept", "reject", "unsure")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one reviewer, or all of them together, said of one row."""

    row_id: str
    kind: str | None  # one of VERDICTS, or of CHOICES in a blind comparison; None: only notes
    caption: str | None = None  # the edited caption
    reasons: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    comment: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)  # by prompt, window or page
    judged_at: str | None = None  # ISO 8601, by the reviewer's clock
    digest: str | None = None  # of the row that was judged; None in files of the first version
    left: str | None = None  # digest of the row at the left, in a blind comparison


@dataclass(frozen=True, kw_only=True)
class VerdictFile:
    """The verdicts of one file."""

    path: Path
    reviewer: str  # "" if the reviewer gave no name
    is_blind: bool
    verdicts: tuple[Verdict, ...]


def read_verdict_files(paths: Sequence[Path], recipe_sha256: str) -> list[VerdictFile]:
    """Return the verdicts in files that the page saved.

    Raises:
        ValueError: a file was not saved by the page or belongs to another output, there are no
            verdicts, or reviews and blind comparisons are mixed; the message names file and row.
    """
    files = [_read(path, recipe_sha256) for path in paths]
    if not any(file.verdicts for file in files):
        raise ValueError(f"{', '.join(map(str, paths))}: no verdicts")
    for file in files[1:]:
        if file.is_blind != files[0].is_blind:
            kinds = ("a blind comparison", "a review") if file.is_blind else ("a review", "a blind")
            raise ValueError(f"{file.path} is of {kinds[0]} and {files[0].path} is of {kinds[1]}")
    return files


def _read(path: Path, recipe_sha256: str) -> VerdictFile:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    known = (VERDICT_FORMAT, _FIRST_FORMAT)
    if not isinstance(value, dict) or value.get("format") not in known:
        raise ValueError(f"{path} is not a file of verdicts that the review page saved")
    if value.get("recipe_sha256") != recipe_sha256:
        raise ValueError(
            f"{path} judges captions of another recipe, those of {value.get('output')!r}"
        )
    is_blind = value.get("mode") == "blind"
    lines = value.get("verdicts")
    return VerdictFile(
        path=path,
        reviewer=_text(value, "reviewer").strip(),
        is_blind=is_blind,
        verdicts=tuple(
            _verdict(line, path, CHOICES if is_blind else VERDICTS)
            for line in (lines if isinstance(lines, list) else ())
        ),
    )


def _verdict(line: Any, path: Path, kinds: Sequence[str]) -> Verdict:
    row_id = line.get("row_id") if isinstance(line, dict) else None
    if not isinstance(row_id, str):
        raise ValueError(f"{path}: a verdict names no row: {line!s:.100}")  # noqa: TRY004
    kind, caption = line.get("verdict"), line.get("caption")
    where = f"{path}: row {row_id!r}"
    parts = line.get("parts") or {}
    if kind not in (*kinds, None):
        raise ValueError(f"{where} has the verdict {kind!r}; it must be one of {', '.join(kinds)}")
    if kind == "edit" and not isinstance(caption, str):
        raise ValueError(f"{where} was edited and has no caption")
    if not isinstance(parts, dict) or any(each not in _PART_VERDICTS for each in parts.values()):
        allowed = ", ".join(_PART_VERDICTS)
        raise ValueError(f"{where} has verdicts on parts that are not {allowed}: {parts!s:.100}")
    return Verdict(
        row_id=row_id,
        kind=kind,
        caption=caption if kind == "edit" else None,
        reasons=_texts(line, "reasons"),
        tags=_texts(line, "tags"),
        comment=_text(line, "comment"),
        parts=parts,
        judged_at=_text(line, "judged_at") or None,
        digest=_text(line, "digest") or None,
        left=_text(line, "left") or None,
    )


def _text(line: Mapping[str, Any], name: str) -> str:
    value = line.get(name)
    return value if isinstance(value, str) else ""


def _texts(line: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = line.get(name)
    return tuple(map(str, value)) if isinstance(value, list) else ()
