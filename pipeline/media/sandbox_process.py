"""The decoding process of `pipeline.media.sandbox`: takes tasks one by one, sends frames or errors.

    python -m pipeline.media.sandbox_process <descriptor of a socket>

The process sets its own limits. An exception that nobody expects becomes the error of the row, with
its name and place.
"""

import itertools
import json
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from model.inputs.prompt import PromptError
from model.malloc import give_back_freed_memory
from pipeline.media.decode import decode_media
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.windows import Window
from pipeline.status import ErrorCode

LENGTH = struct.Struct("<Q")  # of the message that follows, in bytes
_TRIM_ROWS = 16  # the process gives freed memory back to the system after this many rows
NO_MEMORY = "no_memory"  # in place of an error code


def main(descriptor: int) -> None:
    """Serve the owner at the other end of a socket until the owner closes it."""
    connection = socket.socket(fileno=descriptor)
    threading.Thread(target=_exit_with_owner, args=(descriptor,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal's processes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it never writes to a file
    with suppress(OSError):  # if memory runs out, the kernel kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    base_bytes = _address_space_bytes()
    connection.sendall(LENGTH.pack(0))  # tells the owner that this process is ready
    for number in itertools.count(1):
        received = _receive(connection)
        if received is None:
            return
        arguments, media = received
        with media:
            answer, pixels = _answer(arguments, media, base_bytes)
        text = json.dumps(answer).encode()
        connection.sendall(LENGTH.pack(len(text)) + text)
        for rgb in pixels:
            connection.sendall(rgb)
        if number % _TRIM_ROWS == 0:
            del pixels  # so that their memory is freed, too
            give_back_freed_memory()


def _answer(
    arguments: Mapping[str, Any], media: BinaryIO, base_bytes: int
) -> tuple[dict[str, Any], Sequence[memoryview]]:
    """Decode within the limits; return the answer for JSON, and the pixels that follow it."""
    limits: MediaLimits = arguments["limits"]
    most_bytes = base_bytes + limits.max_decode_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, resource.RLIM_INFINITY))
    # After this much CPU time SIGPROF kills the process, even inside of native code.
    signal.setitimer(signal.ITIMER_PROF, limits.max_decode_s)
    try:
        windows = decode_media(media, **arguments)
    except (MediaError, PromptError) as error:
        return _error(error), []
    except MemoryError:
        return {"code": NO_MEMORY}, []
    except Exception as error:  # noqa: BLE001 - nothing may leave this process without its name
        message = _unexpected(error)
        return _error(MediaError(ErrorCode.MEDIA_CORRUPT, message)), []
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
    pixels = [
        np.ascontiguousarray(frames.rgb).reshape(-1).data
        for window in windows
        for frames in window.media
    ]
    return {"windows": [_described(window) for window in windows]}, pixels


def _described(window: Window) -> dict[str, Any]:
    return {
        "start": window.start,
        "end": window.end,
        "error": None if window.error is None else _error(window.error),
        "media": [
            {
                "shape": frames.rgb.shape,
                "timestamps_s": frames.timestamps_s.tolist(),
                "facts": asdict(frames.facts),
            }
            for frames in window.media
        ],
    }


def _unexpected(error: Exception) -> str:
    """Say which exception came from where; this process cannot write it to a log."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"decoding failed with an error that is not expected: {name}: {error} ({where})"


def _error(error: MediaError | PromptError) -> dict[str, Any]:
    return {"code": str(error.code), "message": error.message}


def _receive(connection: socket.socket) -> tuple[Mapping[str, Any], BinaryIO] | None:
    """Receive the arguments of a task and its open media; None if there are no more tasks."""
    header, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, 1)
    if len(header) < LENGTH.size:
        return None
    (num_bytes,) = LENGTH.unpack(header)
    message = bytearray()
    while len(message) < num_bytes:
        message += connection.recv(num_bytes - len(message))
    media = os.fdopen(descriptors[0], "rb", buffering=0)
    return pickle.loads(message), cast(BinaryIO, media)


def _exit_with_owner(descriptor: int) -> None:
    """Wait until the owner closes its end, then exit at once, whatever is being decoded."""
    poll = select.poll()
    poll.register(descriptor, 0)  # no events are asked for: a hang-up is always reported
    poll.poll()
    os._exit(0)


def _address_space_bytes() -> int:
    """The address space of this process before it decodes anything, as RLIMIT_AS counts it."""
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return num_pages * resource.getpagesize()


if __name__ == "__main__":
    main(int(sys.argv[1]))
