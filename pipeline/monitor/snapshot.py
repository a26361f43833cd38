"""What is known of a run while it goes: rows, rates, time left, and where the time of ranks goes.

The driver tells a `RunMonitor` of finished rows and of the ranks. A `Snapshot` is what the monitor
knows at one moment; reporters show it on the terminal, in the log, in Prometheus and in
`_report.json`.

`engine_time_used` is the share of the ranks' time that the engines would have needed for their
tokens at the pace of full steps (`model.engine.utilization`). In other words: the output tokens/s,
divided by those that the same engine gives at the same lengths if every row is always prepared.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pyarrow as pa

from pipeline.column_types import seconds_of
from pipeline.monitor.rank_waits import RankTime, RankWaits, Reading
from pipeline.schema import InputColumns

_RATE_OVER_S = 300.0  # rates are means over the last so many seconds

# The numbers that each rank tells of itself, by group.
RankStats = Mapping[int, Sequence[Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at one moment."""

    engine_time_used: float | None  # None: no rank has told it yet
    rows_done: int  # of the output, with those of earlier runs
    rows_left: int
    rows_per_s: float
    video_seconds: float  # in the finished rows of this run
    video_seconds_left: float  # if the rows to come are like those of this run
    video_seconds_per_s: float
    generated_tokens: int
    tokens_per_s: float
    eta_s: float | None  # None: no row has been finished yet
    statuses: Mapping[str, int]
    error_codes: Mapping[str, int]
    ranks: tuple[RankWaits, ...]
    idle_share: float | None = None  # of the ranks' time between their last two readings

    def as_json(self) -> dict[str, object]:
        """Return what `_report.json` does not have from elsewhere, the engine's time first."""
        used = self.engine_time_used
        return {
            "engine_time_used": None if used is None else round(used, 4),
            "video_seconds": round(self.video_seconds, 3),
            "rank_waits": [
                {name: round(value, 4) for name, value in asdict(rank).items()}
                for rank in self.ranks
            ],
        }


class _Totals(NamedTuple):
    """What a run had finished at one moment."""

    at_s: float
    num_rows: int = 0
    video_s: float = 0.0
    num_tokens: int = 0


@dataclass
class RunMonitor:
    """Adds up what the driver tells of a run.

    Its methods may be called from several threads: the driver adds rows, another thread polls.
    """

    num_rows: int  # of the input
    num_done: int  # rows among these that were done before the run
    columns: InputColumns  # time spans count instead of whole videos if they are carried
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._finished = _Totals(self.clock())
        self._marks: deque[_Totals] = deque([self._finished])  # by which rates are reckoned
        self._statuses: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self._ranks: dict[tuple[int, int], RankTime] = {}
        self.rank_peak_bytes = 0  # the largest resident memory of any rank so far

    def add(self, rows: pa.Table) -> None:
        """Take note of finished rows, a table with the columns of the output."""
        num_tokens = sum(rows["num_generated_tokens"].drop_null().to_pylist())
        video_s = video_seconds(rows, self.columns)
        with self._lock:
            self._finished = _Totals(
                self.clock(),
                self._finished.num_rows + rows.num_rows,
                self._finished.video_s + video_s,
                self._finished.num_tokens + num_tokens,
            )
            self._statuses.update(rows["status"].to_pylist())
            self._codes.update(rows["error_code"].drop_null().to_pylist())

    def note_ranks(self, stats: RankStats, written_s: float) -> None:
        """Take note of what the ranks tell, and of the seconds that the driver waited to write."""
        with self._lock:
            for (group, _), rank in self._ranks.items():
                if group not in stats:
                    rank.idle_share = 1.0  # its group has died
            for group, stats_of_ranks in stats.items():
                for rank, numbers in enumerate(stats_of_ranks):
                    peak_bytes = int(numbers.get("peak_bytes", 0))
                    self.rank_peak_bytes = max(self.rank_peak_bytes, peak_bytes)
                    if "ready_s" in numbers:  # its engine is loaded
                        known = self._ranks.setdefault((group, rank), RankTime())
                        known.add(Reading.of(numbers), self.clock(), written_s)

    def snapshot(self) -> Snapshot:
        """Return what is known now."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> Snapshot:
        rows_per_s, video_per_s, tokens_per_s = self._rates()
        finished = self._finished
        num_left = self.num_rows - self.num_done - finished.num_rows
        idle_shares = [rank.idle_share for rank in self._ranks.values()]
        return Snapshot(
            engine_time_used=self._engine_time_used(),
            rows_done=self.num_done + finished.num_rows,
            rows_left=num_left,
            rows_per_s=rows_per_s,
            video_seconds=finished.video_s,
            video_seconds_left=num_left * finished.video_s / max(1, finished.num_rows),
            video_seconds_per_s=video_per_s,
            generated_tokens=finished.num_tokens,
            tokens_per_s=tokens_per_s,
            eta_s=num_left / rows_per_s if rows_per_s else None,
            statuses=dict(self._statuses),
            error_codes=dict(self._codes),
            ranks=tuple(
                rank.waits(*place) for place, rank in sorted(self._ranks.items()) if rank.ready_s
            ),
            idle_share=sum(idle_shares) / len(idle_shares) if idle_shares else None,
        )

    def _engine_time_used(self) -> float | None:
        known = [rank for rank in self._ranks.values() if rank.needed_s is not None]
        ready_s = sum(rank.ready_s for rank in known)
        return sum(rank.needed_s or 0.0 for rank in known) / ready_s if ready_s else None

    def _rates(self) -> tuple[float, float, float]:
        """Return rows, seconds of video and tokens per second over the last minutes."""
        now = self._finished._replace(at_s=self.clock())
        # Keep one mark that is at least so old, so that a slow run has rates too.
        while len(self._marks) > 1 and now.at_s - self._marks[1].at_s >= _RATE_OVER_S:
            self._marks.popleft()
        first = self._marks[0]
        self._marks.append(now)
        seconds = max(now.at_s - first.at_s, 1e-9)
        return (
            (now.num_rows - first.num_rows) / seconds,
            (now.video_s - first.video_s) / seconds,
            (now.num_tokens - first.num_tokens) / seconds,
        )


def video_seconds(rows: pa.Table, columns: InputColumns) -> float:
    """Add up the seconds of video in finished rows.

    Of a row with a time span only the span counts, if the columns of the span are carried. Images
    and media that could not be read have no seconds.
    """
    durations = rows["media_duration_s"].to_pylist()
    starts, ends = (
        [seconds_of(each) for each in rows[name]]
        if name in rows.column_names
        else [None] * len(durations)
        for name in (columns.start_s, columns.end_s)
    )
    total = 0.0
    for duration, start, end in zip(durations, starts, ends, strict=True):
        if duration is not None:
            last = duration if end is None else min(end, duration)
            total += max(0.0, last - (start or 0.0))
    return total if math.isfinite(total) else 0.0
