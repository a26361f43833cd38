"""One object over HTTP, from a host that the user allowed, whatever the row and the server say.

Every address that is asked, after a redirect too, must lie below an allowed prefix. A server that
can be reached by everybody may not redirect into a private network: the address of each connection
is looked at after it is made, so that a name cannot change its meaning in between.
"""

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

from pipeline.codes import ErrorCode
from pipeline.limits import MediaError

_TIMEOUT_S = 60.0  # of each connection and each read
_MAX_WAIT_S = 30.0  # between two attempts
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


@contextmanager
def download(
    uri: str, check: Callable[[str], object], *, num_attempts: int, backoff_s: float
) -> Iterator[HTTPResponse]:
    """The answer of a server, as a stream, for the time of a `with`.

    Trouble that may pass (a time-out, a broken connection, a busy server) is met by further
    attempts, each after twice the wait of the one before, or after what the server asks for.

    Args:
        uri: where.
        check: raises a `MediaError` for an address that is not allowed.
        num_attempts: at most.
        backoff_s: the first wait.

    Raises:
        MediaError: a redirect leads where it may not.
        OSError, HTTPException, ValueError: the last attempt failed.
    """
    for attempt in range(num_attempts - 1):
        try:
            response = _open(uri, check)
        except (OSError, HTTPException) as error:
            if (asked_s := _temporary(error)) is None:
                raise
            time.sleep(min(max(backoff_s * 2**attempt, asked_s), _MAX_WAIT_S))
        else:
            break
    else:
        response = _open(uri, check)
    with closing(response):
        yield response


def _temporary(error: OSError | HTTPException) -> float | None:
    """How long the server asks to wait, 0 if it does not say; None for what will not pass."""
    if isinstance(error, HTTPError):
        error.close()
        asked = error.headers.get("Retry-After", "")
        is_temporary = error.code in _TEMPORARY
        return (float(asked) if asked.isdecimal() else 0.0) if is_temporary else None
    reason = error.reason if isinstance(error, URLError) else error
    return None if isinstance(reason, ssl.SSLCertVerificationError | InvalidURL) else 0.0


def _open(uri: str, check: Callable[[str], object]) -> HTTPResponse:
    guard = _Guard()
    opener = build_opener(_Http(guard), _Https(guard), _Redirects(check))
    return opener.open(Request(uri, headers={"User-Agent": "moonsweep"}), timeout=_TIMEOUT_S)


class _Guard:
    """Keeps the connections for one object out of private networks, if the first one was."""

    def __init__(self) -> None:
        self._may_be_private: bool | None = None

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
    class Guarded(kind):
        def connect(self) -> None:
            super().connect()
            guard.check(self.sock)

    return Guarded


class _Redirects(HTTPRedirectHandler):
    """Follows a redirect only to where a row could have pointed itself."""

    def __init__(self, check: Callable[[str], object]) -> None:
        self._check = check

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        try:
            self._check(newurl)
        except MediaError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)
