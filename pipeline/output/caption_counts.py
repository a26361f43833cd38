"""`CaptionCounts`: which caption is the most frequent one, and how texts ended, in bounded memory.

A run that looks healthy may write one caption for thousands of rows: of black videos, of a wrong
column, of a model that answers "I cannot see a video". Counting tells.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import RESULT_FIELDS

CUT = ("length", "repetition")  # reasons that leave a text unfinished
_MAX_COUNTED = 10_000  # different captions; some megabytes
_EXCERPT = 80  # characters of a caption that are kept
# Columns with the details of several prompts. The input may have such a name too; its columns come
# before those of the results, these after them.
_DETAILS = ("answers", "timeline", "page_windows")


@dataclass(frozen=True, kw_only=True)
class CaptionSummary:
    """How alike some captions are, and how the texts that the model wrote ended."""

    num_captions: int = 0
    most_frequent: str | None = None  # its beginning; None if there are no captions
    num_most_frequent: int = 0  # rows with it, at least
    num_uncounted: int = 0  # it may have so many more; 0 if all captions were counted
    # Texts by what ended them; of several samples, the first one counts.
    finish_reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of the most frequent caption among all captions, at least."""
        return self.num_most_frequent / max(1, self.num_captions)

    def share_ended_by(self, reason: str) -> float:
        """The share of texts that ended by `stop`, `length` or `repetition`."""
        return self.finish_reasons.get(reason, 0) / max(1, self.num_texts)

    @property
    def num_texts(self) -> int:
        """The number of texts that the model wrote; a row of several prompts has several."""
        return sum(self.finish_reasons.values())

    def as_json(self) -> dict[str, object]:
        """Return the summary as it stands in `_report.json`."""
        shares = {f"share_{reason}": self.share_ended_by(reason) for reason in CUT}
        return {**asdict(self), "share_most_frequent": self.share, **shares}


class CaptionCounts:
    """Counts captions and the ends of texts.

    Captions are counted as Misra and Gries do ("Finding repeated elements", 1982), with pruning as
    in "Mergeable summaries" (Agarwal et al., 2012): beyond twice `max_counted` different captions,
    all counts are lowered by the largest number that leaves at most `max_counted` of them. So a
    count is too low by at most `num_uncounted`, which is at most a share of 1 / `max_counted` of
    all captions. Up to twice `max_counted` different captions, counts are exact.
    """

    def __init__(self, max_counted: int = _MAX_COUNTED) -> None:
        self._max_counted = max_counted
        self._num_captions = self._num_uncounted = 0
        self._counts: Counter[bytes] = Counter()  # by a hash of the caption
        self._excerpts: dict[bytes, str] = {}
        self._finish_reasons: Counter[str] = Counter()

    def add(self, rows: pa.Table) -> None:
        """Count finished rows, a table with the columns of the output; rows without a caption too.

        Only `caption` is compared, no column of a named prompt.
        """
        self.add_captions(rows["caption"].drop_null().to_pylist())
        self._finish_reasons.update(_finish_reasons(rows))

    def add_captions(self, captions: Iterable[str]) -> None:
        """Count captions; those that differ only in spaces around them are one."""
        for caption in captions:
            text = caption.strip()
            key = blake2b(text.encode(errors="replace"), digest_size=16).digest()
            self._num_captions += 1
            self._counts[key] += 1
            if self._counts[key] == 1:
                self._excerpts[key] = text[:_EXCERPT] + "..." * (len(text) > _EXCERPT)
                if len(self._counts) > 2 * self._max_counted:
                    self._prune()

    def _prune(self) -> None:
        """Lower all counts so that at most `max_counted` stay."""
        lowest = sorted(self._counts.values(), reverse=True)[self._max_counted]
        self._num_uncounted += lowest
        self._counts = Counter(
            {key: count - lowest for key, count in self._counts.items() if count > lowest}
        )
        self._excerpts = {key: self._excerpts[key] for key in self._counts}

    def summary(self) -> CaptionSummary:
        """Return what was counted so far; of equally frequent captions, the first."""
        (key, count), *_ = self._counts.most_common(1) or [(b"", 0)]
        return CaptionSummary(
            num_captions=self._num_captions,
            most_frequent=self._excerpts.get(key),
            num_most_frequent=count,
            num_uncounted=self._num_uncounted,
            finish_reasons=dict(self._finish_reasons),
        )


def _finish_reasons(rows: pa.Table) -> list[Any]:
    """Return what ended each text of some rows: one of each row, or one of each of its prompts."""
    columns = [rows["finish_reason"]]
    last = rows.column_names.index(RESULT_FIELDS[-1].name)
    for name in rows.column_names[last + 1 :]:
        if name in _DETAILS:
            details = pc.call_function("list_flatten", [rows[name]])
            fields = pc.StructFieldOptions("finish_reason")
            columns.append(pc.call_function("struct_field", [details], fields))
    return [reason for column in columns for reason in column.drop_null().to_pylist()]
