"""What ends a group, and what ends the job.

GroupError          the job cannot go on; the message says what to do
  NoRoomError       no node had room for a group in time
DeadGroupError      this generation of one group is gone; its supervisor rebuilds it
  MovedGroupError   it ended with its node, which had announced that; no request is to blame
"""

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from parallel.ranks.worker import DeadEngineError

# What Ray raises for a call of a process that is gone, of one that its memory monitor killed (this
# is no RayActorError), of one on a dead node, and for an answer that was stored on a dead node.
GONE = (RayActorError, OutOfMemoryError, NodeDiedError, ObjectLostError)


class GroupError(RuntimeError):
    """The cluster, not a row, is the problem; the message says what to do."""


class NoRoomError(GroupError):
    """No node had room for a group in time."""


class DeadGroupError(RuntimeError):
    """This generation of the group is gone, together with the requests that it had not answered."""


class MovedGroupError(DeadGroupError):
    """This generation ended before its node, which had announced its end."""


def reason_of(error: BaseException) -> str:
    """Say what happened on a rank, without Ray's remote traceback and advice around it."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        kind = "" if isinstance(cause, DeadEngineError) else f"{type(cause).__name__}: "
        return f"{kind}{cause}"
    return " ".join(str(error).split()).partition(" Some common causes")[0]
