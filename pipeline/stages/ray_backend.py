"""`RayBackend`: groups of ranks as Ray actors, stages as a stream of Ray Data.

Where rows are few, one worker has all stages (`few_rows`), and Ray Data is not even imported.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from parallel.groups.client import Groups
from pipeline.cluster.cpu import CpuAffinity
from pipeline.cluster.deployment import choose_deployment
from pipeline.cluster.groups import EngineFactory, start_groups
from pipeline.cluster.nodes import RankNodes
from pipeline.input.plan import RowGroupSplit
from pipeline.monitor.metrics import Metrics
from pipeline.monitor.object_store import ObjectStoreUse, object_store_use
from pipeline.monitor.poll import Reporter
from pipeline.output.in_flight import InFlightJournal
from pipeline.run_plan import RunPlan
from pipeline.stages.few_rows import is_few, run_few, start_worker
from pipeline.stages.generate import SharedGroups
from pipeline.stages.journal import Journal, RemoteJournal
from pipeline.stages.sizing import choose_sizing
from pipeline.stages.workers import CostedRows, StageSpec

_CLOSE_TIMEOUT_S = 30.0


class RayBackend:
    """Carries out a run on the Ray that this process is connected to.

    The constructor raises a `ValueError` if the cluster has no place for what was asked.
    """

    def __init__(self, plan: RunPlan, engine_factory: EngineFactory) -> None:
        resources = ray.cluster_resources()
        self._plan = plan
        self._engine_factory = engine_factory
        self._is_few = is_few(plan)
        self.deployment = choose_deployment(
            plan.config, _gpus_of_nodes(), plan.text.n_routed_experts
        ).explained(plan.config)
        self._nodes = RankNodes.of_cluster(self.deployment.device)
        self.sizing = choose_sizing(
            plan.config,
            self.deployment,
            num_rows=plan.rows.num_todo,
            num_cpus=resources.get("CPU", 1),
            store_bytes=int(resources.get("object_store_memory", 1 << 30)),
            num_nodes=len(self._nodes.ids),
        )
        self._worker: Any = None  # of all stages, where rows are few; it lives with the journal
        if self._is_few:
            self.sizing = replace(self.sizing, num_preparers=1, num_clients=1)
        self._stored_before = _object_store()

    def start_groups(self) -> Groups:
        """Start the groups on the cluster."""
        return start_groups(
            self._plan.config,
            self.deployment,
            self._plan.expert_load,
            self._engine_factory,
            self.sizing.admission,
            self.sizing.rows_in_flight,
        )

    @contextmanager
    def journal(self, before: Mapping[int, int]) -> Iterator[RemoteJournal]:
        """Run the journal as an actor on this node, so that it lives as long as the driver.

        The one worker of few rows starts here too, so that it imports while the groups load.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(InFlightJournal)  # Any: its methods get `.remote` at run time
        journal = actor.options(num_cpus=0, scheduling_strategy=here).remote(
            self._plan.store, before
        )
        remote = RemoteJournal(journal)
        if self._is_few:
            spec = StageSpec.of(self._plan, self.sizing, one_by_one=False)
            self._worker = start_worker(spec, remote)
        try:
            yield remote
        finally:
            if self._worker is not None:
                ray.kill(self._worker)
            with suppress(RayError):  # after this it writes no more; or it is dead
                ray.get(journal.close.remote(), timeout=_CLOSE_TIMEOUT_S)
            ray.kill(journal)

    def results(
        self,
        splits: Sequence[RowGroupSplit],
        groups: SharedGroups,
        journal: Journal,
        *,
        one_by_one: bool = False,
    ) -> Iterator[CostedRows]:
        """Run the stages, as a stream of Ray Data unless rows are few."""
        if self._worker is not None:
            return run_few(self._worker, splits, groups)
        # Imported here, since Ray Data takes a second to load.
        from pipeline.stages.ray_data import run_stages

        spec = StageSpec.of(self._plan, self.sizing, one_by_one=one_by_one)
        return run_stages(spec, splits, groups, self._nodes, journal)

    def reporters(self) -> list[Reporter]:
        """Prometheus; and on CPUs, what keeps processors free for the engines."""
        reporters: list[Reporter] = [Metrics(self._plan.store.uri)]
        if self.deployment.device == "cpu":
            reporters.append(CpuAffinity(self._plan.config.engine.num_threads))
        return reporters

    def spilled_bytes(self) -> int | None:
        """Return what the object stores have spilled meanwhile; None if they did not answer."""
        now = _object_store()
        if self._stored_before is None or now is None:
            return None
        return now.spilled_bytes - self._stored_before.spilled_bytes


def _object_store() -> ObjectStoreUse | None:
    return object_store_use(ray.get_runtime_context().gcs_address)


def _gpus_of_nodes() -> list[int]:
    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
