import errno
import os
import pickle
import socket
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer

import fsspec
import pytest

from pipeline.fetch.media_access import MediaAccess
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError
from pipeline.schema import ErrorCode
from tests.clips import make_video, real_clips
from tests.pipeline.decoding import decode_video

CLIP = b"the bytes of a clip"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    (tmp_path / "100% \u00dcmlaut #1?.mp4").write_bytes(CLIP)
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty.mp4").touch()
    return tmp_path


def read(media: object, access: MediaAccess) -> bytes:
    opened = access.open(media)
    if isinstance(opened, bytes):
        return opened
    with closing(opened):
        return opened.read()


def refusal(media: object, access: MediaAccess) -> MediaError:
    with pytest.raises(MediaError) as caught:
        access.open(media)
    return caught.value


# Local media


def test_bytes_come_back_as_they_are():
    assert MediaAccess().open(CLIP) is CLIP


@pytest.mark.parametrize(
    "media",
    [
        pytest.param("clip.mp4", id="relative path"),
        pytest.param("sub/../clip.mp4", id="relative path with dots"),
        pytest.param("100% \u00dcmlaut #1?.mp4", id="odd name"),
        pytest.param({"bytes": None, "path": "clip.mp4"}, id="struct with a path"),
        pytest.param({"bytes": CLIP, "path": "no such file"}, id="struct with both"),
        pytest.param({"bytes": CLIP}, id="struct with bytes alone"),
        pytest.param({"path": "clip.mp4"}, id="struct with a path alone"),
    ],
)
def test_local_media(media, folder):
    assert read(media, MediaAccess(base=str(folder))) == CLIP


def test_absolute_paths_and_file_uris(folder):
    access = MediaAccess(base="/nowhere", allowed_folders=("/elsewhere", str(folder)))
    assert read(str(folder / "clip.mp4"), access) == CLIP
    assert read((folder / "clip.mp4").as_uri(), access) == CLIP
    assert read((folder / "100% \u00dcmlaut #1?.mp4").as_uri(), access) == CLIP


def test_a_link_to_a_file_is_a_file(folder):
    (folder / "link").symlink_to("clip.mp4")
    assert read("link", MediaAccess(base=str(folder))) == CLIP


@pytest.mark.parametrize(
    "media",
    [
        pytest.param(None, id="null"),
        pytest.param("", id="empty path"),
        pytest.param({"bytes": None, "path": None}, id="struct of nulls"),
        pytest.param({}, id="empty struct"),
    ],
)
def test_rows_without_media(media):
    assert refusal(media, MediaAccess()).code == ErrorCode.MEDIA_NULL


# What FFmpeg would understand as a protocol is, here, the name of a file that does not exist.
@pytest.mark.parametrize(
    "media",
    [
        "no such file",
        "clip.mp4/inside",
        "img%d.png",
        "concat:clip.mp4|clip.mp4",
        "subfile,,start,0,end,5,,:clip.mp4",
        "file:clip.mp4",
        "cache:clip.mp4",
        "async:file:///etc/passwd",
        "concat:http://127.0.0.1/a|http://127.0.0.1/b",
        "data:video/mp4;base64,AAAA",
        "data:video/mp4;base64," + "A" * 5000,
        "pipe:0",
        "-",
        "~/clip.mp4",
        "$HOME/clip.mp4",
    ],
)
def test_names_that_are_no_file_are_missing(media, folder):
    assert refusal(media, MediaAccess(base=str(folder))).code == ErrorCode.MEDIA_MISSING


def test_a_link_to_itself_is_missing(folder):
    (folder / "loop").symlink_to("loop")
    assert refusal("loop", MediaAccess(base=str(folder))).code == ErrorCode.MEDIA_MISSING


def test_what_is_no_regular_file_is_not_opened(folder, monkeypatch):
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # the names of sockets are short
        server.bind("socket")
        access = MediaAccess(base=str(folder), allowed_folders=("/dev",))
        for media in ("sub", "pipe", "socket", "/dev/zero", "/dev/tty", "/dev"):
            assert refusal(media, access).code == ErrorCode.MEDIA_UNREADABLE, media


def test_a_file_that_becomes_a_pipe_while_it_is_opened_is_refused(folder, monkeypatch):
    os.mkfifo(folder / "pipe")
    opened = os.open

    def open_pipe(path, flags):
        return opened(folder / "pipe", flags)

    monkeypatch.setattr("os.open", open_pipe)
    error = refusal("clip.mp4", MediaAccess(base=str(folder)))
    assert error.code == ErrorCode.MEDIA_UNREADABLE


@pytest.mark.parametrize(
    "media",
    [
        pytest.param("/etc/passwd", id="absolute path"),
        pytest.param("file:///etc/passwd", id="file URI"),
        pytest.param("../../../../../../../../etc/passwd", id="dots"),
        pytest.param("/etc/no-such-file", id="a file that does not exist"),
        pytest.param("/proc/self/environ", id="the environment"),
        pytest.param("/dev/stdin", id="standard input"),
        pytest.param("link", id="a link out of the folder"),
        pytest.param("link/passwd", id="a link to a folder"),
        pytest.param({"bytes": None, "path": "/etc/passwd"}, id="struct"),
    ],
)
def test_files_outside_of_the_allowed_folders_are_not_opened(media, folder, monkeypatch):
    (folder / "link").symlink_to("/etc" if media == "link/passwd" else "/etc/passwd")
    access = MediaAccess(base=str(folder), allowed_folders=(f"{folder}/sub",))
    monkeypatch.setattr("os.open", lambda *_: pytest.fail("a file was opened"))
    error = refusal(media, access)
    assert error.code == ErrorCode.URI_NOT_ALLOWED
    assert "--allow-folder /" in error.message


def test_a_folder_whose_name_begins_alike_is_another(tmp_path):
    for name in ("clips", "clips-secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_bytes(CLIP)
    access = MediaAccess(base=str(tmp_path / "clips"))
    assert refusal("../clips-secret/clip.mp4", access).code == ErrorCode.URI_NOT_ALLOWED


def test_local_files_beside_a_remote_input_need_a_folder_of_their_own(folder):
    media = str(folder / "clip.mp4")
    access = MediaAccess(base="memory://bucket/in")
    assert refusal(media, access).code == ErrorCode.URI_NOT_ALLOWED


def test_names_that_no_file_can_have_are_unreadable(folder):
    error = refusal("clip\0.mp4", MediaAccess(base=str(folder)))
    assert error.code == ErrorCode.MEDIA_UNREADABLE


def test_a_file_without_permission_is_unreadable(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)  # root may read everything
    error = refusal("clip.mp4", MediaAccess(base=str(folder)))
    assert error.code == ErrorCode.MEDIA_UNREADABLE
    assert error.message == "clip.mp4: Permission denied"


def test_media_over_the_limit_are_refused(folder):
    access = MediaAccess(base=str(folder), max_bytes=len(CLIP) - 1)
    assert refusal("clip.mp4", access).code == ErrorCode.MEDIA_TOO_LARGE
    assert refusal(CLIP, access).code == ErrorCode.MEDIA_TOO_LARGE
    assert read(CLIP, MediaAccess(max_bytes=len(CLIP))) == CLIP


def test_other_types_are_refused():
    error = refusal(17, MediaAccess())
    assert error.code == ErrorCode.MEDIA_UNSUPPORTED
    assert "int" in error.message


@pytest.mark.parametrize("as_media", [str, lambda path: {"bytes": path.read_bytes(), "path": "x"}])
def test_real_clips_decode(as_media):
    media = MediaAccess().open(as_media(real_clips()["carphone_pristine"]))
    frames = decode_video(media, FrameSampling(num_frames=2), fit=lambda *_: (32, 32))
    assert frames.rgb.shape == (2, 32, 32, 3)
    if not isinstance(media, bytes):
        media.close()


# Remote media


@pytest.fixture
def store():
    """Put objects into the memory filesystem of fsspec."""
    filesystem = fsspec.filesystem("memory")
    for name in ("/bucket/in/clip.mp4", "/bucket/in/a b?c#d%2F.mp4", "/bucket/secret.mp4"):
        filesystem.pipe(name, CLIP)
    filesystem.pipe("/bucket-evil/clip.mp4", CLIP)
    filesystem.pipe("/bucket/in/folder/clip.mp4", CLIP)
    yield
    filesystem.rm("/", recursive=True)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("slash", ["", "/"])
def test_objects_below_an_allowed_prefix(slash):
    access = MediaAccess(allowed_prefixes=("s3://other", f"memory://bucket/in{slash}"))
    assert read("memory://bucket/in/clip.mp4", access) == CLIP
    assert read("memory://bucket/in/a b?c#d%2F.mp4", access) == CLIP
    missing = refusal("memory://bucket/in/no.mp4", access)
    assert missing.code == ErrorCode.MEDIA_MISSING
    assert refusal("memory://bucket/in/folder", access).code == ErrorCode.MEDIA_UNREADABLE


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "media",
    [
        pytest.param("memory://bucket/secret.mp4", id="above the prefix"),
        pytest.param("memory://bucket/in/../secret.mp4", id="dots"),
        pytest.param("memory://bucket/in/./../secret.mp4", id="more dots"),
        pytest.param("memory://bucket/in/%2e%2E/secret.mp4", id="encoded dots"),
        pytest.param("memory://bucket/in/%252e%252e/secret.mp4", id="dots encoded twice"),
        pytest.param("memory://bucket/in/..%2fsecret.mp4", id="encoded slash"),
        pytest.param("memory://bucket/in\\..\\secret.mp4", id="backslashes"),
        pytest.param("memory://bucket/in/..;/secret.mp4", id="dots with a parameter"),
        pytest.param("memory://bucket/in/..", id="dots at the end"),
        pytest.param("memory://bucket/in/a\n.mp4", id="line break"),
        pytest.param("memory://bucket/input/clip.mp4", id="longer folder name"),
        pytest.param("memory://bucket-evil/clip.mp4", id="longer bucket name"),
        pytest.param("memory://bucket@evil/in/clip.mp4", id="user name"),
        pytest.param("memory://bucket/in", id="the prefix itself"),
        pytest.param("memory://bucket/in?endpoint_override=evil/clip.mp4", id="settings"),
        pytest.param("MEMORY://bucket/in/clip.mp4", id="capitals"),
        pytest.param("simplecache::memory://bucket/in/clip.mp4", id="chained filesystems"),
        pytest.param("s3://bucket/in/clip.mp4", id="other scheme"),
        pytest.param("http://169.254.169.254/latest/meta-data", id="metadata service"),
        pytest.param("ftp://127.0.0.1/clip.mp4", id="ftp"),
        pytest.param("FILE:///etc/passwd", id="file in capitals"),
    ],
)
def test_other_uris_are_refused(media):
    error = refusal(media, MediaAccess(allowed_prefixes=("memory://bucket/in",)))
    if "::" in media:  # the name of a file that does not exist
        assert error.code == ErrorCode.MEDIA_MISSING
    else:
        assert error.code == ErrorCode.URI_NOT_ALLOWED
        assert "--allow-uri" in error.message


def test_a_refusal_says_what_to_allow():
    error = refusal("s3://clips/a/b.mp4?x=1", MediaAccess())
    assert error.message == (
        "s3://clips/a/b.mp4?x=1 lies below no allowed prefix; allow one, such as "
        "--allow-uri s3://clips/folder"
    )


@pytest.mark.usefixtures("store")
def test_paths_relative_to_a_remote_input(folder):
    access = MediaAccess(base="memory://bucket/in", allowed_folders=(str(folder),))
    assert read("clip.mp4", access) == CLIP
    assert read("folder/clip.mp4", access) == CLIP
    assert read("memory://bucket/in/clip.mp4", access) == CLIP
    assert read(str(folder / "clip.mp4"), access) == CLIP
    assert refusal("../secret.mp4", access).code == ErrorCode.URI_NOT_ALLOWED
    assert refusal("memory://bucket/secret.mp4", access).code == ErrorCode.URI_NOT_ALLOWED


@pytest.mark.usefixtures("store")
def test_remote_media_over_the_limit_are_refused():
    access = MediaAccess(base="memory://bucket/in", max_bytes=len(CLIP) - 1)
    assert refusal("clip.mp4", access).code == ErrorCode.MEDIA_TOO_LARGE


def test_errors_of_rows_say_nothing_of_the_credentials_of_the_input(bucket):
    with bucket.filesystem.open_output_stream(f"{bucket.name}/in/a.mp4") as stream:
        stream.write(CLIP)
    access = MediaAccess(base=bucket.uri("in"), max_bytes=len(CLIP) - 1)

    for name in ("../b.mp4", "a.mp4", "no.mp4"):
        assert "test" not in refusal(name, access).message


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_trouble_of_this_machine_is_no_error_of_a_row(number, monkeypatch):
    def fail():
        raise OSError(number, "trouble")

    monkeypatch.setattr("pipeline.fetch.media_access._in_memory", fail)
    with pytest.raises(OSError, match="trouble"):
        MediaAccess(base="memory://bucket/in").open("clip.mp4")


@pytest.mark.usefixtures("store")
def test_remote_videos_decode():
    fsspec.filesystem("memory").pipe("/bucket/in/video.mp4", make_video(numbers=range(4)))
    media = MediaAccess(base="memory://bucket/in").open("video.mp4")
    assert not isinstance(media, bytes)
    with media:
        assert len(decode_video(media, FrameSampling(num_frames=9)).rgb) == 4


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param("bucket/clips", id="no scheme"),
        pytest.param("s3:/bucket", id="one slash"),
        pytest.param("https://", id="no host"),
        pytest.param("file:///data", id="local"),
        pytest.param("s3://bucket/../other", id="dots"),
    ],
)
def test_prefixes_that_are_none_are_refused(prefix):
    with pytest.raises(ValueError, match="is not a prefix of URIs"):
        MediaAccess(allowed_prefixes=(prefix,))


def test_access_goes_to_other_processes():
    access = MediaAccess(base="/data", allowed_prefixes=("s3://bucket",))
    assert pickle.loads(pickle.dumps(access)) == access


# HTTP


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
        elif self.path == "/in/boast":
            self.answer(CLIP, 1 << 50)
        elif self.path == "/in/endless":
            self.send_response(200)
            self.end_headers()
            self.talk()
        else:
            self.send_error(403 if self.path == "/in/forbidden" else 404)

    def answer(self, body: bytes, length: int) -> None:
        self.send_response(200)
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
        pytest.param("short", ErrorCode.MEDIA_UNREADABLE, id="ends early"),
        pytest.param("round", ErrorCode.MEDIA_UNREADABLE, id="redirects in a circle"),
        pytest.param("a space", ErrorCode.MEDIA_UNREADABLE, id="no URL"),
        pytest.param("\u00fc", ErrorCode.MEDIA_UNREADABLE, id="not encoded"),
        pytest.param("boast", ErrorCode.MEDIA_TOO_LARGE, id="claims to be large"),
        pytest.param("endless", ErrorCode.MEDIA_TOO_LARGE, id="never ends"),
        pytest.param("escape", ErrorCode.URI_NOT_ALLOWED, id="redirect out of the folder"),
        pytest.param("other-host", ErrorCode.URI_NOT_ALLOWED, id="redirect to another host"),
        pytest.param("file", ErrorCode.MEDIA_UNREADABLE, id="redirect to a file"),
    ],
)
def test_http_troubles(path, code, server, url):
    access = MediaAccess(allowed_prefixes=(url,), max_bytes=1 << 20)
    assert refusal(f"{url}/{path}", access).code == code
    assert "/secret.mp4" not in server.paths


@pytest.mark.parametrize("path", ["busy", "broken"])
def test_trouble_that_passes_is_met_by_further_attempts(path, server, url, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("pipeline.fetch.http._BACKOFF_S", 0.5)
    monkeypatch.setattr("pipeline.fetch.http._NUM_ATTEMPTS", 3)
    access = MediaAccess(allowed_prefixes=(url,))
    assert read(f"{url}/{path}", access) == CLIP
    assert waits == [0.5, 1.0]
    assert server.paths == [f"/in/{path}"] * 3
    monkeypatch.setattr("pipeline.fetch.http._NUM_ATTEMPTS", 2)
    server.paths.clear()
    assert refusal(f"{url}/{path}", access).code == ErrorCode.MEDIA_UNREADABLE
    assert len(server.paths) == 2


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
    assert error.code == ErrorCode.MEDIA_UNREADABLE
    assert error.message == f"{prefix}/x.mp4: it takes longer than 0.25 s"


def test_no_wait_before_another_attempt_outlasts_the_deadline(url, monkeypatch):
    monkeypatch.setattr("pipeline.fetch.media_access._MAX_COPY_S", 0.25)
    error = refusal(f"{url}/later", MediaAccess(allowed_prefixes=(url,)))
    assert error.code == ErrorCode.MEDIA_UNREADABLE
    assert error.message == f"{url}/later: it takes longer than 0.25 s"


def test_a_server_that_is_not_there_is_unreadable(monkeypatch):
    monkeypatch.setattr("pipeline.fetch.http._NUM_ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    access = MediaAccess(allowed_prefixes=(f"http://127.0.0.1:{port}",))
    error = refusal(f"http://127.0.0.1:{port}/clip.mp4", access)
    assert error.code == ErrorCode.MEDIA_UNREADABLE


def test_a_server_that_is_not_allowed_hears_nothing(server, url):
    assert refusal(f"{url}/clip.mp4", MediaAccess()).code == ErrorCode.URI_NOT_ALLOWED
    assert server.paths == []
