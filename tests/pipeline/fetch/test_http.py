"""Objects over HTTP: what servers do wrong, and which addresses of a row reach which server."""

import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer
from unicodedata import normalize
from urllib.parse import quote, unquote

import pytest

from pipeline.fetch.media_access import MediaAccess
from pipeline.schema import ErrorCode
from tests.pipeline.fetch.test_fetch import CLIP, read, refusal

ODD_NAME = "Z\u00fcrich \u00e9 100%.mp4"
BREAKS = ("/in/length", "/in/chunked", "/in/reset")
XML = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Expired</Message></Error>"
ANSWERS = {  # a status that is not 200, and the body
    "/in/none": (204, b""),
    "/in/part": (206, CLIP[:5]),
    "/in/denied": (403, XML),
    "/in/login": (401, b"<!DOCTYPE html><title>Log in</title>"),
    "/in/busy-page": (503, b"<html>"),
}


class Server(BaseHTTPRequestHandler):
    """`/in/clip.mp4` is a clip; other paths misbehave."""

    def do_GET(self):
        paths: list[str] = self.server.paths  # pyright: ignore[reportAttributeAccessIssue]
        paths.append(self.path)
        port = self.server.server_port  # pyright: ignore[reportAttributeAccessIssue]
        redirects = {
            "/in/moved": f"http://127.0.0.1:{port}/in/clip.mp4",
            "/in/chatty": f"http://127.0.0.1:{port}/in/clip.mp4",
            "/in/escape": f"http://127.0.0.1:{port}/secret.mp4",
            "/in/other-host": f"http://localhost:{port}/in/clip.mp4",
            "/in/file": "file:///etc/passwd",
            "/in/round": f"http://127.0.0.1:{port}/in/round",
        }
        if self.path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.end_headers()
            if self.path == "/in/chatty":
                self.talk(pause_s=0.01)
        elif self.path in ("/in/clip.mp4", "/in/clip.mp4?signed=1"):
            self.answer(CLIP, len(CLIP))
        elif self.path == "/in/busy" and paths.count(self.path) < 3:
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.end_headers()
        elif self.path == "/in/later":
            self.send_response(503)
            self.send_header("Retry-After", "20")
            self.end_headers()
        elif self.path == "/in/broken" and paths.count(self.path) < 3:
            self.close_connection = True  # without an answer
        elif self.path in ("/in/busy", "/in/broken"):
            self.answer(CLIP, len(CLIP))
        elif self.path == "/in/short":
            self.answer(CLIP, len(CLIP) + 10)
        elif self.path in BREAKS:
            self.break_off(CLIP, paths.count(self.path))
        elif unquote(self.path) == f"/in/{ODD_NAME}":
            self.answer(CLIP, len(CLIP))
        elif self.path == "/in/moved-to-odd":
            self.send_response(302)
            self.send_header("Location", f"/in/{ODD_NAME}".encode().decode("latin-1"))
            self.end_headers()
        elif self.path in ANSWERS:
            status, body = ANSWERS[self.path]
            self.answer(body, len(body), status)
        elif self.path == "/in/boast":
            self.answer(CLIP, 1 << 50)
        elif self.path == "/in/endless":
            self.send_response(200)
            self.end_headers()
            self.talk()
        else:
            self.send_error(403 if self.path == "/in/forbidden" else 404)

    def break_off(self, body: bytes, attempt: int) -> None:
        """End after half of the body, in the way that the path says, at the first two attempts."""
        half = body[: len(body) // 2] if attempt < 3 else body
        if self.path != "/in/chunked":
            self.answer(half, len(body))
        else:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(body) + half)
            if attempt >= 3:
                self.wfile.write(b"\r\n0\r\n\r\n")
        if self.path == "/in/reset" and attempt < 3:
            self.wfile.flush()
            on, no_s = 1, 0
            option = struct.pack("ii", on, no_s)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            self.connection.close()

    def answer(self, body: bytes, length: int, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def talk(self, pause_s: float = 0.0) -> None:
        """Send bytes until the client hangs up."""
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
                time.sleep(pause_s)
        except OSError:
            return

    def log_message(self, format, *args):  # noqa: A002
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.paths = []  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def url(server) -> str:
    return f"http://127.0.0.1:{server.server_port}/in"


def test_http_below_an_allowed_prefix(url):
    access = MediaAccess(allowed_prefixes=(url,))
    assert read(f"{url}/clip.mp4", access) == CLIP
    assert read(f"{url}/clip.mp4?signed=1", access) == CLIP
    assert read(f"{url}/moved", access) == CLIP


def test_the_body_of_a_redirect_is_not_read(url, monkeypatch):
    monkeypatch.setattr("pipeline.fetch.media_access._MAX_COPY_S", 1.0)
    assert read(f"{url}/chatty", MediaAccess(allowed_prefixes=(url,))) == CLIP


@pytest.mark.parametrize(
    ("path", "code"),
    [
        pytest.param("nothing", ErrorCode.MEDIA_MISSING, id="not found"),
        pytest.param("forbidden", ErrorCode.MEDIA_UNREADABLE, id="forbidden"),
        pytest.param("short", ErrorCode.FETCH_FAILED, id="ends early"),
        pytest.param("round", ErrorCode.MEDIA_UNREADABLE, id="redirects in a circle"),
        pytest.param("a space", ErrorCode.MEDIA_MISSING, id="not found, with a space"),
        pytest.param("\u00fc", ErrorCode.MEDIA_MISSING, id="not found, with an umlaut"),
        pytest.param("boast", ErrorCode.MEDIA_TOO_LARGE, id="claims to be large"),
        pytest.param("endless", ErrorCode.MEDIA_TOO_LARGE, id="never ends"),
        pytest.param("escape", ErrorCode.URI_NOT_ALLOWED, id="redirect out of the folder"),
        pytest.param("other-host", ErrorCode.URI_NOT_ALLOWED, id="redirect to another host"),
        pytest.param("file", ErrorCode.MEDIA_UNREADABLE, id="redirect to a file"),
    ],
)
def test_http_troubles(path, code, server, url, monkeypatch):
    monkeypatch.setattr("pipeline.fetch.attempts.BACKOFF_S", 0.0)
    access = MediaAccess(allowed_prefixes=(url,), max_bytes=1 << 20)
    assert refusal(f"{url}/{path}", access).code == code
    assert "/secret.mp4" not in server.paths


@pytest.mark.parametrize("path", ["busy", "broken"])
def test_trouble_that_passes_is_met_by_further_attempts(path, server, url, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("pipeline.fetch.attempts.BACKOFF_S", 0.5)
    monkeypatch.setattr("pipeline.fetch.attempts.NUM_ATTEMPTS", 3)
    access = MediaAccess(allowed_prefixes=(url,))
    assert read(f"{url}/{path}", access) == CLIP
    assert waits == [0.5, 1.0]
    assert server.paths == [f"/in/{path}"] * 3
    monkeypatch.setattr("pipeline.fetch.attempts.NUM_ATTEMPTS", 2)
    server.paths.clear()
    assert refusal(f"{url}/{path}", access).code == ErrorCode.FETCH_FAILED
    assert len(server.paths) == 2


@pytest.mark.parametrize("path", BREAKS)
def test_a_body_that_breaks_off_is_asked_for_again(path, server, url, monkeypatch):
    monkeypatch.setattr("pipeline.fetch.attempts.BACKOFF_S", 0.0)
    access = MediaAccess(allowed_prefixes=(url,))
    assert read(f"{url}{path.removeprefix('/in')}", access) == CLIP
    assert server.paths == [path] * 3


@pytest.mark.parametrize(
    ("path", "code", "told"),
    [
        pytest.param("none", ErrorCode.MEDIA_UNREADABLE, "204 No Content", id="no content"),
        pytest.param("part", ErrorCode.MEDIA_UNREADABLE, "206 Partial Content", id="a part"),
        pytest.param(
            "denied",
            ErrorCode.MEDIA_UNREADABLE,
            '403 Forbidden, with an XML error document with the code "AccessDenied": "Expired"',
            id="error document",
        ),
        pytest.param(
            "login",
            ErrorCode.MEDIA_UNREADABLE,
            '401 Unauthorized, with an HTML page with the title "Log in"',
            id="login page",
        ),
        pytest.param(
            "busy-page",
            ErrorCode.FETCH_FAILED,
            "503 Service Unavailable, with an HTML page",
            id="busy",
        ),
    ],
)
def test_what_a_server_answers_is_told(path, code, told, url, monkeypatch):
    monkeypatch.setattr("pipeline.fetch.attempts.BACKOFF_S", 0.0)
    error = refusal(f"{url}/{path}", MediaAccess(allowed_prefixes=(url,)))
    assert error.code == code
    assert error.message == f"{url}/{path}: the server answers {told}"


def test_credentials_in_a_url_are_not_told(url):
    for media in (f"{url}/no?X-Amz-Signature=SECRET&part=2&token=SECRET", f"{url}x?sig=SECRET"):
        message = refusal(media, MediaAccess(allowed_prefixes=(url,))).message
        assert "SECRET" not in message
        assert "Signature=...&part=2" in message or "sig=..." in message


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("{url}/{name}", id="raw"),
        pytest.param(" {url}/{name}\n", id="white space around it"),
        pytest.param("{capitals}/{name}", id="capitals in the scheme"),
        pytest.param("{url}/{encoded}", id="encoded"),
        pytest.param("{url}/{encoded}#xywh=0,0,9,9", id="fragment"),
        pytest.param("{url}/{decomposed}", id="NFD"),
        pytest.param("{url}/x/../{name}", id="dots that stay below the prefix"),
        pytest.param("{url}/moved-to-odd", id="redirect"),
    ],
)
def test_forms_of_a_url(form, url, server):
    media = form.format(
        url=url,
        capitals=url.replace("http", "HtTP"),
        name=ODD_NAME,
        encoded=quote(ODD_NAME),
        decomposed=normalize("NFD", ODD_NAME),
    )
    assert read(media, MediaAccess(allowed_prefixes=(url,))) == CLIP
    assert server.paths[-1] == f"/in/{quote(ODD_NAME)}"


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("{host}/in/../secret.mp4", id="dots"),
        pytest.param("{host}/in/%2e%2E/secret.mp4", id="encoded dots"),
        pytest.param("{host}/in/%252e%252e%252fsecret.mp4", id="encoded twice"),
        pytest.param("{host}/in\\..\\secret.mp4", id="backslashes"),
        pytest.param("{host}/in/a\nb", id="line break within"),
        pytest.param("{host}/in/a%0d%0aHost: evil", id="encoded line break"),
        pytest.param("{host}\\@localhost/in/clip.mp4", id="backslash and login"),
        pytest.param("{host}@localhost/in/clip.mp4", id="login"),
        pytest.param("http://localhost#{host}/in/clip.mp4", id="fragment"),
        pytest.param("{host}.evil.example/in/clip.mp4", id="longer host"),
        pytest.param("{host}\u3002evil.example/in/clip.mp4", id="ideographic full stop"),
        pytest.param("{host}\u2044in/clip.mp4", id="fraction slash"),
        pytest.param("\uff48{rest}/in/clip.mp4", id="full-width scheme"),
    ],
)
def test_no_form_of_a_url_leads_past_the_prefix(form, url, server):
    host = url.removesuffix("/in")
    error = refusal(
        form.format(host=host, rest=host.removeprefix("h")), MediaAccess(allowed_prefixes=(url,))
    )
    assert server.paths == []
    refused = (ErrorCode.URI_NOT_ALLOWED, ErrorCode.MEDIA_UNREADABLE, ErrorCode.MEDIA_MISSING)
    assert error.code in refused


@pytest.mark.parametrize("path", ["nothing", "forbidden"])
def test_trouble_that_stays_is_not_tried_again(path, server, url):
    refusal(f"{url}/{path}", MediaAccess(allowed_prefixes=(url,)))
    assert server.paths == [f"/in/{path}"]


def test_a_public_server_cannot_redirect_into_a_private_network(url, server, monkeypatch):
    """Both places are allowed, but a public server must not redirect to a private one."""
    peers = iter(["8.8.8.8", "127.0.0.1"])
    monkeypatch.setattr(
        "ipaddress.IPv4Address.is_global", property(lambda self: next(peers) == "8.8.8.8")
    )
    access = MediaAccess(allowed_prefixes=(url,))
    error = refusal(f"{url}/moved", access)
    assert error.code == ErrorCode.URI_NOT_ALLOWED
    assert "private address 127.0.0.1" in error.message
    assert server.paths == ["/in/moved"]  # the second connection asked for nothing


class Dripping(BaseRequestHandler):
    """Sends the server's `beginning`, then its `drip` over and over for three seconds."""

    def handle(self):
        beginning, drip = self.server.says  # pyright: ignore[reportAttributeAccessIssue]
        try:
            self.request.sendall(beginning)
            for _ in range(60):
                time.sleep(0.05)
                self.request.sendall(drip)
        except OSError:
            return


@pytest.mark.parametrize(
    ("scheme", "beginning", "drip"),
    [
        pytest.param("http", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x", id="body"),
        pytest.param("http", b"HTTP/1.1 200 OK\r\n\r\n", b"x", id="body of any length"),
        pytest.param(
            "http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0", id="chunk size"
        ),
        pytest.param("http", b"HTTP/1.1 200 OK\r\nServer: ", b"x", id="header"),
        pytest.param("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="endless 100 Continue"),
        pytest.param("https", b"\x16\x03\x03\x40\x00", b"\x02", id="TLS handshake"),
    ],
)
def test_a_server_that_trickles_is_left_at_the_deadline(scheme, beginning, drip, monkeypatch):
    monkeypatch.setattr("pipeline.fetch.media_access._MAX_COPY_S", 0.25)
    with ThreadingTCPServer(("127.0.0.1", 0), Dripping) as running:
        running.says = (beginning, drip)  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            prefix = f"{scheme}://127.0.0.1:{running.server_address[1]}/in"
            error = refusal(f"{prefix}/x.mp4", MediaAccess(allowed_prefixes=(prefix,)))
        finally:
            running.shutdown()
            thread.join()
    assert error.code == ErrorCode.FETCH_FAILED
    assert error.message == f"{prefix}/x.mp4: it takes longer than 0.25 s"


def test_no_wait_before_another_attempt_outlasts_the_deadline(url, monkeypatch):
    monkeypatch.setattr("pipeline.fetch.media_access._MAX_COPY_S", 0.25)
    error = refusal(f"{url}/later", MediaAccess(allowed_prefixes=(url,)))
    assert error.code == ErrorCode.FETCH_FAILED
    assert error.message == f"{url}/later: it takes longer than 0.25 s"


def test_a_server_that_is_not_there_may_come_back(monkeypatch):
    monkeypatch.setattr("pipeline.fetch.attempts.NUM_ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    access = MediaAccess(allowed_prefixes=(f"http://127.0.0.1:{port}",))
    error = refusal(f"http://127.0.0.1:{port}/clip.mp4", access)
    assert error.code == ErrorCode.FETCH_FAILED


def test_a_server_that_is_not_allowed_hears_nothing(server, url):
    assert refusal(f"{url}/clip.mp4", MediaAccess()).code == ErrorCode.URI_NOT_ALLOWED
    assert server.paths == []
