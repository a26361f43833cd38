"""Simulate a cluster of several nodes on one machine, which can lose nodes, for chaos runs.

It uses Ray's own test cluster: a Ray node is a set of processes, and losing it kills them all.
"""

import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Nodes:
    """The `num_nodes` nodes besides the head, which runs the driver and no task with a CPU."""

    def __init__(self, num_nodes: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = [self.cluster.add_node(num_cpus=1) for _ in range(num_nodes)]

    def lose_one(self, chance: random.Random) -> None:
        """Kill a random node as a power cut would, and add a new one in its place."""
        lost = self._take_one(chance)
        self.cluster.remove_node(lost, allow_graceful=False)
        self._nodes.append(self.cluster.add_node(num_cpus=1))

    def end_one(self, chance: random.Random, notice_s: int) -> None:
        """Announce the end of a random node, add a new one, and kill the node `notice_s` later.

        So a cloud takes a spot machine away.
        """
        leaving = self._take_one(chance)
        self._announce_end(leaving, notice_s)
        ends_s = time.monotonic() + notice_s
        self._nodes.append(self.cluster.add_node(num_cpus=1))
        time.sleep(max(0.0, ends_s - time.monotonic()))
        self.cluster.remove_node(leaving, allow_graceful=False)

    def _take_one(self, chance: random.Random) -> Any:
        return self._nodes.pop(chance.randrange(len(self._nodes)))

    def _announce_end(self, node: Any, notice_s: int) -> None:
        subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
                *("--address", str(self.cluster.address), "--node-id", node.node_id),
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
                *("--deadline-remaining-seconds", str(notice_s)),
            ],
            check=True,
        )


@contextmanager
def simulated_nodes(num_nodes: int) -> Iterator[Nodes | None]:
    """Run a cluster that the commands of this process use meanwhile; None for no nodes.

    It has a token and a directory of its own, so that no other job on this machine joins it.
    """
    if not num_nodes:
        yield None
        return
    before = dict(os.environ)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets need a short path
    os.environ |= {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token"}
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        nodes = Nodes(num_nodes)
        os.environ["RAY_ADDRESS"] = str(nodes.cluster.address)
        try:
            yield nodes
        finally:
            nodes.cluster.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
