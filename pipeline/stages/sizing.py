"""How many rows are where at a time: all numbers of rows in flight come from here.

    read --(read_rows)--> prepare --(max_queued_bytes)--> generate --(rows_in_flight)--> engines

Engines never wait for rows while there are some, nothing is spilled to disk, and a batch has few
rows where each costs much. The rows alone decide what a batch is (`batching.Batching`).
"""

import math
from dataclasses import dataclass, replace

from model.engine.fit.capacity import default_batch_size
from parallel.ranks.admission import AdmissionPolicy
from pipeline.cluster.deployment import Deployment
from pipeline.config import PipelineConfig
from pipeline.media.windows import PageWindows
from pipeline.stages.batching import Batching

_MAX_BATCH_ROWS = 8
_MAX_BATCHES = 64  # in flight
_MAX_BATCH_BYTES = 64 << 20  # of patches, so that a few batches fit into any object store
_PATCH_BYTES = 3 * 14 * 14
_WINDOWS_OF_A_ROW = 16  # a guess at what most rows have
_STORE_SHARE = 0.5  # of the object stores, for rows between the stages at most
_QUEUED_SHARE = 4  # of the rows that keep the engines busy
_READ_ROWS = 8  # given to a preparer together, where there are many
_BATCHES_AHEAD = 16
# A row costs a client 5 to 15 ms of a processor (docs/benchmarks-history.md), and more with more
# pixels; `jobs.plan` expects of an H100 some 12 rows a second.
_ENGINES_PER_CLIENT = 2
# On CPUs an engine that answers rows one by one takes them from what prepares the next.
_ADMISSION = AdmissionPolicy(min_batch=16, max_wait_s=1.0)


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How many rows the stages of a run have at a time."""

    batching: Batching  # of the stages after prepare
    read_rows: int  # that are read, and given to a preparer, together
    num_preparers: int  # at most
    num_clients: int  # of the ranks, which share these
    rows_in_flight: int  # at all engines together
    max_queued_bytes: int  # of rows between the stages
    batches_ahead: int  # that one worker may have made before anybody takes them
    admission: AdmissionPolicy  # of each rank

    @property
    def rows_per_client(self) -> int:
        """Rows that one client has at the engines."""
        return math.ceil(self.rows_in_flight / self.num_clients)

    @property
    def batches_per_client(self) -> int:
        """Batches that Ray Data gives one client at a time; its rows have room by their number."""
        return math.ceil(self.rows_per_client / self.batching.num_rows)


def choose_sizing(
    config: PipelineConfig,
    machines: Deployment,
    *,
    num_rows: int,
    num_cpus: float,
    store_bytes: int,
) -> Sizing:
    """Fit the rows in flight to a run with `num_rows` to do, and to its machines.

    `num_cpus` are those of the cluster, and `store_bytes` those of all its object stores.
    """
    num_engines = machines.num_groups * machines.num_ranks
    batching = choose_batching(config, num_engines, machines.device)
    wanted, of_a_row = _wanted_rows(config, num_engines, machines.device), row_bytes(config)
    max_queued_bytes = int(min(store_bytes * _STORE_SHARE, _QUEUED_SHARE * wanted * of_a_row))
    num_preparers = max(1, math.ceil(min(num_cpus, num_rows / batching.num_rows)))
    batch_bytes = batching.num_small_rows * of_a_row
    rows_in_flight = max(2 * batching.num_rows, min(wanted, max_queued_bytes // 2 // of_a_row))
    return Sizing(
        batching=batching,
        read_rows=max(batching.num_rows, min(_READ_ROWS, num_rows // (4 * num_preparers))),
        num_preparers=num_preparers,
        num_clients=math.ceil(num_engines / _ENGINES_PER_CLIENT),
        rows_in_flight=rows_in_flight,
        max_queued_bytes=max_queued_bytes,
        batches_ahead=max(
            2, min(_BATCHES_AHEAD, max_queued_bytes // (8 * num_preparers * batch_bytes))
        ),
        admission=_admission(config, machines, min(num_rows, rows_in_flight) // num_engines),
    )


def choose_batching(config: PipelineConfig, num_engines: int, device: str) -> Batching:
    """How many rows are prepared and answered together, for engines on this kind of device."""
    if config.rows_per_batch is not None:
        return Batching(num_rows=config.rows_per_batch, num_small_rows=config.rows_per_batch)
    most = max(1, min(_MAX_BATCH_ROWS, _MAX_BATCH_BYTES // row_bytes(config)))
    num_rows = min(most, math.ceil(_wanted_rows(config, num_engines, device) / _MAX_BATCHES))
    has_windows = config.instructions.windows is not None  # how many, the size does not tell
    return Batching(num_rows=num_rows, num_small_rows=num_rows if has_windows else most)


def row_bytes(config: PipelineConfig) -> int:
    """The most that the patches of one row can take, where the frames have a limit.

    With windows it is what most rows stay below: how many there will be is not known.
    """
    num_tokens = sum(view.most_tokens for view in config.instructions.views)
    if isinstance(config.instructions.windows, PageWindows):
        num_tokens = config.instructions.max_frame_tokens or 1024
    if config.instructions.windows is not None:
        num_tokens *= _WINDOWS_OF_A_ROW
    return num_tokens * 4 * _PATCH_BYTES


def _wanted_rows(config: PipelineConfig, num_engines: int, device: str) -> int:
    """Twice what the engines can run, so that they never wait for rows.

    The sizes of the cards are not known before the ranks run, so each may have the largest batch.
    """
    return 2 * _batch_size(config, device) * num_engines


def _batch_size(config: PipelineConfig, device: str) -> int:
    return config.engine.max_batch_size or default_batch_size(device)


def _admission(
    config: PipelineConfig, machines: Deployment, rows_per_engine: int
) -> AdmissionPolicy:
    """Half of what an engine can have at most, or requests would wait for what never comes."""
    if machines.device != "cpu":
        return AdmissionPolicy()
    given = rows_per_engine * config.sampling.n
    most = max(1, min(given, _batch_size(config, machines.device)) // 2)
    return replace(_ADMISSION, min_batch=min(_ADMISSION.min_batch, most))
