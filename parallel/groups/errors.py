"""What ends a group, and what ends the job.

GroupError        the job cannot go on; the message says what to do
NoRoomError     nothing was free for a group in time
DeadGroupError    this generation of one group is gone; its supervisor rebuilds it
"""

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from parallel.ranks.worker import DeadEngineError

# A process (also killed by Ray, which then says no RayActorError), its node, or an answer on it.
GONE = (RayActorError, OutOfMemoryError, NodeDiedError, ObjectLostError)


class GroupError(RuntimeError):
    """The machines, not a row, are the problem; the message says what to do."""


class NoRoomError(GroupError):
    """No node had room for a group in time."""


class DeadGroupError(RuntimeError):
    """This generation of the group is gone, and with it what it had not answered."""


def reason_of(error: BaseException) -> str:
    """What happened on the rank, without Ray's remote traceback around it."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        kind = "" if isinstance(cause, DeadEngineError) else f"{type(cause).__name__}: "
        return f"{kind}{cause}"
    return " ".join(str(error).split()).partition(" Some common causes")[0]
