"""Checks, in a process on a node, that the node has what a run needs."""

import socket
from pathlib import Path

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
