"""The nodes of a cluster: where ranks may lie, and whether a node has what a run needs."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import ray

from model.json_values import CheckpointError


def require_checkpoint(checkpoint: Path) -> None:
    """Refuse to begin on a node that lacks the checkpoint; the driver has checked its own node.

    Raises:
        CheckpointError: this node has no such directory; the message names the node.
    """
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(
            f"there is no checkpoint at {checkpoint} on the node {socket.gethostname()}; every "
            "node needs it at this path, on a shared disk or as a copy: give that path to --model"
        )


@dataclass(frozen=True)
class RankNodes:
    """The nodes of the cluster on which ranks may lie, and the others."""

    ids: tuple[str, ...]
    others: tuple[str, ...]

    @classmethod
    def of_cluster(cls, device: str) -> Self:
        """Find the living nodes that have a GPU, or a CPU if ranks run on these."""
        wanted = "GPU" if device == "cuda" else "CPU"
        nodes = {
            node["NodeID"]: node["Resources"].get(wanted, 0) > 0
            for node in ray.nodes()
            if node["Alive"]
        }
        return cls(
            tuple(node_id for node_id, has_it in nodes.items() if has_it),
            tuple(node_id for node_id, has_it in nodes.items() if not has_it),
        )

    @property
    def selector(self) -> dict[str, str] | None:
        """Ray's label selector for them, and for nodes that come later; None: any node will do."""
        return {"ray.io/node-id": f"!in({','.join(self.others)})"} if self.others else None
