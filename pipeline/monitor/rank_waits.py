"""Where the time of a rank goes.

The time of a rank, since its engine was loaded, has four parts that add up to 1:

    data    it had no request of its own: the next rows were not prepared yet, or all were done
    writer  the same, while the driver waited for its writer and took no results
    peers   its requests waited for other ranks of its group, before the layers of steps
    (rest)  it computed
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class RankWaits:
    """What a rank waited for, as shares of its time."""

    group: int
    rank: int
    data: float
    peers: float
    writer: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Seconds that the process of a rank has spent since its engine was loaded."""

    ready_s: float
    stepping_s: float = 0.0
    own_wait_s: float = 0.0  # for other ranks, with requests of its own
    needed_s: float | None = None  # at the pace of full steps; None if the engine does not tell

    @classmethod
    def of(cls, stats: Mapping[str, float]) -> "Reading":
        """Take the seconds from the numbers that a rank tells of itself."""
        return cls(**{each.name: stats[each.name] for each in fields(cls) if each.name in stats})


_NEW_PROCESS = Reading(ready_s=0.0)


@dataclass
class RankTime:
    """Seconds of one rank, added up over all processes that have been this rank."""

    ready_s: float = 0.0
    data_s: float = 0.0
    peers_s: float = 0.0
    writer_s: float = 0.0
    needed_s: float | None = None  # None: the engine does not tell
    idle_share: float = 1.0  # of the time between the last two readings
    latest: Reading | None = None
    read_at_s: float = 0.0  # when `latest` came, by the monitor's clock
    written_s: float = 0.0  # seconds that the driver had waited for its writer until then

    def add(self, reading: Reading, now_s: float, written_s: float) -> None:
        """Add what happened since the latest reading."""
        before = self.latest or _NEW_PROCESS
        if self.latest is None:
            self.read_at_s = now_s - reading.ready_s  # when its engine was loaded
        elif reading.ready_s == before.ready_s:
            return  # the group has not asked its ranks again
        elif reading.ready_s < before.ready_s:
            before = _NEW_PROCESS  # the rank was started again
        ready_s = reading.ready_s - before.ready_s
        idle_s = max(0.0, ready_s - (reading.stepping_s - before.stepping_s))
        self.idle_share = idle_s / ready_s if ready_s else 1.0
        # Idle time is the writer's as far as the driver waited for it.
        writing_share = (written_s - self.written_s) / max(now_s - self.read_at_s, 1e-9)
        writer_s = idle_s * min(1.0, writing_share)
        self.ready_s += ready_s
        self.data_s += idle_s - writer_s
        self.writer_s += writer_s
        self.peers_s += reading.own_wait_s - before.own_wait_s
        if reading.needed_s is not None:
            needed_s = reading.needed_s - (before.needed_s or 0.0)
            self.needed_s = (self.needed_s or 0.0) + needed_s
        self.latest, self.read_at_s, self.written_s = reading, now_s, written_s

    def waits(self, group: int, rank: int) -> RankWaits:
        """Return the shares of a rank that has been ready for some time."""
        data, peers, writer = (
            seconds / self.ready_s for seconds in (self.data_s, self.peers_s, self.writer_s)
        )
        return RankWaits(group=group, rank=rank, data=data, peers=peers, writer=writer)
