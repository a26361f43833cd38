"""What is known of a run while it goes: rows, rates, time left, and where the time of ranks goes.

The driver tells a `RunMonitor` of finished rows and of the ranks. A `Snapshot` is what the monitor
knows at one moment; reporters show it on the terminal, in the log, in Prometheus and in
`_report.json`.

The time of a rank, since its engine was loaded, has four parts that add up to 1:

    data    it had no request of its own: the next rows were not prepared yet, or all were done
    writer  the same, while the driver wrote a part file and took no results
    peers   its requests waited for other ranks of its group, before the layers of steps
    (rest)  it computed

`engine_time_used` is the share of that time that the engines would have needed for their tokens at
the pace of full steps (`model.engine.utilization`). In other words: the output tokens/s, divided by
those that the same engine gives at the same lengths if every row is always prepared.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from pipeline.schema import InputColumns

_RATE_OVER_S = 300.0  # rates are means over the last so many seconds

# The numbers that each rank tells of itself, by group.
RankStats = Mapping[int, Sequence[Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class RankWaits:
    """What a rank waited for, as shares of its time."""

    group: int
    rank: int
    data: float
    peers: float
    writer: float


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
                {
                    "group": rank.group,
                    "rank": rank.rank,
                    "data": round(rank.data, 4),
                    "peers": round(rank.peers, 4),
                    "writer": round(rank.writer, 4),
                }
                for rank in self.ranks
            ],
        }


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """Seconds that the process of a rank has spent since its engine was loaded."""

    ready_s: float
    stepping_s: float = 0.0
    own_wait_s: float = 0.0  # for other ranks, with requests of its own
    needed_s: float | None = None  # at the pace of full steps; None if the engine does not tell

    @classmethod
    def of(cls, stats: Mapping[str, float]) -> "_Reading":
        return cls(
            ready_s=stats["ready_s"],
            stepping_s=stats["stepping_s"],
            own_wait_s=stats.get("own_wait_s", 0.0),
            needed_s=stats.get("needed_s"),
        )

    def since(self, before: "_Reading") -> "_Reading":
        """Return the seconds spent since an earlier reading of the same process."""
        needed_s = None if self.needed_s is None else self.needed_s - (before.needed_s or 0.0)
        return _Reading(
            ready_s=self.ready_s - before.ready_s,
            stepping_s=self.stepping_s - before.stepping_s,
            own_wait_s=self.own_wait_s - before.own_wait_s,
            needed_s=needed_s,
        )


_NEW_PROCESS = _Reading(ready_s=0.0)


@dataclass
class _Rank:
    """Seconds of one rank, added up over all processes that have been this rank."""

    ready_s: float = 0.0
    data_s: float = 0.0
    peers_s: float = 0.0
    writer_s: float = 0.0
    needed_s: float | None = None  # None: the engine does not tell
    idle_share: float = 1.0  # of the time between the last two readings
    latest: _Reading | None = None
    read_at_s: float = 0.0  # when `latest` came, by the monitor's clock
    written_s: float = 0.0  # seconds that the driver had spent on writing until then

    def add(self, reading: _Reading, now_s: float, written_s: float) -> None:
        """Add what happened since the latest reading."""
        before = self.latest or _NEW_PROCESS
        if self.latest is None:
            self.read_at_s = now_s - reading.ready_s
        elif reading.ready_s == before.ready_s:
            return  # the group has not asked its ranks again
        elif reading.ready_s < before.ready_s:
            before = _NEW_PROCESS
        writing_share = (written_s - self.written_s) / max(now_s - self.read_at_s, 1e-9)
        self._share_out(reading.since(before), min(1.0, writing_share))
        self.latest, self.read_at_s, self.written_s = reading, now_s, written_s

    def _share_out(self, spent: _Reading, writing_share: float) -> None:
        """Add the parts of some time; idle time is the writer's as far as the driver wrote."""
        idle_s = max(0.0, spent.ready_s - spent.stepping_s)
        writer_s = idle_s * writing_share
        self.idle_share = idle_s / spent.ready_s if spent.ready_s else 1.0
        self.ready_s += spent.ready_s
        self.data_s += idle_s - writer_s
        self.writer_s += writer_s
        self.peers_s += spent.own_wait_s
        if spent.needed_s is not None:
            self.needed_s = (self.needed_s or 0.0) + spent.needed_s

    def waits(self, group: int, rank: int) -> RankWaits:
        """Return the shares of a rank that has been ready for some time."""
        return RankWaits(
            group=group,
            rank=rank,
            data=self.data_s / self.ready_s,
            peers=self.peers_s / self.ready_s,
            writer=self.writer_s / self.ready_s,
        )


class _Totals(NamedTuple):
    """What a run had finished at one moment."""

    at_s: float
    num_rows: int = 0
    video_s: float = 0.0
    num_tokens: int = 0


class RunMonitor:
    """Adds up what the driver tells of a run.

    Its methods may be called from several threads: the driver adds rows, another thread polls.

    Args:
        num_rows: rows of the input.
        num_done: rows among these that were done before the run.
        columns: columns of the input; time spans count instead of whole videos if they are carried.
        clock: returns seconds that never go back.
    """

    def __init__(
        self,
        num_rows: int,
        num_done: int,
        columns: InputColumns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_rows = num_rows
        self._num_done = num_done
        self._columns = columns
        self._clock = clock
        self._lock = threading.Lock()
        self._finished = _Totals(clock())
        self._marks: deque[_Totals] = deque([self._finished])  # by which rates are reckoned
        self._statuses: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self._ranks: dict[tuple[int, int], _Rank] = {}
        self.rank_peak_bytes = 0  # the largest resident memory of any rank so far

    def add(self, rows: pa.Table) -> None:
        """Take note of finished rows, a table with the columns of the output."""
        num_tokens = sum(rows["num_generated_tokens"].drop_null().to_pylist())
        video_s = video_seconds(rows, self._columns)
        with self._lock:
            self._finished = _Totals(
                self._clock(),
                self._finished.num_rows + rows.num_rows,
                self._finished.video_s + video_s,
                self._finished.num_tokens + num_tokens,
            )
            self._statuses.update(rows["status"].to_pylist())
            self._codes.update(rows["error_code"].drop_null().to_pylist())

    def note_ranks(self, stats: RankStats, written_s: float) -> None:
        """Take note of what the ranks tell, and of the seconds spent on writing part files."""
        with self._lock:
            for (group, _), rank in self._ranks.items():
                if group not in stats:
                    rank.idle_share = 1.0  # its group has died
            for group, stats_of_ranks in stats.items():
                for rank, numbers in enumerate(stats_of_ranks):
                    peak_bytes = int(numbers.get("peak_bytes", 0))
                    self.rank_peak_bytes = max(self.rank_peak_bytes, peak_bytes)
                    if "ready_s" in numbers:  # its engine is loaded
                        known = self._ranks.setdefault((group, rank), _Rank())
                        known.add(_Reading.of(numbers), self._clock(), written_s)

    def snapshot(self) -> Snapshot:
        """Return what is known now."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> Snapshot:
        rows_per_s, video_per_s, tokens_per_s = self._rates()
        finished = self._finished
        num_left = self._num_rows - self._num_done - finished.num_rows
        return Snapshot(
            engine_time_used=self._engine_time_used(),
            rows_done=self._num_done + finished.num_rows,
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
            idle_share=self._idle_share(),
        )

    def _idle_share(self) -> float | None:
        shares = [rank.idle_share for rank in self._ranks.values()]
        return sum(shares) / len(shares) if shares else None

    def _engine_time_used(self) -> float | None:
        known = [rank for rank in self._ranks.values() if rank.needed_s is not None]
        ready_s = sum(rank.ready_s for rank in known)
        return sum(rank.needed_s or 0.0 for rank in known) / ready_s if ready_s else None

    def _rates(self) -> tuple[float, float, float]:
        """Return rows, seconds of video and tokens per second over the last minutes."""
        now = self._finished._replace(at_s=self._clock())
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
        rows[name].to_pylist() if name in rows.column_names else [None] * len(durations)
        for name in (columns.start_s, columns.end_s)
    )
    total = 0.0
    for duration, start, end in zip(durations, starts, ends, strict=True):
        if duration is not None:
            last = duration if end is None else min(end, duration)
            total += max(0.0, last - (start or 0.0))
    return total if math.isfinite(total) else 0.0
