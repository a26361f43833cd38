"""The reporter for Prometheus, through the exporter that is part of Ray.

Ray puts `ray_` before each name and `_total` after those of counters, and exports them at the
metrics port of each node. Prometheus computes rates itself: `rate(ray_moonsweep_rows_total[5m])`.
"""

from ray.util.metrics import Counter, Gauge

from pipeline.monitor.snapshot import Snapshot

COUNTERS = {
    "moonsweep_rows": "Finished rows, by status and error code.",
    "moonsweep_video_seconds": "Seconds of video in finished rows.",
    "moonsweep_generated_tokens": "Tokens generated for finished rows.",
}
GAUGES = {
    "moonsweep_engine_time_used": "Share of the engines' time that their tokens need at full pace.",
    "moonsweep_rows_left": "Rows that are not finished yet.",
    "moonsweep_video_seconds_left": "Seconds of video in rows left, if they are like those done.",
    "moonsweep_eta_seconds": "Seconds until the end, at the rate of the last 5 minutes.",
    "moonsweep_rank_wait_share": "Share of a rank's time that it waited, by reason.",
}
_TAGS = {
    "moonsweep_rows": ("status", "error_code"),
    "moonsweep_rank_wait_share": ("group", "rank", "reason"),
}


class Metrics:
    """The metrics of one run, each with the tag `output`."""

    def __init__(self, output: str) -> None:
        tags = {name: ("output", *_TAGS.get(name, ())) for name in (*COUNTERS, *GAUGES)}
        self._counters = {name: Counter(name, text, tags[name]) for name, text in COUNTERS.items()}
        self._gauges = {name: Gauge(name, text, tags[name]) for name, text in GAUGES.items()}
        for metric in (*self._counters.values(), *self._gauges.values()):
            metric.set_default_tags({"output": output})
        self._exported: dict[tuple[str, ...], float] = {}

    def show(self, snapshot: Snapshot) -> None:
        """Set all metrics to their values at this moment."""
        for status, count in snapshot.statuses.items():
            if status != "error":
                self._count("moonsweep_rows", count, status=status, error_code="")
        for code, count in snapshot.error_codes.items():
            self._count("moonsweep_rows", count, status="error", error_code=code)
        self._count("moonsweep_video_seconds", snapshot.video_seconds)
        self._count("moonsweep_generated_tokens", snapshot.generated_tokens)
        for name, value in (
            ("moonsweep_engine_time_used", snapshot.engine_time_used),
            ("moonsweep_rows_left", snapshot.rows_left),
            ("moonsweep_video_seconds_left", snapshot.video_seconds_left),
            ("moonsweep_eta_seconds", snapshot.eta_s),
        ):
            if value is not None:
                self._gauges[name].set(value, tags={})
        for rank in snapshot.ranks:
            who = {"group": str(rank.group), "rank": str(rank.rank)}
            for reason in ("data", "peers", "writer"):
                tags = {**who, "reason": reason}
                self._gauges["moonsweep_rank_wait_share"].set(getattr(rank, reason), tags=tags)

    def close(self, snapshot: Snapshot) -> None:
        """Set all metrics to their last values, which Ray exports until the driver ends."""
        self.show(snapshot)

    def _count(self, name: str, value: float, **tags: str) -> None:
        """Raise a counter to `value`; Ray's counters take increments."""
        key = (name, *tags.values())
        more = value - self._exported.get(key, 0.0)
        if more > 0:
            self._counters[name].inc(more, tags=tags)
            self._exported[key] = value
