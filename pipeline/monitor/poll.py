"""Looks at a run every second, beside the driver's loop, and reporters what it sees."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from ray.exceptions import RayError

from parallel.groups.errors import GroupError
from parallel.groups.supervisor import GroupsStatus
from pipeline.monitor.snapshot import RunMonitor, Snapshot

_LOOK_S = 1.0  # as often as the groups look at their ranks
_JOIN_S = 10.0


class Groups(Protocol):
    """As `parallel.groups.client.Groups`."""

    def status(self, *, fresh: bool = False) -> GroupsStatus:
        """What runs; `fresh` asks the ranks."""
        ...


class Writer(Protocol):
    """As `pipeline.output.writer.PartWriter`."""

    @property
    def writing_s(self) -> float:
        """Seconds spent on parts so far."""
        ...


class Reporter(Protocol):
    """Who is to know how a run goes, such as `progress.Display` and `metrics.Metrics`."""

    def show(self, snapshot: Snapshot) -> None:
        """Show this moment."""
        ...

    def close(self, snapshot: Snapshot) -> None:
        """Show the last moment."""
        ...


@contextmanager
def polling(
    monitor: RunMonitor,
    groups: Groups,
    writer: Writer,
    reporters: Sequence[Reporter],
    every_s: float = _LOOK_S,
) -> Iterator[None]:
    """Look at the ranks, and show what is known, until the context ends; then once more."""
    ended = threading.Event()

    def look_at_ranks(*, fresh: bool) -> None:
        with suppress(GroupError, RayError):  # the driver's own loop meets it too
            monitor.note_ranks(groups.status(fresh=fresh).rank_stats, writer.writing_s)

    def look() -> None:
        while not ended.wait(every_s):
            look_at_ranks(fresh=False)
            snapshot = monitor.snapshot()
            for each in reporters:
                each.show(snapshot)

    thread = threading.Thread(target=look, name="monitor", daemon=True)
    thread.start()
    try:
        yield
        look_at_ranks(fresh=True)
    finally:
        ended.set()
        thread.join(_JOIN_S)
        snapshot = monitor.snapshot()
        for each in reporters:
            each.close(snapshot)
