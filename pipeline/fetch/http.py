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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    HTTPSConnection,
)
from typing import IO, Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from pipeline.fetch.attempts import Deadline, StatusError
from pipeline.media.limits import MediaError
from pipeline.media.signatures import TEXT, describe
from pipeline.status import ErrorCode

_TIMEOUT_S = 60.0  # of each connection and each read
_HEAD_BYTES = 4096  # of what a server says beside a status that is not 200


@contextmanager
def download(uri: str, judge: Callable[[str], str], deadline: Deadline) -> Iterator[HTTPResponse]:
    """Open the response of a server as a stream, which is closed at the end of the `with`.

    The deadline holds until the last byte of the stream is read. `judge` returns the normal form of
    an allowed URL; it is asked about each redirect.

    Raises:
        MediaError: a redirect leads to a place that `judge` does not allow.
        OSError, HTTPException, ValueError: the attempt failed, or the time is over.
    """
    try:
        with closing(_open(uri, judge, deadline)) as response:
            yield response
    except (TimeoutError, URLError):
        deadline.left_s()  # if the deadline was the cause, its own error says so better
        raise


def _open(uri: str, judge: Callable[[str], str], deadline: Deadline) -> HTTPResponse:
    guard = _Guard(deadline)
    opener = build_opener(_GuardedHandler(guard), _Redirects(judge))
    request = Request(uri, headers={"User-Agent": "moonsweep"})
    try:
        response = opener.open(request, timeout=_TIMEOUT_S)
    except HTTPError as error:
        with closing(error):
            raise _status_error(error.code, error.reason, error) from error
    if response.status != HTTPStatus.OK:  # such as 204, or a part of the object with 206
        with closing(response):
            raise _status_error(response.status, response.reason, response)
    return response


def _status_error(status: int, reason: str, answer: HTTPError | HTTPResponse) -> StatusError:
    """Say what the server answers, and what it says beside that."""
    body = b""
    with suppress(OSError, HTTPException, ValueError):  # the status says enough without it
        body = answer.read(_HEAD_BYTES) if answer.fp else b""
    found = describe(body)
    more = f", with {found}" if found not in (None, TEXT) else ""
    asked = answer.headers.get("Retry-After", "")
    message = f"the server answers {status} {reason}"[:200] + more
    return StatusError(status, message, float(asked) if asked.isdecimal() else 0.0)


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

    def __init__(self, judge: Callable[[str], str]) -> None:
        self._judge = judge

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        fp.close()  # otherwise urllib reads the whole body of the redirect into memory
        allowed = self._judge(newurl)
        return super().redirect_request(req, fp, code, msg, headers, allowed)
