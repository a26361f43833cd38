"""`SandboxedDecoder`: decodes in a process of its own, which hostile media may kill without harm.

    this process                              the decoding process (sandbox_process.py)
    opens the media                           limits its own memory and CPU time
    a task, and a file descriptor    ---->    decodes and resizes
    frames, or an error              <----    JSON, then the pixels

The process is a fresh interpreter, never a fork, because forking a process with threads is not
safe. It gets one open file at a time, no file name, and almost nothing of the environment. It ends
when this process ends, however that happens. Its answers are parsed as data, never unpickled.
"""

import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from model.malloc import peak_bytes_of
from pipeline.media.display import FrameRequest
from pipeline.media.frames import Frames, MediaFacts
from pipeline.media.limits import DEFAULT_LIMITS, MediaError, MediaLimits, refuse
from pipeline.media.sandbox_process import LENGTH, NO_MEMORY
from pipeline.media.windows import Span, Window, Windows
from pipeline.status import ErrorCode

_ROOT = Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME")  # some interpreters do not start without them
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
_START_TIMEOUT_S = 120.0
# Starts in a row. A process that is killed before it decodes says nothing about a row or about the
# machine, so it is worth another try.
_MAX_STARTS = 3
_WAIT_S = 60.0  # for reading the file; added to the time that computing may take
_CPU_TO_WALL = 4  # on a busy machine, computing takes longer than its CPU time
_MAX_TEXT_BYTES = 16 << 20  # of an answer without its pixels


class SandboxedDecoder:
    """Decodes the media of one row after the other; if a row kills the process, that row fails.

    The process is replaced after `max_rows` rows, because decoders leak memory.
    """

    def __init__(self, limits: MediaLimits = DEFAULT_LIMITS, max_rows: int = 1000) -> None:
        self._limits = limits
        self._max_rows = max_rows
        self._process: _Process | None = None

    def decode(
        self,
        source: bytes | BinaryIO,
        requests: Sequence[FrameRequest],
        *,
        span_s: Span = (None, None),
    ) -> list[Frames]:
        """Decode the frames of each request in the whole span; see `decode_windows`."""
        windows = self.decode_windows(source, requests, span_s=span_s)
        return [frames for window in windows for frames in window.media]

    def decode_windows(
        self,
        source: bytes | BinaryIO,
        requests: Sequence[FrameRequest],
        *,
        windows: Windows | None = None,
        span_s: Span = (None, None),
    ) -> list[Window]:
        """Decode the frames of each request in each window, within limits on memory and time too.

        If the process dies, the row is tried once more in a fresh process. So is a row for which
        memory was short, unless the process was fresh already. Arguments and result are those of
        `pipeline.media.decode.decode_media`; a file needs a descriptor, and requests are pickled.

        Raises:
            MediaError: the media cannot be used, takes too long, or kills processes.
            RuntimeError: no decoding process can be started.
        """
        arguments = {
            "requests": list(requests),
            "windows": windows,
            "span_s": span_s,
            "limits": self._limits,
        }
        task = pickle.dumps(arguments)
        with _descriptor_of(source, self._limits) as descriptor:
            is_fresh = self._process is None
            try:
                return self._try(task, descriptor)
            except _DeathError as error:
                death = error
            if not (death.is_memory and is_fresh):
                try:
                    return self._try(task, descriptor)
                except _DeathError as error:
                    death = error
        if death.is_memory:
            max_bytes = self._limits.max_decode_bytes
            refuse("decoding needs more memory", max_bytes, "--max-decode-bytes")
        message = f"two decoding processes died with it; the second {death}"
        raise MediaError(ErrorCode.DECODER_DIED, message)

    @property
    def peak_bytes(self) -> int:
        """The most resident memory that the process has had so far; 0 if none is running."""
        return 0 if self._process is None else peak_bytes_of(self._process.pid)

    def close(self) -> None:
        """End the process; the next row starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _try(self, task: bytes, descriptor: int) -> list[Window]:
        """Give the process a task. The process is kept only if it answers."""
        process, self._process = self._process or _started(), None
        try:
            answer = process.decode(task, descriptor, self._limits)
        except BaseException:
            process.close()
            raise
        process.num_rows += 1
        if process.num_rows < self._max_rows:
            self._process = process
        else:
            process.close()
        if isinstance(answer, MediaError):
            raise answer
        return answer


class _DeathError(Exception):
    """The process has died or cannot be used any more; the text completes "the process ..."."""

    def __init__(self, why: str, *, is_memory: bool = False) -> None:
        super().__init__(why)
        self.is_memory = is_memory


def _started() -> "_Process":
    """Start a process and wait until it is ready."""
    try:
        for _ in range(_MAX_STARTS - 1):
            with suppress(_DeathError):
                return _Process()
        return _Process()
    except (TimeoutError, _DeathError) as error:
        raise RuntimeError(f"the decoding process does not start: it {error}") from error


class _Process:
    """One decoding process and the socket to it.

    Raises:
        _DeathError: it died before it was ready.
        TimeoutError: it was not ready in time.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self._socket, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
            kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
            module = "pipeline.media.sandbox_process"
            self._popen = subprocess.Popen(
                # -P keeps Python from importing modules out of the current directory.
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={"PYTHONPATH": path, **_ONE_THREAD, **kept},
            )
        self.pid = self._popen.pid
        self._finalizer = weakref.finalize(self, _end, self._popen, self._socket)
        try:
            self._receive_length(time.monotonic() + _START_TIMEOUT_S)
        except (TimeoutError, _DeathError):
            self.close()
            raise

    def decode(
        self, task: bytes, descriptor: int, limits: MediaLimits
    ) -> list[Window] | MediaError:
        """Let the process decode the media of one row, by pickled arguments of `decode_media`.

        Raises:
            MediaError: decoding took too long; the process cannot be used any more.
            _DeathError: the process died, or has no more memory.
        """
        limit_s = _CPU_TO_WALL * limits.max_decode_s + _WAIT_S
        deadline = time.monotonic() + limit_s
        try:
            socket.send_fds(self._socket, [LENGTH.pack(len(task))], [descriptor])
            self._socket.sendall(task)
            return self._receive_answer(deadline, limits)
        except TimeoutError:
            _refuse_time(f"has not ended after {limit_s:.0f} s", limits)
        except OSError as error:
            raise self._death() from error
        except _DeathError:
            if self._popen.returncode != -signal.SIGPROF:  # the signal of its own CPU timer
                raise
            _refuse_time("takes more CPU time", limits)

    def close(self) -> None:
        """Kill the process if it is still running, and wait for its end."""
        self._finalizer()

    def _receive_answer(self, deadline: float, limits: MediaLimits) -> list[Window] | MediaError:
        num_bytes = self._receive_length(deadline)
        if num_bytes > _MAX_TEXT_BYTES:
            raise _DeathError(f"answered with {num_bytes} bytes of text")
        text = self._receive(np.empty(num_bytes, np.uint8), deadline).tobytes()
        try:
            answer = json.loads(text)
            if "windows" not in answer:
                return _media_error(answer)
            shapes = [
                [int(side) for side in frames["shape"]]
                for window in answer["windows"]
                for frames in window["media"]
            ]
            num_bytes = sum(math.prod(shape) for shape in shapes)
            if any(min(shape) < 1 for shape in shapes) or num_bytes > limits.max_rgb_bytes:
                raise _DeathError(f"answered with frames of shapes {shapes[:8]}")
            return [self._window(each, deadline) for each in answer["windows"]]
        except (ValueError, TypeError, LookupError) as error:
            raise _DeathError(f"answered with nonsense: {error}") from error

    def _window(self, answer: Mapping[str, Any], deadline: float) -> Window:
        """Make one window of an answer, and receive its pixels, which come next on the socket."""
        media = tuple(
            Frames(
                rgb=self._receive(np.empty(frames["shape"], np.uint8), deadline),
                timestamps_s=np.array(frames["timestamps_s"], dtype=np.float64),
                facts=MediaFacts(**frames["facts"]),
            )
            for frames in answer["media"]
        )
        error = None if answer["error"] is None else _media_error(answer["error"])
        if not media and error is None:
            raise _DeathError("answered with an empty window")
        return Window(start=answer["start"], end=answer["end"], media=media, error=error)

    def _receive_length(self, deadline: float) -> int:
        header = self._receive(np.empty(LENGTH.size, np.uint8), deadline)
        return LENGTH.unpack(header.tobytes())[0]

    def _receive(self, array: NDArray[np.uint8], deadline: float) -> NDArray[np.uint8]:
        """Fill an array with bytes from the socket.

        Raises:
            TimeoutError: they did not come in time.
            _DeathError: the process closed the socket before.
        """
        rest = memoryview(array.reshape(-1).data)
        while rest:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                num_bytes = self._socket.recv_into(rest)
            except ConnectionError as error:
                raise self._death() from error
            if num_bytes == 0:
                raise self._death()
            rest = rest[num_bytes:]
        return array

    def _death(self) -> _DeathError:
        """The error that says how the process ended, once it has closed its end of the socket."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=5.0)
        code = self._popen.returncode
        if code is None:
            return _DeathError("hung up")
        if code < 0:
            return _DeathError(f"was ended by {signal.Signals(-code).name}")
        return _DeathError(f"ended with exit code {code}")


def _media_error(answer: Mapping[str, Any]) -> MediaError:
    if answer["code"] == NO_MEMORY:
        raise _DeathError("has no more memory", is_memory=True)
    return MediaError(ErrorCode(answer["code"]), str(answer["message"]))


def _refuse_time(what: str, limits: MediaLimits) -> NoReturn:
    limit = f"{limits.max_decode_s:g} s"
    refuse(f"decoding {what}", limit, "--max-decode-s", ErrorCode.DECODE_TIMEOUT)


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()


@contextmanager
def _descriptor_of(source: bytes | BinaryIO, limits: MediaLimits) -> Iterator[int]:
    """Give a descriptor of the media; bytes are first written to a file in memory."""
    if not isinstance(source, bytes):
        yield source.fileno()
        return
    limits.check_num_bytes(len(source))
    with os.fdopen(os.memfd_create("media"), "w+b") as file:
        file.write(source)
        file.flush()
        yield file.fileno()
