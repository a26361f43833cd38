"""Measures what a run costs: seconds and bytes by stage, peak memory by kind of process.

Each stage measures itself in the process where it runs. The numbers go to the driver together with
the rows, and the driver adds them up.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import BinaryIO

from model.malloc import own_peak_bytes


@dataclass
class Cost:
    """What one stage spent on some rows; `measured` fills it in."""

    stage: str
    seconds: float = 0.0
    num_rows: int = 0
    num_bytes: int = 0  # read
    peak_bytes: int = 0  # the most resident memory of its process so far
    decoder_peak_bytes: int = 0  # the same of its decoding process
    node: str = ""  # where; empty if nobody asks
    crossed_bytes: int = 0  # of prompts that came from another node, or went to one


@dataclass
class StageCost:
    """What one stage spent in a run."""

    seconds: float = 0.0  # summed over its processes, so it may exceed the run's
    row_seconds: float = 0.0  # summed over rows; each row of a batch has all of its seconds
    num_bytes: int = 0
    crossed_bytes: int = 0


@dataclass
class Costs:
    """What the stages of a run spent."""

    stages: dict[str, StageCost] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)  # of the largest process of each kind

    def add(self, costs: Sequence[Cost]) -> None:
        """Add what the stages spent on some rows."""
        for cost in costs:
            stage = self.stages.setdefault(cost.stage, StageCost())
            stage.seconds += cost.seconds
            stage.row_seconds += cost.seconds * cost.num_rows
            stage.num_bytes += cost.num_bytes
            stage.crossed_bytes += cost.crossed_bytes
            self.note_peak(cost.stage, cost.peak_bytes)
            self.note_peak("decoder", cost.decoder_peak_bytes)

    def note_peak(self, kind: str, num_bytes: int) -> None:
        """Keep the peak memory of a process if it is the largest of its kind."""
        if num_bytes:
            self.peak_bytes[kind] = max(num_bytes, self.peak_bytes.get(kind, 0))

    def as_json(self) -> dict[str, object]:
        """Return the costs as they stand in `_report.json`."""
        return {
            "stages": {name: asdict(stage) for name, stage in sorted(self.stages.items())},
            "peak_bytes": dict(sorted(self.peak_bytes.items())),
        }


@contextmanager
def measured(stage: str) -> Iterator[Cost]:
    """Measure what a stage spends in the `with`; the seconds are known after it."""
    cost = Cost(stage)
    started_s = time.monotonic()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - started_s
        cost.peak_bytes = own_peak_bytes()


class Counted:
    """Wraps a function that opens media, and adds up the sizes of what it opens."""

    def __init__(self, open_media: Callable[[object], bytes | BinaryIO]) -> None:
        self._open = open_media
        self.num_bytes = 0

    def __call__(self, media: object) -> bytes | BinaryIO:
        """Open the media of a row."""
        opened = self._open(media)
        if isinstance(opened, bytes):
            self.num_bytes += len(opened)
        else:
            self.num_bytes += opened.seek(0, 2)
            opened.seek(0)
        return opened
