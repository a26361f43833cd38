"""A stream of a remote object -> a temporary file, which is in memory while it is small."""

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import BinaryIO, cast

from pipeline.fetch.attempts import BrokenOffError, Deadline

_SPOOL_BYTES = 64 << 20  # a larger object, or one of unknown size, is copied to disk
_CHUNK_BYTES = 4 << 20


def copy_stream(
    stream: BinaryIO,
    num_bytes: int | None,
    check_size: Callable[[int], object],
    deadline: Deadline,
) -> BinaryIO:
    """Copy a stream to a temporary file, which the caller closes.

    Args:
        stream: the object from its first byte on.
        num_bytes: its length, or None if that is not known.
        check_size: raises if an object may not have so many bytes.
        deadline: when the last byte must be here.

    Raises:
        OSError: it ends too soon, takes too long, or there is no room for it.
    """
    check_size(num_bytes or 0)
    is_small = num_bytes is not None and num_bytes <= _SPOOL_BYTES
    make_file = _in_memory if is_small else tempfile.TemporaryFile
    with ExitStack() as on_error:
        file = on_error.enter_context(make_file())
        while chunk := stream.read(_CHUNK_BYTES):
            file.write(chunk)
            check_size(file.tell())
            deadline.left_s()  # raises if the time is over
        if num_bytes is not None and file.tell() < num_bytes:
            raise BrokenOffError(f"it ends after {file.tell()} of {num_bytes} bytes")
        file.seek(0)
        on_error.pop_all()
    return cast(BinaryIO, file)


def _in_memory() -> BinaryIO:
    """Make a file in memory; it has a descriptor, which the decoding process needs."""
    return cast(BinaryIO, os.fdopen(os.memfd_create("media"), "w+b"))
