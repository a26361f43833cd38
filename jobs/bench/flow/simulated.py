"""What takes the place of models and media in `jobs.bench.flow.fleet`; all else there is real.

A simulated rank is an actor that answers health checks; one stands for the ranks of all groups.
Rows get no pixels and captions that nobody has generated, as long as real ones.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from ray.util.placement_group import PlacementGroup

from jobs.planning.group_layout import DAY_S, Planner, Rows
from jobs.planning.hardware import GPUS
from jobs.planning.network import Network
from jobs.planning.shapes import moonlight
from parallel.experts.load import ExpertLoad
from parallel.groups.group import EngineGroup
from parallel.groups.nodes import Node
from parallel.groups.spec import GroupSpec
from parallel.groups.supervisor import Supervisor
from parallel.ranks.worker import RankHealth
from pipeline.monitor.stage_costs import Cost, measured
from pipeline.stages.generate import SharedGroups
from pipeline.stages.journal import Journal
from pipeline.stages.workers import CostedRows, StageSpec

_LAYERS = 27
_PROMPT, _GENERATED = 2112, 200  # tokens of a row, as `jobs.plan` assumes
_WORDS = "a red cross moves left while two small blue circles turn on the dark wall".split()
_SPREAD = 0.25  # of the times of batches
GROUPS_PER_NODE = 8
_STATS = {"steps": 1, "stepping_s": 1.0, "own_wait_s": 0.0, "needed_s": 1.0, "peak_bytes": 1e9}


def rows_per_s_of_group() -> float:
    """Return the rows per second of an H100 by the cost model, with the defaults of `jobs.plan`."""
    rows = Rows(
        visual_tokens=2048, text_tokens=64, generated_tokens=_GENERATED, frame_tokens=256,
        step_tokens=8192, most_sequences=256, level=1.0, skew=1.0, num_copies=0,
    )  # fmt: skip
    planner = Planner(Network(moonlight(_LAYERS)), GPUS["h100"], rows, gpus_per_node=8)
    return planner.layout(num_groups=1, num_ranks=1).rows_per_day / DAY_S


class SimulatedRank:
    """Answers as a rank that does well; an actor."""

    async def health(self) -> RankHealth:
        """Return numbers as many as those of a rank."""
        return RankHealth(busy_s=0.0, stats={**_STATS, "ready_s": time.monotonic()})

    async def expert_load(self) -> ExpertLoad:
        """Return nothing."""
        return {}

    def cancel_client(self, client_id: str) -> None:
        """Do nothing."""


class SimulatedSupervisor(Supervisor):
    """The supervisor, with groups that start at once on a rank that exists."""

    def __init__(
        self, spec: GroupSpec, num_groups: int, rank: Any, reservation: PlacementGroup
    ) -> None:
        super().__init__(spec, num_groups, max_group_failures=4.0)
        self._rank, self._reservation = rank, reservation

    async def _start(self, slot: Any, dead: EngineGroup | None) -> EngineGroup:
        assert dead is None
        self._has_worked = True
        name = f"node {slot.group_id // GROUPS_PER_NODE}"
        nodes = (Node(name, name),)
        return EngineGroup(slot.group_id, 0, self._reservation, (self._rank,), nodes)


class SimulatedPrepare:
    """Takes the place of `PrepareWorker`: tells the journal, cuts batches, and opens no media."""

    def __init__(self, spec: StageSpec, journal: Journal) -> None:
        self._journal = journal
        self._batching = spec.sizing.batching
        self._media_column = spec.row_schema.columns.video

    def __call__(self, rows: pa.Table, costs: list[Cost]) -> Iterator[CostedRows]:
        """Yield the batches of some rows."""
        ids = rows["row_id"].combine_chunks()
        self._journal.start_preparing(ids)
        num_left = rows.num_rows
        for batch in self._batching.cut(rows, self._media_column):
            with measured("prepare") as cost:
                num_left -= batch.num_rows
            if not num_left:
                self._journal.end_preparing(ids)
            yield batch.select(["row_id"]), [*costs, cost]
            costs = []


class SimulatedGenerate:
    """Takes the place of `GenerateWorker`: tells the journal, leases a group, and waits."""

    def __init__(
        self, spec: StageSpec, groups: SharedGroups, journal: Journal, *, batch_s: float
    ) -> None:
        self._batch_s = batch_s  # that a batch is in flight, on average
        self._spec, self._groups, self._journal = spec, groups, journal
        self._random = random.Random(0)

    async def __call__(self, rows: pa.Table, costs: list[Cost]) -> CostedRows:
        """Answer a batch after the time that ranks would take."""
        ids = rows["row_id"].combine_chunks()
        num_tokens = rows.num_rows * (_PROMPT + _GENERATED)
        async with self._groups.turn(rows.num_rows, num_tokens) as groups:
            with measured("generate") as cost:
                async with self._journal.generating(ids), groups.lease(num_tokens):
                    await asyncio.sleep(self._batch_s * self._random.lognormvariate(0, _SPREAD))
                cost.num_rows = rows.num_rows
        return simulated_results(ids, self._spec.row_schema.output, self._random), [*costs, cost]


def simulated_results(ids: pa.Array, schema: pa.Schema, source: random.Random) -> pa.Table:
    """Make results with captions of about 200 words, which compress like text."""
    captions = [" ".join(source.choices(_WORDS, k=_GENERATED)) for _ in range(len(ids))]
    known = {"status": "ok", "finish_reason": "stop", "num_prompt_tokens": _PROMPT}
    known |= {"num_generated_tokens": _GENERATED, "mean_logprob": -0.5, "media_duration_s": 10.0}
    columns = {"row_id": ids, "caption": captions}
    return pa.table(
        [columns.get(field.name, [known.get(field.name)] * len(ids)) for field in schema],
        schema=schema,
    )
