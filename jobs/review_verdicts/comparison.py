"""Evaluate a blind comparison of two outputs: the win rate of the second (`compare`)."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.review_page.row_json import result_digest
from jobs.review_page.rows import Output
from jobs.review_verdicts.agreement import agreement
from jobs.review_verdicts.files import Verdict
from jobs.review_verdicts.merge import Merged, majority

_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Which of two outputs was better, row by row."""

    first: Output
    second: Output
    choices: dict[str, str]  # by row id: first, second, tie or neither; the majority's
    voices: dict[str, list[str]]  # of each reviewer

    def lines(self) -> Iterator[str]:
        """Yield what a reader wants to know."""
        counts = Counter(self.choices.values())
        wins, decided = counts["second"], counts["first"] + counts["second"]
        yield (
            f"{len(self.choices)} rows compared: {self.second.path} is better in {wins}, "
            f"{self.first.path} in {counts['first']}, {counts['tie']} ties, "
            f"{counts['neither']} with neither good"
        )
        if decided:
            low, high = win_interval(wins, decided)
            yield (
                f"win rate of {self.second.path}: {wins / decided:.2f} of {decided} decided rows, "
                f"95 % interval {low:.2f} to {high:.2f}"
            )
        found = agreement(list(self.voices.values()))
        if found is not None:
            yield str(found)

    def write(self, directory: Path) -> Path:
        """Write the choice on each row as `comparison.parquet`, and return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        table = pa.table(
            {
                "row_id": pa.array(self.choices, pa.string()),
                "better": pa.array(self.choices.values(), pa.string()),
                "voices": pa.array(self.voices.values(), pa.list_(pa.string())),
            }
        )
        path = directory / "comparison.parquet"
        pq.write_table(table, path)
        return path


def compare(first: Output, second: Output, merged: Merged) -> Comparison:
    """Find out whose captions were chosen.

    Raises:
        ValueError: an output lacks a row, or has another caption than the one that was compared.
    """
    digests = [
        {row["row_id"]: result_digest(row, output) for row in output.rows.to_pylist()}
        for output in (first, second)
    ]
    voices: dict[str, list[str]] = {}
    for row_id, said in merged.voices.items():
        pair = [each.get(row_id) for each in digests]
        voices[row_id] = [
            _chosen(verdict, pair) for verdict in said.values() if verdict.kind is not None
        ]
    voices = {row_id: said for row_id, said in voices.items() if said}
    choices = {row_id: majority(said, "tie") or "tie" for row_id, said in voices.items()}
    return Comparison(first=first, second=second, choices=choices, voices=voices)


def win_interval(wins: int, number: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate: Wilson (1927), which holds for few rows too."""
    rate, z2 = wins / number, _Z * _Z / number
    centre = (rate + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(rate * (1 - rate) / number + z2 / (4 * number)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _chosen(verdict: Verdict, pair: list[str | None]) -> str:
    """Return first, second, tie or neither; `pair` are the digests of the two rows."""
    if verdict.left is None or verdict.left not in pair:
        raise ValueError(
            f"row {verdict.row_id!r} does not have the captions that were compared: name the same "
            "two outputs, the second one with --against, or compare the row again on a new page"
        )
    if verdict.kind in ("left", "right"):
        is_first = (verdict.left == pair[0]) == (verdict.kind == "left")
        return "first" if is_first else "second"
    return str(verdict.kind)
