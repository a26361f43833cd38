"""How many rows are where at a time: all numbers of rows in flight come from here.

    read --(read_rows)--> prepare --(max_queued_bytes)--> generate --(rows_in_flight)--> engines

Engines never wait for rows while there are some, nothing is spilled to disk, and a batch has few
rows where each costs much. The rows alone decide what a batch is (`batching.Batching`).

**Batches grow with the fleet.** A batch costs the driver, the journal and the supervisor several
milliseconds whatever is in it: 13 of Ray Data's loop alone with 8 rows in each. So a batch has the
most rows that all of these allow:

* 8, or 1/64 of the rows that the engines want, if that is at least 32 (as of 4 engines of 256);
* 1/8 of what one engine wants, so that no batch is a large part of what an engine has;
* 1/16 of what one engine gets of the rows to do, so that all engines end at the same time;
* as many as fit in 64 MiB of patches; in a fleet in 1/16 of an engine's part of the queue, if that
  is more, and in 512 MiB at most. Media in the table have a mebibyte a row at most on average, or
  together 8, or travel alone: that is what is read together (`read_bytes`).

So 1 engine of 256 has batches of 8, and 8, 64 and 512 have batches of 64 (never larger), if each
has 1,024 rows to do. Rows whose media lie elsewhere are in batches as large: that many are
prepared before the first of them reaches an engine.

A batch keeps its room until its slowest row is answered. So where batches are larger than 8, twice
as many rows are in flight: by simulation (`tests/pipeline/stages/test_sizing.py`), an engine whose
answers differ in length by half is 69 % full with 512 rows in batches of 64, and full with 1,024.

All of this is fixed before the run begins, so that a task that is tried again cuts the same.
"""

import math
from dataclasses import dataclass, replace

from model.engine.fit.capacity import default_batch_size
from parallel.ranks.admission import AdmissionPolicy
from pipeline.cluster.deployment import Deployment
from pipeline.config import PipelineConfig
from pipeline.input.reader import SLICE_BYTES
from pipeline.media.windows import PageWindows
from pipeline.stages.batching import Batching

_MAX_BATCH_ROWS = 8  # of a few engines
_MIN_FLEET_ROWS = 32  # that a batch of a fleet must be able to have
_MAX_FLEET_SHARE = 8  # of what an engine wants: one batch is an eighth at most
_BATCHES_PER_ENGINE = 16  # of the whole run at least
_MAX_BATCHES = 64  # in flight
_MAX_BATCH_BYTES = 64 << 20  # of patches, so that a few batches fit into any object store
_MAX_FLEET_BATCH_BYTES = 512 << 20  # likewise, where object stores are large
_PATCH_BYTES = 3 * 14 * 14
_WINDOWS_OF_A_ROW = 16  # a guess at what most rows have
_STORE_SHARE = 0.5  # of the object stores, for rows between the stages at most
_QUEUED_SHARE = 4  # of the rows that keep the engines busy
_READ_ROWS = 8  # given to a preparer together, where there are many
_READ_BYTES_PER_ROW = 1 << 20
_BATCHES_AHEAD = 16
# A row costs a client 5 to 15 ms of a processor (docs/benchmarks-history.md), and more with more
# pixels; `jobs.plan` expects of an H100 some 12 rows a second.
_ENGINES_PER_CLIENT = 2
# Where ranks lie on several nodes, a client may have so many times its part of the rows at the
# engines, since it also serves nodes that run dry,
_PARTS_OF_CLIENT = 4
# and as much again waits on its node. What waits before the clients goes to the next one that has
# room, on any node; with these the queue is full before any client is.
_CLIENT_QUEUE = 2
# On CPUs an engine that answers rows one by one takes them from what prepares the next.
_ADMISSION = AdmissionPolicy(min_batch=16, max_wait_s=1.0)


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How many rows the stages of a run have at a time."""

    batching: Batching  # of the stages after prepare
    read_rows: int  # that are read, and given to a preparer, together
    read_bytes: int  # of them
    num_preparers: int  # at most
    num_clients: int  # of the ranks, which share these; each node has some
    rows_in_flight: int  # at all engines together
    max_queued_bytes: int  # of rows between the stages
    batches_ahead: int  # that one worker may have made before anybody takes them
    admission: AdmissionPolicy  # of each rank
    num_nodes: int = 1  # on which ranks may lie

    @property
    def min_preparers(self) -> int:
        """Workers that prepare rows from the start: one a node, or nodes without one run dry."""
        return min(self.num_preparers, self.num_nodes)

    @property
    def batches_per_client(self) -> int:
        """Batches that one client works on at a time; the supervisor has room by their rows."""
        parts = min(self.num_clients, _PARTS_OF_CLIENT) if self.num_nodes > 1 else 1
        part = math.ceil(self.rows_in_flight / self.num_clients)
        return parts * math.ceil(part / self.batching.num_rows)

    @property
    def batches_given_to_client(self) -> int:
        """Batches that Ray Data gives one client at a time, with those that wait on its node."""
        return self.batches_per_client * (_CLIENT_QUEUE if self.num_nodes > 1 else 1)


def choose_sizing(
    config: PipelineConfig,
    deployment: Deployment,
    *,
    num_rows: int,
    num_cpus: float,
    store_bytes: int,
    num_nodes: int = 1,
) -> Sizing:
    """Fit the rows in flight to a run with `num_rows` to do, and to its deployment.

    `num_cpus` are those of the cluster, `store_bytes` those of all its object stores, and
    `num_nodes` the nodes on which ranks may lie.
    """
    num_engines = deployment.num_groups * deployment.num_ranks
    wanted, of_a_row = _wanted_rows(config, num_engines, deployment.device), row_bytes(config)
    max_queued_bytes = int(min(store_bytes * _STORE_SHARE, _QUEUED_SHARE * wanted * of_a_row))
    batching = choose_batching(
        config,
        num_engines,
        deployment.device,
        num_rows=num_rows,
        max_queued_bytes=max_queued_bytes,
    )
    num_preparers = max(1, math.ceil(min(num_cpus, num_rows / batching.num_rows)))
    batch_bytes = batching.num_small_rows * of_a_row
    if config.rows_per_batch is None and batching.num_rows > _MAX_BATCH_ROWS:
        wanted *= 2  # a large batch keeps its room long
    rows_in_flight = max(2 * batching.num_rows, min(wanted, max_queued_bytes // 2 // of_a_row))
    return Sizing(
        batching=batching,
        read_rows=max(batching.num_rows, min(_READ_ROWS, num_rows // (4 * num_preparers))),
        read_bytes=max(SLICE_BYTES, batching.num_rows * _READ_BYTES_PER_ROW),
        num_preparers=num_preparers,
        num_clients=max(math.ceil(num_engines / _ENGINES_PER_CLIENT), min(num_engines, num_nodes)),
        rows_in_flight=rows_in_flight,
        max_queued_bytes=max_queued_bytes,
        batches_ahead=max(
            2, min(_BATCHES_AHEAD, max_queued_bytes // (8 * num_preparers * batch_bytes))
        ),
        admission=_admission(config, deployment, min(num_rows, rows_in_flight) // num_engines),
        num_nodes=num_nodes,
    )


def choose_batching(
    config: PipelineConfig,
    num_engines: int,
    device: str,
    *,
    num_rows: int = 0,
    max_queued_bytes: int = 0,
) -> Batching:
    """How many rows are prepared and answered together, for engines on this kind of device.

    Batches grow with the fleet where `num_rows` are to do and the queue between the stages has room
    for `max_queued_bytes`; without these they are those of a few engines.
    """
    if config.rows_per_batch is not None:
        return Batching(num_rows=config.rows_per_batch, num_small_rows=config.rows_per_batch)
    wanted = _wanted_rows(config, num_engines, device)
    most_rows, most_bytes = _MAX_BATCH_ROWS, _MAX_BATCH_BYTES
    if wanted // _MAX_BATCHES >= _MIN_FLEET_ROWS:
        of_fleet = min(
            wanted // _MAX_BATCHES,
            wanted // num_engines // _MAX_FLEET_SHARE,
            num_rows // num_engines // _BATCHES_PER_ENGINE,
        )
        most_rows = max(most_rows, of_fleet)
    if most_rows > _MAX_BATCH_ROWS:
        of_queue = max_queued_bytes // num_engines // _BATCHES_PER_ENGINE
        most_bytes = max(most_bytes, min(_MAX_FLEET_BATCH_BYTES, of_queue))
    most = max(1, min(most_rows, most_bytes // row_bytes(config)))
    most_of_any = min(most, math.ceil(wanted / _MAX_BATCHES))
    has_windows = config.instructions.windows is not None  # how many, the size does not tell
    return Batching(num_rows=most_of_any, num_small_rows=most_of_any if has_windows else most)


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
    config: PipelineConfig, deployment: Deployment, rows_per_engine: int
) -> AdmissionPolicy:
    """Half of what an engine can have at most, or requests would wait for what never comes."""
    if deployment.device != "cpu":
        return AdmissionPolicy()
    given = rows_per_engine * config.sampling.n
    most = max(1, min(given, _batch_size(config, deployment.device)) // 2)
    return replace(_ADMISSION, min_batch=min(_ADMISSION.min_batch, most))
