"""The program of `test_nodes`: a group over two nodes of a simulated cluster loses one of them."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence

import ray
from ray.cluster_utils import Cluster

from parallel.groups.client import Groups
from parallel.groups.spec import GroupSpec
from parallel.ranks.rank_spec import RankSpec
from tests.conftest import ROOT
from tests.parallel.groups.test_group import SlowEngine, answer, num_placement_groups


class PlacedEngine(SlowEngine):
    """Says on which node it is."""

    def __init__(self, rank_spec: RankSpec | None) -> None:
        super().__init__()
        assert rank_spec is not None
        self.node = number(ray.get_runtime_context().get_node_id())

    def stats(self):
        return {"node": self.node}


def number(node_id: str) -> int:
    """Return a number for a node, small enough for any float."""
    return int(node_id[:12], 16)


def nodes_of(groups: Groups, lost: int | None = None) -> Sequence[int]:
    """Wait until no rank is on the lost node; return the nodes of the ranks."""
    while True:
        status = groups.status()
        if status.num_ready and status.rank_stats:
            nodes = [int(rank["node"]) for rank in status.rank_stats[0]]
            if lost not in nodes:
                return nodes
        time.sleep(0.1)


async def answer_and_lose(groups: Groups, cluster: Cluster, node) -> int:
    answers = [asyncio.ensure_future(answer(groups, 100)) for _ in range(12)]
    await asyncio.sleep(0.3)
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
    return len(await asyncio.gather(*answers))


def main() -> None:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}},
    )
    spec = GroupSpec(
        engine_factory=PlacedEngine,
        num_ranks=2,
        placement="SPREAD",
        heartbeat_s=0.3,
        heartbeat_timeout_s=5.0,
        resources_timeout_s=60.0,
    )
    groups = Groups.start(spec, num_groups=1, max_group_failures=20)
    before = nodes_of(groups)
    victim = next(node for node in nodes if number(node.node_id) == before[1])
    num_answers = asyncio.run(answer_and_lose(groups, cluster, victim))
    after = nodes_of(groups, number(victim.node_id))
    status = groups.status()
    groups.close()
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    story = {
        "before": before,
        "lost": number(victim.node_id),
        "after": after,
        "answers": num_answers,
        "failures": status.failures,
        "placement_groups": num_placement_groups(),
        "free_cpus": ray.available_resources().get("CPU"),
    }
    sys.stdout.write(f"{json.dumps(story)}\n")
    sys.stdout.flush()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    os.environ["RAY_AUTH_MODE"] = "disabled"
    main()
