"""Merge the verdicts of several reviewers into one for each row (`merge`).

The majority decides. Where no verdict has more voices than every other, the row is `unsure`, so
that somebody looks at it again. Reasons, tags and comments of all are kept.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.review_page.row_json import part_names, result_digest
from jobs.review_page.rows import Output
from jobs.review_page.sections import sections_of_rows
from jobs.review_verdicts.files import Verdict, VerdictFile

_ALL_PARTS = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The verdicts on all rows, and who gave which."""

    verdicts: Mapping[str, Verdict]  # by row id
    voices: Mapping[str, Mapping[str, Verdict]]  # by row id and reviewer

    def only(self, *kinds: str) -> "Merged":
        """Return the same with the rows of these verdicts alone."""
        chosen = {row_id: each for row_id, each in self.verdicts.items() if each.kind in kinds}
        return replace(self, verdicts=chosen)


def merge(files: Sequence[VerdictFile]) -> Merged:
    """Merge the verdicts in files; of several by one named reviewer on a row, the last one counts.

    Raises:
        ValueError: files without the reviewer's name disagree on a row; the message names it.
    """
    voices: dict[str, dict[str, Verdict]] = {}
    for file in files:
        for verdict in file.verdicts:
            said = voices.setdefault(verdict.row_id, {})
            before = said.get(file.reviewer)
            if before is None:
                said[file.reviewer] = verdict
            elif not file.reviewer:
                _check_same(before, verdict, file)
            elif (verdict.judged_at or "") >= (before.judged_at or ""):
                said[file.reviewer] = verdict
    return Merged(
        verdicts={row_id: _merged(said) for row_id, said in voices.items()}, voices=voices
    )


def check_rows(output: Output, merged: Merged) -> None:
    """Check that verdicts fit the rows of an output.

    Raises:
        ValueError: a row is missing, has another caption than the one judged, has an error and was
            accepted, or lacks a part; the message names the row and says what to do.
    """
    rows = {row["row_id"]: row for row in output.rows.to_pylist()}
    sections = sections_of_rows(output, _ALL_PARTS)
    if missing := [row_id for row_id in merged.voices if row_id not in rows]:
        raise ValueError(f"{output.path} has no row {missing[0]!r} ({len(missing)} such verdicts)")
    for row_id, said in merged.voices.items():
        row, names = rows[row_id], part_names(sections[row_id])
        for verdict in said.values():
            if verdict.digest not in (None, result_digest(row, output)):
                raise ValueError(
                    f"row {row_id!r} of {output.path} has another caption now than the one that "
                    "was judged; judge it again on a new page, or remove its verdict"
                )
            if verdict.kind == "accept" and row["status"] == "error":
                raise ValueError(
                    f"row {row_id!r} has an error ({row['error_code']}) and was accepted; "
                    "remove its verdict, or make it reject"
                )
            if unknown := verdict.parts.keys() - names:
                raise ValueError(f"row {row_id!r} has no part {min(unknown)!r}")


def _check_same(before: Verdict, verdict: Verdict, file: VerdictFile) -> None:
    if (before.kind, before.caption) != (verdict.kind, verdict.caption):
        raise ValueError(
            f"{file.path}: row {verdict.row_id!r} is {verdict.kind} here and {before.kind} before, "
            "and the files do not name their reviewers; agree on one and remove the other, or "
            'write a name after "reviewer" in each file'
        )


def _merged(said: Mapping[str, Verdict]) -> Verdict:
    """Return the verdict of the majority on one row, with the notes of all."""
    every = sorted(said.values(), key=lambda verdict: verdict.judged_at or "")
    last = every[-1]
    if len(every) == 1:
        return last
    kind = majority([verdict.kind for verdict in every if verdict.kind is not None])
    edits = [verdict.caption for verdict in every if verdict.kind == "edit"]
    names = {part for verdict in every for part in verdict.parts}
    parts = {
        name: majority([verdict.parts[name] for verdict in every if name in verdict.parts])
        for name in sorted(names)
    }
    return replace(
        last,
        kind=kind,
        caption=edits[-1] if kind == "edit" else None,
        reasons=tuple(dict.fromkeys(each for verdict in every for each in verdict.reasons)),
        tags=tuple(dict.fromkeys(each for verdict in every for each in verdict.tags)),
        comment="\n".join(
            f"{reviewer or 'unnamed'}: {verdict.comment}"
            for reviewer, verdict in said.items()
            if verdict.comment
        ),
        parts={name: each for name, each in parts.items() if each is not None},
    )


def majority(kinds: Sequence[str], undecided: str = "unsure") -> str | None:
    """Return the kind with most voices: `undecided` if others have as many, None of no kinds."""
    if not kinds:
        return None
    (first, most), *others = Counter(kinds).most_common()
    return undecided if others and others[0][1] == most else first
