"""What a run costs: seconds and bytes by stage, memory by kind of process, spilled objects.

Each stage measures itself where it runs; the numbers travel with the rows (`flow.seal`) and are
added up by the driver.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import BinaryIO

import grpc
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from model.malloc import own_peak_bytes

_ANSWER_S = 10.0  # for a node, which asks all others


@dataclass
class Cost:
    """What one stage did for some rows; filled in by `measured`."""

    stage: str
    seconds: float = 0.0
    num_rows: int = 0
    num_bytes: int = 0  # read
    peak_bytes: int = 0  # of the memory of its process so far
    decoder_peak_bytes: int = 0  # of that of its decoding process


@dataclass
class StageCost:
    """What one stage did in a run."""

    seconds: float = 0.0  # summed over the processes, so of a stage with many more than the run's
    row_seconds: float = 0.0  # the seconds of each row, which those of a batch share
    num_bytes: int = 0


@dataclass
class Costs:
    """What the stages of a run did."""

    stages: dict[str, StageCost] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)  # the largest process of each kind

    def add(self, costs: Sequence[Cost]) -> None:
        """Add what some rows cost."""
        for cost in costs:
            stage = self.stages.setdefault(cost.stage, StageCost())
            stage.seconds += cost.seconds
            stage.row_seconds += cost.seconds * cost.num_rows
            stage.num_bytes += cost.num_bytes
            self.note_peak(cost.stage, cost.peak_bytes)
            self.note_peak("decoder", cost.decoder_peak_bytes)

    def note_peak(self, kind: str, num_bytes: int) -> None:
        """Note how much memory a process of some kind has had."""
        if num_bytes:
            self.peak_bytes[kind] = max(num_bytes, self.peak_bytes.get(kind, 0))

    def as_json(self) -> dict[str, object]:
        """For `_report.json`."""
        return {
            "stages": {name: asdict(stage) for name, stage in sorted(self.stages.items())},
            "peak_bytes": dict(sorted(self.peak_bytes.items())),
        }


@contextmanager
def measured(stage: str) -> Iterator[Cost]:
    """Measure what a stage does in the `with`."""
    cost = Cost(stage)
    started_s = time.monotonic()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - started_s
        cost.peak_bytes = own_peak_bytes()


class Counted:
    """Opens media as the function that it wraps, and counts how large they are."""

    def __init__(self, open_media: Callable[[object], bytes | BinaryIO]) -> None:
        self._open = open_media
        self.num_bytes = 0

    def __call__(self, media: object) -> bytes | BinaryIO:
        """Open what a row holds."""
        opened = self._open(media)
        if isinstance(opened, bytes):
            self.num_bytes += len(opened)
        else:
            self.num_bytes += opened.seek(0, 2)
            opened.seek(0)
        return opened


@dataclass(frozen=True)
class ObjectStoreUse:
    """The object stores of a cluster."""

    used_bytes: int
    spilled_bytes: int  # to disk, since it started


def object_store_use(gcs_address: str) -> ObjectStoreUse | None:
    """Look at the object stores of a cluster; None if no node answers."""
    state = get_state_from_address(gcs_address)
    for node in state.node_table():
        if not node["Alive"]:
            continue
        address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
        try:
            reply = get_memory_info_reply(state, address, port, timeout_seconds=_ANSWER_S)
        except grpc.RpcError:  # a killed node is called alive for some seconds
            continue
        stats = reply.store_stats
        return ObjectStoreUse(stats.object_store_bytes_used, stats.spilled_bytes_total)
    return None
