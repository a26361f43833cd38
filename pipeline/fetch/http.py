"""One object over HTTP, from a host that the user allowed, whatever the row and the server say.

Every address that is asked, after a redirect too, must lie below an allowed prefix. A server that
can be reached by everybody may not redirect into a private network: the address of each connection
is looked at after it is made, so that a name cannot change its meaning in between.

No wait for a server is longer than the time that its object has left: a server that sends a byte
now and then, in the body or before it, is left at the deadline.
"""

import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    HTTPSConnection,
    InvalidURL,
)
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from pipeline.media.limits import MediaError
from pipeline.status import ErrorCode

_TIMEOUT_S = 60.0  # of each connection and each read
_MAX_WAIT_S = 30.0  # between two attempts
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


class Deadline:
    """The end of the time that one object may take, attempts and waits between them included."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s

    def left_s(self) -> float:
        """The time that is left.

        Raises:
            OSError: none is.
        """
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise OSError(f"it takes longer than {self._limit_s:g} s")
        return left_s


@contextmanager
def download(
    uri: str,
    check: Callable[[str], object],
    deadline: Deadline,
    *,
    num_attempts: int,
    backoff_s: float,
) -> Iterator[HTTPResponse]:
    """The answer of a server, as a stream, for the time of a `with`.

    Trouble that may pass (a time-out, a broken connection, a busy server) is met by further
    attempts, each after twice the wait of the one before, or after what the server asks for.

    Args:
        uri: where.
        check: raises a `MediaError` for an address that is not allowed.
        deadline: for all of it, up to the last byte that is read of the stream.
        num_attempts: at most.
        backoff_s: the first wait.

    Raises:
        MediaError: a redirect leads where it may not.
        OSError, HTTPException, ValueError: the last attempt failed, or the time is over.
    """
    try:
        with closing(_attempt(uri, check, deadline, num_attempts, backoff_s)) as response:
            yield response
    except (TimeoutError, URLError):
        deadline.left_s()  # says so if that was it
        raise


def _attempt(
    uri: str,
    check: Callable[[str], object],
    deadline: Deadline,
    num_attempts: int,
    backoff_s: float,
) -> HTTPResponse:
    for attempt in range(num_attempts - 1):
        try:
            return _open(uri, check, deadline)
        except (OSError, HTTPException) as error:
            if (asked_s := _temporary(error)) is None:
                raise
            wait_s = min(max(backoff_s * 2**attempt, asked_s), _MAX_WAIT_S)
            time.sleep(min(wait_s, deadline.left_s()))
    return _open(uri, check, deadline)


def _temporary(error: OSError | HTTPException) -> float | None:
    """How long the server asks to wait, 0 if it does not say; None for what will not pass."""
    if isinstance(error, HTTPError):
        error.close()
        asked = error.headers.get("Retry-After", "")
        is_temporary = error.code in _TEMPORARY
        return (float(asked) if asked.isdecimal() else 0.0) if is_temporary else None
    reason = error.reason if isinstance(error, URLError) else error
    return None if isinstance(reason, ssl.SSLCertVerificationError | InvalidURL) else 0.0


def _open(uri: str, check: Callable[[str], object], deadline: Deadline) -> HTTPResponse:
    guard = _Guard(deadline)
    opener = build_opener(_Http(guard), _Https(guard), _Redirects(check))
    return opener.open(Request(uri, headers={"User-Agent": "moonsweep"}), timeout=_TIMEOUT_S)


class _Guard:
    """Keeps an object's connections in its time, and out of private networks if the first was."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._may_be_private: bool | None = None

    def timeout_s(self) -> float:
        """How long to wait for the other side now."""
        return min(_TIMEOUT_S, self._deadline.left_s())

    def check(self, connected: socket.socket) -> None:
        """Look at the other side of a new connection."""
        host = str(connected.getpeername()[0])
        is_private = not ipaddress.ip_address(host.partition("%")[0]).is_global
        if self._may_be_private is None:  # the user named this host
            self._may_be_private = is_private
        if is_private and not self._may_be_private:
            connected.close()
            raise MediaError(
                ErrorCode.URI_NOT_ALLOWED, f"a redirect leads to the private address {host}"
            )


class _Http(HTTPHandler):
    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self._guard = guard

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_guarded(HTTPConnection, self._guard), req)


class _Https(HTTPSHandler):
    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self._guard = guard

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_guarded(HTTPSConnection, self._guard), req)


def _guarded(kind: type[HTTPConnection], guard: _Guard) -> Any:
    class Response(HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock, guard))

    class Guarded(kind):
        response_class = Response

        def connect(self) -> None:
            self.timeout = guard.timeout_s()
            super().connect()
            guard.check(self.sock)
            self.sock.settimeout(guard.timeout_s())  # to send the request

    return Guarded


class _Timed(io.RawIOBase):
    """What a socket receives, each piece within the time that is left then."""

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
    """Follows a redirect only to where a row could have pointed itself, and reads none of it."""

    def __init__(self, check: Callable[[str], object]) -> None:
        self._check = check

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        fp.close()  # else its body would be read into memory, whole
        self._check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
