"""What every node of a run needs at the same path, checked by the processes there."""

import socket
from pathlib import Path

from model.json_values import CheckpointError


def require_checkpoint(checkpoint: Path) -> None:
    """Refuse to begin on a node that lacks the checkpoint; the driver's has been checked.

    Raises:
        CheckpointError: there is no such directory here; the message names the node.
    """
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(
            f"there is no checkpoint at {checkpoint} on the node {socket.gethostname()}; every "
            "node needs it at this path, on a shared disk or as a copy: give that path to --model"
        )
