"""Reporters for people: a bar on a terminal, or a line every half minute in a job's log."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from pipeline.monitor.snapshot import RankWaits, Snapshot
from pipeline.status import TEMPORARY

_LINE_EVERY_S = 30.0


class Bar:
    """Shows a run on a terminal, in one line that is redrawn."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Redraw the line."""
        if self._bar is None:
            self._bar = tqdm(
                total=snapshot.rows_done + snapshot.rows_left,
                file=sys.stderr,
                dynamic_ncols=True,
                # tqdm puts ", " before the postfix.
                bar_format="{bar:12} {n_fmt}/{total_fmt} rows{postfix}",
            )
        self._bar.n = snapshot.rows_done
        self._bar.set_postfix_str(rest_text(snapshot), refresh=True)

    def close(self, snapshot: Snapshot) -> None:
        """Redraw the line a last time and leave it there."""
        self.show(snapshot)
        if self._bar is not None:
            self._bar.close()


class Lines:
    """Writes a line every half minute, for logs, where nothing can be redrawn."""

    def __init__(self) -> None:
        self._shown_at = time.monotonic()

    def show(self, snapshot: Snapshot) -> None:
        """Write a line if the last one is half a minute old."""
        if time.monotonic() - self._shown_at >= _LINE_EVERY_S:
            self._write(snapshot)

    def close(self, snapshot: Snapshot) -> None:
        """Write the last line."""
        self._write(snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        self._shown_at = time.monotonic()
        total = snapshot.rows_done + snapshot.rows_left
        line = f"{snapshot.rows_done}/{total} rows, {rest_text(snapshot)}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def open_display() -> Bar | Lines:
    """Choose the reporter that fits standard error."""
    return Bar() if sys.stderr.isatty() else Lines()


def rest_text(snapshot: Snapshot) -> str:
    """Say what a watcher looks for first: time left, errors, rates, and what ranks waited for."""
    return "; ".join(
        part
        for part in (
            ", ".join(filter(None, (_left_text(snapshot), _errors_text(snapshot.error_codes)))),
            _rates_text(snapshot),
            _engine_text(snapshot),
            _waits_text(snapshot.ranks) if snapshot.ranks else "",
        )
        if part
    )


def _left_text(snapshot: Snapshot) -> str:
    if not snapshot.rows_left:
        return ""
    if snapshot.eta_s is None:
        return "time left unknown" if snapshot.statuses else "no row yet"
    text = f"{duration_text(snapshot.eta_s)} left"
    if snapshot.video_seconds_left:
        text += f" for {duration_text(snapshot.video_seconds_left)} of video"
    return text


def _errors_text(error_codes: Mapping[str, int]) -> str:
    num = sum(error_codes.values())
    return f"{num} error{'s' * (num != 1)} ({counts_text(error_codes)})" if num else ""


def _rates_text(snapshot: Snapshot) -> str:
    rates = [f"{snapshot.rows_per_s:.3g} rows/s"]
    if snapshot.video_seconds:  # pictures and documents have none
        rates.append(f"{snapshot.video_seconds_per_s:.3g} s of video/s")
    return ", ".join([*rates, f"{snapshot.tokens_per_s:.4g} tokens/s"])


def _engine_text(snapshot: Snapshot) -> str:
    """Say how much of the engines' time is used, the number that a job is tuned by."""
    used = snapshot.engine_time_used
    return "" if used is None else f"engine busy {used:.0%}"


def _waits_text(ranks: Sequence[RankWaits]) -> str:
    """Say what ranks waited for on average and, if there are several, which one waited most."""
    shares = [
        f"{reason} {sum(getattr(rank, reason) for rank in ranks) / len(ranks):.0%}"
        for reason in ("data", "peers", "writer")
    ]
    text = f"waits: {', '.join(shares)}"
    if len(ranks) > 1:
        most = max(ranks, key=lambda rank: rank.data + rank.peers + rank.writer)
        share = most.data + most.peers + most.writer
        text += f", most {share:.0%} by group {most.group} rank {most.rank}"
    return text


def counts_text(counts: Mapping[str, int]) -> str:
    """List counts by name, such as `2 media_corrupt, 1 poison_row`."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def temporary_text(counts: Mapping[str, int]) -> str:
    """Say how many failed rows another run may answer; empty if there is none."""
    num = sum(counts.get(code, 0) for code in TEMPORARY)
    return f"; {num} may be answered when tried again: --retry-failed temporary" if num else ""


def duration_text(seconds: float) -> str:
    """Format a duration like `45 s`, `12 min`, `3 h 05 min` or `2 d 4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
