"""Measures the object stores of a Ray cluster.

No public function of Ray tells this; `ray memory` uses the same private ones.
"""

from dataclasses import dataclass

import grpc
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

_ANSWER_TIMEOUT_S = 10.0  # a node answers after it has asked all others


@dataclass(frozen=True)
class ObjectStoreUse:
    """What is in the object stores of a cluster, together."""

    used_bytes: int
    spilled_bytes: int  # to disk, since the cluster started


def object_store_use(gcs_address: str) -> ObjectStoreUse | None:
    """Ask for the use of the object stores of a cluster; None if no node answers."""
    state = get_state_from_address(gcs_address)
    for node in state.node_table():
        if not node["Alive"]:
            continue
        address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
        try:
            reply = get_memory_info_reply(state, address, port, timeout_seconds=_ANSWER_TIMEOUT_S)
        except grpc.RpcError:  # Ray lists a killed node as alive for some seconds
            continue
        stats = reply.store_stats
        return ObjectStoreUse(stats.object_store_bytes_used, stats.spilled_bytes_total)
    return None
