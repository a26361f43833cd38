"""Polls a run every second, in a thread beside the driver's loop, and tells the reporters.

This module does not need Ray: the driver passes callables that know how to ask its ranks.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from pipeline.monitor.snapshot import RankStats, RunMonitor, Snapshot

_POLL_EVERY_S = 1.0  # as often as the groups ask their ranks
_JOIN_TIMEOUT_S = 10.0  # a poll that waits for a dead node must not hold up the end of the run


class Reporter(Protocol):
    """What is told how a run goes, such as `progress.Bar` and `metrics.Metrics`."""

    def show(self, snapshot: Snapshot) -> None:
        """Show this moment."""
        ...

    def close(self, snapshot: Snapshot) -> None:
        """Show the last moment of the run."""
        ...


@contextmanager
def polling(
    monitor: RunMonitor,
    rank_stats: Callable[[bool], RankStats | None],
    waited_s: Callable[[], float],
    reporters: Sequence[Reporter],
    every_s: float = _POLL_EVERY_S,
) -> Iterator[None]:
    """Poll the ranks and show snapshots until the context ends; then show the last one.

    `rank_stats` returns the numbers of the ranks, or None if they cannot be had. True asks the
    ranks for new numbers; False takes those of their group's last question. `waited_s` returns
    the seconds for which the driver has waited for its writer so far.
    """
    ended = threading.Event()

    def poll_ranks(fresh: bool) -> None:
        stats = rank_stats(fresh)
        if stats is not None:
            monitor.note_ranks(stats, waited_s())

    def poll() -> None:
        while not ended.wait(every_s):
            poll_ranks(False)
            snapshot = monitor.snapshot()
            for reporter in reporters:
                reporter.show(snapshot)

    thread = threading.Thread(target=poll, name="poll", daemon=True)
    thread.start()
    try:
        yield
        poll_ranks(True)
    finally:
        ended.set()
        thread.join(_JOIN_TIMEOUT_S)
        snapshot = monitor.snapshot()
        for reporter in reporters:
            reporter.close(snapshot)
