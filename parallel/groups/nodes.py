"""Nodes of the cluster: which live, which end soon, and on which the ranks of a group lie."""

import math
import time
from dataclasses import dataclass

import ray
from ray._private.state import state as cluster_state
from ray.util.placement_group import PlacementGroup, placement_group_table


@dataclass(frozen=True)
class Node:
    """The node of a rank."""

    node_id: str
    name: str  # host name and address, for messages


def living_nodes() -> set[str]:
    """Return the ids of the nodes that the cluster has now."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def ending_nodes() -> dict[str, float]:
    """Return the seconds left of each living node whose end is announced; infinite if not told.

    Spot machines are announced by whoever watches them (KubeRay, the autoscaler, `ray drain-node`).
    Ray starts nothing more on such a node.
    """
    # Ray has no public way to ask this. Ray Train and Ray Data ask in the same way.
    deadlines_ms = cluster_state.get_draining_nodes()
    now_ms = time.time() * 1000
    return {
        node_id: max(0.0, (deadline_ms - now_ms) / 1000) if deadline_ms else math.inf
        for node_id, deadline_ms in deadlines_ms.items()
    }


def has_lost_a_node(reservation: PlacementGroup) -> bool:
    """Say whether a bundle is on no living node; then the caller must reserve anew.

    Ray would wait forever for another node that can take the bundle.
    """
    return _has_bundle_beyond(living_nodes(), reservation)


def must_move(reservation: PlacementGroup) -> bool:
    """Say whether a bundle is on a node that is gone or ends soon, where nothing more starts."""
    return _has_bundle_beyond(living_nodes() - ending_nodes().keys(), reservation)


def nodes_of(reservation: PlacementGroup) -> tuple[Node, ...]:
    """Return the node of each bundle of a granted reservation."""
    names = {
        node["NodeID"]: f"{node['NodeManagerHostname']}, {node['NodeManagerAddress']}"
        for node in ray.nodes()
    }
    places = placement_group_table(reservation)["bundles_to_node_id"]
    return tuple(
        Node(node_id, names.get(node_id, "a node that is gone"))
        for _, node_id in sorted(places.items())
    )


def _has_bundle_beyond(nodes: set[str], reservation: PlacementGroup) -> bool:
    table = placement_group_table(reservation)
    places = table["bundles_to_node_id"].values()
    return table["state"] == "REMOVED" or any(node not in nodes for node in places)
