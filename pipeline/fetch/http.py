"""One object over HTTP, from a host that the user allowed, whatever the row and the server say.

Every address that is requested, also after a redirect, must lie below an allowed prefix. A server
that everybody can reach must not redirect into a private network. The address of each connection is
checked after it is made, so that a host name cannot change its meaning between check and use.

No wait for a server is longer than the time that its object has left. A server that sends a byte
now and then, in the headers or in the body, is so dropped at the deadline.
"""

import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    HTTPSConnection,
    InvalidURL,
)
from typing import IO, Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from pipeline.media.limits import MediaError
from pipeline.status import ErrorCode

_NUM_ATTEMPTS = 4
_BACKOFF_S = 1.0  # before the second attempt; doubles with each further one
_TIMEOUT_S = 60.0  # of each connection and each read
_MAX_WAIT_S = 30.0  # between two attempts
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


class Deadline:
    """When the time for one object ends; all attempts and the waits between them count."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s

    def left_s(self) -> float:
        """The seconds that are left; raises an OSError once there are none."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise OSError(f"it takes longer than {self._limit_s:g} s")
        return left_s


@contextmanager
def download(
    uri: str, check: Callable[[str], object], deadline: Deadline
) -> Iterator[HTTPResponse]:
    """Open the response of a server as a stream, which is closed at the end of the `with`.

    Trouble that may pass (a time-out, a broken connection, a busy server) leads to another attempt.
    Each wait is twice as long as the one before, or as long as the server asks for. The deadline
    holds until the last byte of the stream is read.

    Raises:
        MediaError: a redirect leads to a place that `check` does not allow.
        OSError, HTTPException, ValueError: the last attempt failed, or the time is over.
    """
    try:
        with closing(_open_with_retries(uri, check, deadline)) as response:
            yield response
    except (TimeoutError, URLError):
        deadline.left_s()  # if the deadline was the cause, its own error says so better
        raise


def _open_with_retries(
    uri: str, check: Callable[[str], object], deadline: Deadline
) -> HTTPResponse:
    for attempt in range(_NUM_ATTEMPTS - 1):
        try:
            return _open(uri, check, deadline)
        except (OSError, HTTPException) as error:
            if (asked_s := _retry_after_s(error)) is None:
                raise
            wait_s = min(max(_BACKOFF_S * 2**attempt, asked_s), _MAX_WAIT_S)
            time.sleep(min(wait_s, deadline.left_s()))
    return _open(uri, check, deadline)


def _retry_after_s(error: OSError | HTTPException) -> float | None:
    """The wait that the server asks for, or 0; None if another attempt would fail the same way."""
    if isinstance(error, HTTPError):
        error.close()
        asked = error.headers.get("Retry-After", "")
        is_temporary = error.code in _TEMPORARY
        return (float(asked) if asked.isdecimal() else 0.0) if is_temporary else None
    reason = error.reason if isinstance(error, URLError) else error
    return None if isinstance(reason, ssl.SSLCertVerificationError | InvalidURL) else 0.0


def _open(uri: str, check: Callable[[str], object], deadline: Deadline) -> HTTPResponse:
    guard = _Guard(deadline)
    opener = build_opener(_GuardedHandler(guard), _Redirects(check))
    return opener.open(Request(uri, headers={"User-Agent": "moonsweep"}), timeout=_TIMEOUT_S)


class _Guard:
    """Watches the connections of one object: their time, and where they lead."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._may_be_private: bool | None = None  # None before the first connection

    def timeout_s(self) -> float:
        """How long to wait for the server now; raises an OSError once the time is over."""
        return min(_TIMEOUT_S, self._deadline.left_s())

    def check(self, connected: socket.socket) -> None:
        """Refuse and close a connection that leads from a public host into a private network."""
        host = str(connected.getpeername()[0])
        is_private = not ipaddress.ip_address(host.partition("%")[0]).is_global
        if self._may_be_private is None:  # the first host is the one that the user allowed
            self._may_be_private = is_private
        if is_private and not self._may_be_private:
            connected.close()
            raise MediaError(
                ErrorCode.URI_NOT_ALLOWED, f"a redirect leads to the private address {host}"
            )


class _GuardedHandler(HTTPSHandler, HTTPHandler):
    """Takes the place of both handlers of urllib, and connects under the eyes of a guard."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self._guard = guard

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_GuardedConnection, guard=self._guard), req)

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_GuardedTlsConnection, guard=self._guard), req)


class _GuardedConnection(HTTPConnection):
    """A connection that is checked by a guard once it is made, and keeps to the guard's time."""

    def __init__(self, host: str, *, guard: _Guard, **options: Any) -> None:
        super().__init__(host, **options)
        self._guard = guard
        # `http.client` only ever calls this attribute, with the socket to read a response from.
        self.response_class = cast(type[HTTPResponse], partial(_TimedResponse, guard=guard))

    def connect(self) -> None:
        self.timeout = self._guard.timeout_s()
        super().connect()
        self._guard.check(self.sock)
        self.sock.settimeout(self._guard.timeout_s())  # to send the request


class _GuardedTlsConnection(_GuardedConnection, HTTPSConnection):
    """The same over TLS; `connect` of the guarded connection calls that of `HTTPSConnection`."""


class _TimedResponse(HTTPResponse):
    """A response that is read within the guard's time, headers and body alike."""

    def __init__(self, sock: socket.socket, *args: Any, guard: _Guard, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, guard))


class _TimedReader(io.RawIOBase):
    """Reads from a socket, and waits for each piece no longer than the time that is left then."""

    def __init__(self, received: io.RawIOBase, sock: socket.socket, guard: _Guard) -> None:
        self._received = received
        self._sock = sock
        self._guard = guard

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._guard.timeout_s())
        return self._received.readinto(buffer)

    def close(self) -> None:
        self._received.close()
        super().close()


class _Redirects(HTTPRedirectHandler):
    """Follows a redirect only to an address that the row itself could have named."""

    def __init__(self, check: Callable[[str], object]) -> None:
        self._check = check

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        fp.close()  # otherwise urllib reads the whole body of the redirect into memory
        self._check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
