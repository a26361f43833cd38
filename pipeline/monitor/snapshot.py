"""What is seen of a run while it goes: rows, rates, time left, and where the time of ranks goes.

The driver tells `RunMonitor` of finished rows and of the ranks; a `Snapshot` is what it knows at
one moment. The same goes to the terminal, the log, Prometheus and `_report.json`.

The time of a rank, since its engine was loaded, is four parts that make 1:

    data    it had no request of its own: what it shall answer was not prepared yet, or is all done
    writer  the same, while the driver wrote a part and took no results
    peers   its requests waited for other ranks of its group, before the layers of steps
    (rest)  it computed

`engine_time_used` is the share of that time that the engines' tokens needed at the pace of full
steps (`model.engine.utilization`): output tokens/s by those of the same engine at the same lengths
if every row were always prepared.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.schema import InputColumns

_RATE_OVER_S = 300.0  # rates are those of the last so many seconds


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Shares of a rank's time."""

    group: int
    rank: int
    data: float
    peers: float
    writer: float


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at one moment."""

    engine_time_used: float | None  # None: no rank has been seen yet
    rows_done: int  # of the output, those of earlier runs too
    rows_left: int
    rows_per_s: float
    video_seconds: float  # of the rows of this run
    video_seconds_left: float  # if the rows to come are like those of this run
    video_seconds_per_s: float
    generated_tokens: int
    tokens_per_s: float
    eta_s: float | None  # None: no row has come out yet
    statuses: Mapping[str, int]
    error_codes: Mapping[str, int]
    ranks: tuple[Waits, ...]
    idle_share: float | None = None  # of the ranks' time between their last two looks

    def as_json(self) -> dict[str, object]:
        """For `_report.json`: what is not in it otherwise, the engine's time first."""
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


@dataclass
class _Rank:
    """Seconds of one rank over all processes that have been it."""

    ready_s: float = 0.0
    data_s: float = 0.0
    peers_s: float = 0.0
    writer_s: float = 0.0
    needed_s: float | None = None  # where the engine tells
    idle_share: float = 1.0  # of the time between the last two looks
    latest: Mapping[str, float] | None = None  # of the process that is it now
    seen_at: float = 0.0  # by the clock of the monitor
    written_s: float = 0.0  # by the driver, up to then

    def look(self, stats: Mapping[str, float], now: float, written_s: float) -> None:
        """Add what happened since the last look."""
        before = self.latest
        if before is not None and stats["ready_s"] == before["ready_s"]:
            return  # the same look as before
        if before is None or stats["ready_s"] < before["ready_s"]:
            before = dict.fromkeys(stats, 0.0)  # a new process
        if self.latest is None:
            self.seen_at = now - stats["ready_s"]
        ready_s = stats["ready_s"] - before["ready_s"]
        idle_s = max(0.0, ready_s - (stats["stepping_s"] - before["stepping_s"]))
        share = (written_s - self.written_s) / max(now - self.seen_at, 1e-9)
        writer_s = idle_s * min(1.0, share)
        self.idle_share = idle_s / ready_s if ready_s else 1.0
        self.ready_s += ready_s
        self.data_s += idle_s - writer_s
        self.writer_s += writer_s
        self.peers_s += stats.get("own_wait_s", 0.0) - before.get("own_wait_s", 0.0)
        if "needed_s" in stats:
            self.needed_s = (self.needed_s or 0.0) + stats["needed_s"] - before["needed_s"]
        self.latest, self.seen_at, self.written_s = stats, now, written_s


class RunMonitor:
    """Adds up what is seen of a run.

    Args:
        num_rows: of the input.
        num_done: of these, before the run.
        columns: of the input; spans count in place of whole videos where they are carried.
        clock: seconds that only rise.
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
        self._lock = threading.Lock()  # rows come in one thread, looks are taken in another
        self._num_seen = self._num_tokens = 0
        self._video_s = 0.0
        self._statuses: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self._ranks: dict[tuple[int, int], _Rank] = {}
        self.rank_peak_bytes = 0  # the most memory that a rank has had resident, when looked at
        self._marks: deque[tuple[float, int, float, int]] = deque([(clock(), 0, 0.0, 0)])

    def add(self, rows: pa.Table) -> None:
        """Take note of finished rows, a table with the columns of the output."""
        num_tokens = sum(rows["num_generated_tokens"].drop_null().to_pylist())
        video_s = video_seconds(rows, self._columns)
        with self._lock:
            self._num_seen += rows.num_rows
            self._num_tokens += num_tokens
            self._video_s += video_s
            self._statuses.update(rows["status"].to_pylist())
            self._codes.update(rows["error_code"].drop_null().to_pylist())

    def note_ranks(
        self, ranks: Mapping[int, Sequence[Mapping[str, float]]], written_s: float
    ) -> None:
        """Take note of the numbers of all ranks, by group, and the seconds of writing so far."""
        with self._lock:
            for (group, _), gone in self._ranks.items():
                if group not in ranks:
                    gone.idle_share = 1.0
            for group, numbers in ranks.items():
                for rank, stats in enumerate(numbers):
                    peak_bytes = int(stats.get("peak_bytes", 0))
                    self.rank_peak_bytes = max(self.rank_peak_bytes, peak_bytes)
                    if "ready_s" in stats:
                        seen = self._ranks.setdefault((group, rank), _Rank())
                        seen.look(stats, self._clock(), written_s)

    def snapshot(self) -> Snapshot:
        """What is known now."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> Snapshot:
        rows_per_s, video_per_s, tokens_per_s = self._rates()
        left = self._num_rows - self._num_done - self._num_seen
        return Snapshot(
            engine_time_used=self._engine_time_used(),
            rows_done=self._num_done + self._num_seen,
            rows_left=left,
            rows_per_s=rows_per_s,
            video_seconds=self._video_s,
            video_seconds_left=left * self._video_s / max(1, self._num_seen),
            video_seconds_per_s=video_per_s,
            generated_tokens=self._num_tokens,
            tokens_per_s=tokens_per_s,
            eta_s=left / rows_per_s if rows_per_s else None,
            statuses=dict(self._statuses),
            error_codes=dict(self._codes),
            ranks=tuple(
                Waits(
                    group=group,
                    rank=number,
                    data=rank.data_s / rank.ready_s,
                    peers=rank.peers_s / rank.ready_s,
                    writer=rank.writer_s / rank.ready_s,
                )
                for (group, number), rank in sorted(self._ranks.items())
                if rank.ready_s
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
        """Rows, seconds of video and tokens a second, lately."""
        now = (self._clock(), self._num_seen, self._video_s, self._num_tokens)
        while len(self._marks) > 1 and now[0] - self._marks[1][0] >= _RATE_OVER_S:
            self._marks.popleft()
        first = self._marks[0]
        self._marks.append(now)
        seconds = max(now[0] - first[0], 1e-9)
        rows, video_s, tokens = (now[i] - first[i] for i in (1, 2, 3))
        return rows / seconds, video_s / seconds, tokens / seconds


def video_seconds(rows: pa.Table, columns: InputColumns) -> float:
    """Seconds of video in finished rows: of their spans where these are carried, else of the whole.

    Pictures and what could not be read have none.
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
