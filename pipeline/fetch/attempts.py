"""Tries to get a whole object several times, within one deadline.

An object counts as got when its last byte is here. What ends an attempt before is temporary (a
time-out, a broken connection, a busy server, a body that breaks off) or would be the same in the
next attempt.
"""

import errno
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, InvalidURL
from typing import TypeVar
from urllib.error import URLError

from pipeline.media.limits import MediaError

Result = TypeVar("Result")

NUM_ATTEMPTS = 4
BACKOFF_S = 1.0  # before the second attempt; doubles with each further one
_MAX_WAIT_S = 30.0  # between two attempts
# Errors of this machine, with which every other row would fail too: its disk or memory is full, or
# too many files are open.
OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_TEMPORARY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
# The names that pyarrow gives such answers of object stores, which have no type of their own.
_TEMPORARY_TEXT = re.compile(
    "NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|"
    r"HTTP status (408|425|429|5\d\d)"
)
# Such as an object whose key may not be used: its facts can be read, and its bytes cannot.
_LASTING_TEXT = re.compile("ACCESS_DENIED|NO_SUCH|INVALID_|HTTP status 4(?!08|25|29)")
_LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ssl.SSLCertVerificationError,
    InvalidURL,
)


class StatusError(OSError):
    """A server answers with a status that is not 200, and so without the object."""

    def __init__(self, status: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s  # the wait that the server asks for


class BrokenOffError(OSError):
    """An object was there, and its bytes ended too soon."""


class Deadline:
    """When the time for one object ends; all attempts and the waits between them count."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s

    def left_s(self) -> float:
        """The seconds that are left; raises a TimeoutError once there are none."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"it takes longer than {self._limit_s:g} s")
        return left_s


def with_attempts(get: Callable[[], Result], deadline: Deadline) -> Result:
    """Return what `get` returns, which is called again after trouble that may pass.

    Each wait is twice as long as the one before, or as long as the server asks for.

    Raises:
        OSError, HTTPException: the last attempt failed, or the time is over.
    """
    for attempt in range(NUM_ATTEMPTS - 1):
        try:
            return get()
        except (OSError, HTTPException) as error:
            if not is_temporary(error):
                raise
            asked_s = error.retry_after_s if isinstance(error, StatusError) else 0.0
            wait_s = min(max(BACKOFF_S * 2**attempt, asked_s), _MAX_WAIT_S)
            time.sleep(min(wait_s, deadline.left_s()))
    return get()


def is_temporary(error: Exception) -> bool:
    """Whether another attempt could go well although nothing is changed."""
    if isinstance(error, StatusError):
        return error.status in _TEMPORARY_STATUSES
    if isinstance(error, URLError):
        return isinstance(error.reason, OSError) and is_temporary(error.reason)
    if isinstance(error, _LASTING):
        return False
    if isinstance(error, HTTPException | BrokenOffError | TimeoutError | ConnectionError):
        return True
    if not isinstance(error, OSError) or error.errno in OF_THE_MACHINE:
        return False
    # Errors of sockets have a number. Those of object stores have only a text.
    return error.errno is not None or _TEMPORARY_TEXT.search(str(error)) is not None


@contextmanager
def opening_errors() -> Iterator[None]:
    """Turn whatever a filesystem raises while an object is opened into an OSError."""
    try:
        yield
    except (MediaError, MemoryError, OSError, ValueError):
        raise
    # The URI of a prefix chooses among dozens of libraries, and each has errors of its own.
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@contextmanager
def reading_errors() -> Iterator[None]:
    """Turn what a filesystem raises while an object is read into a `BrokenOffError`.

    Errors that say by their type, number or text what is wrong stay as they are.
    """
    try:
        yield
    except (MediaError, MemoryError, *_LASTING):
        raise
    except OSError as error:
        if error.errno is not None or _LASTING_TEXT.search(str(error)):
            raise
        raise BrokenOffError(str(error)) from error
    except Exception as error:  # as above
        raise BrokenOffError(f"{type(error).__name__}: {error}") from error
