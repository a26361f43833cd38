"""Files that are not videos, or are over a limit, are refused; none opens a file or a socket."""

import io
import math
import socket

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaLimits
from pipeline.schema import ErrorCode
from tests.clips import make_audio, make_video
from tests.pipeline.decoding import decode_video
from tests.pipeline.videos import (
    EIGHT,
    RATE,
    no_sockets,  # noqa: F401, a fixture
    numbers,
    refusal,
    video,
)


def playlist(target: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n".encode()


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, kind)
    return file.getvalue()


def sdp(port: int) -> bytes:
    return (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=video {port} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    ).encode()


class Named(io.BytesIO):
    """A file object whose name would make FFmpeg take it for a playlist."""

    name = "x.m3u8"


@pytest.fixture
def listener():
    """The port of a server that must not get any connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


ATTACKS = {
    "playlist of a file": lambda folder, port: playlist(f"{folder}/clip.ts"),
    "playlist of a file URI": lambda folder, port: playlist(f"file://{folder}/clip.ts"),
    "playlist of a relative file": lambda folder, port: playlist("clip.ts"),
    "playlist of a server": lambda folder, port: playlist(f"http://127.0.0.1:{port}/clip.ts"),
    "concat list": lambda folder, port: b"ffconcat version 1.0\nfile clip.ts\n",
    "concat list of a server": lambda folder, port: (
        f"ffconcat version 1.0\nfile http://127.0.0.1:{port}/clip.ts\n".encode()
    ),
    "session description": lambda folder, port: sdp(port),
    "dash manifest": lambda folder, port: (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>'
        f"http://127.0.0.1:{port}/</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ).encode(),
    "png": lambda folder, port: image("PNG"),
    "jpeg": lambda folder, port: image("JPEG"),
    "gif": lambda folder, port: image("GIF"),
    "text": lambda folder, port: b"This is not a video.\n" * 50,
    "nothing": lambda folder, port: b"",
    "zeros": lambda folder, port: bytes(100_000),
    "noise": lambda folder, port: np.random.default_rng(0).bytes(100_000),
}


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO, Named], ids=["bytes", "file", "named file"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_read_no_file_and_open_no_socket(attack, wrap, tmp_path, monkeypatch, listener):
    (tmp_path / "clip.ts").write_bytes(video("h264 in ts"))
    monkeypatch.chdir(tmp_path)
    error = refusal(wrap(ATTACKS[attack](tmp_path, listener)))
    assert error.code in (ErrorCode.MEDIA_UNSUPPORTED, ErrorCode.MEDIA_CORRUPT)
    if attack in ("png", "jpeg", "gif", "session description", "concat list"):
        assert error.code == ErrorCode.MEDIA_UNSUPPORTED


def test_the_attacks_would_work_on_a_careless_reader(tmp_path, monkeypatch):
    (tmp_path / "clip.ts").write_bytes(video("h264 in ts"))
    monkeypatch.chdir(tmp_path)
    with av.open(io.BytesIO(ATTACKS["concat list"](tmp_path, 0))) as container:
        assert container.streams.video
    with av.open(Named(playlist(f"{tmp_path}/clip.ts"))) as container:
        assert container.streams.video


def test_a_file_without_video():
    for container in ("mp4", "matroska"):
        assert refusal(make_audio(container)).code == ErrorCode.NO_VIDEO_STREAM


def test_a_cover_picture_is_no_video():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        value = Disposition.attached_pic.value  # PyAV 17 takes a number alone
        cover.disposition = value  # pyright: ignore[reportAttributeAccessIssue]
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        output.mux(cover.encode(frame))
        output.mux(cover.encode(None))
    assert refusal(file.getvalue()).code == ErrorCode.NO_VIDEO_STREAM


def test_a_codec_that_is_not_on_the_list():
    error = refusal(make_video("asf", "wmv2", num_b_frames=0))
    assert error.code == ErrorCode.MEDIA_UNSUPPORTED
    assert "wmv2" in error.message


def empty_picture(container: str, side_px: int) -> bytes:
    """A small file that decodes to a picture of any size."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("mjpeg" if container == "avi" else "libx264", rate=1)
        stream.width = stream.height = side_px
        stream.pix_fmt = "yuvj420p" if container == "avi" else "yuv420p"
        stream.options = {} if container == "avi" else {"preset": "ultrafast"}
        frame = av.VideoFrame(side_px, side_px, stream.pix_fmt)
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("source", "limits", "message"),
    [
        pytest.param(
            lambda: empty_picture("mp4", 8192), {}, "8192 x 8192 pixels", id="pixels"
        ),
        pytest.param(
            lambda: empty_picture("avi", 8192), {}, "8192 x 8192 pixels", id="pixels of a jpeg"
        ),
        pytest.param(
            lambda: video("h264 in mp4"), {"max_bytes": 1000}, "--max-media-bytes", id="bytes"
        ),
        pytest.param(
            lambda: video("h264 in mp4"), {"max_stream_frames": 10}, "--max-stream-frames",
            id="frames",
        ),
        pytest.param(
            lambda: make_video("matroska", numbers=[0, 1], times_s=[0.0, 100_000.0]),
            {},
            "--max-duration-s",
            id="duration",
        ),
        pytest.param(
            lambda: video("h264 in mp4"), {"max_rgb_bytes": 8 * 64 * 48 * 3 - 1}, "--max-rgb-bytes",
            id="memory of the frames",
        ),
    ],
)  # fmt: skip
def test_limits(source, limits, message):
    error = refusal(source(), limits=MediaLimits(**limits))
    assert error.code == ErrorCode.MEDIA_TOO_LARGE
    assert message in error.message
    with pytest.raises(ValueError, match="max_pixels must be positive and finite, got nan"):
        MediaLimits(max_pixels=math.nan)  # pyright: ignore[reportArgumentType]


def test_a_stream_that_grows_over_the_limit_stops_there():
    times_s = [2 + number / RATE for number in range(10)]
    bomb = make_video("mpegts", numbers=range(10), times_s=times_s, size=(256, 256))
    source = make_video("mpegts", numbers=range(20)) + bomb
    frames = decode_video(source, FrameSampling(num_frames=40), limits=MediaLimits(max_pixels=4000))
    assert numbers(frames) == list(range(20))


@pytest.mark.parametrize(
    ("span_s", "code"),
    [
        pytest.param((-1.0, 2.0), ErrorCode.BAD_SPAN, id="negative start"),
        pytest.param((2.0, 2.0), ErrorCode.BAD_SPAN, id="empty"),
        pytest.param((3.0, 2.0), ErrorCode.BAD_SPAN, id="backwards"),
        pytest.param((math.nan, 2.0), ErrorCode.BAD_SPAN, id="start is not a number"),
        pytest.param((1.0, math.nan), ErrorCode.BAD_SPAN, id="end is not a number"),
        pytest.param((math.inf, None), ErrorCode.BAD_SPAN, id="infinite start"),
        pytest.param((None, -math.inf), ErrorCode.BAD_SPAN, id="infinite end"),
        pytest.param((4.8, 6.0), ErrorCode.NO_FRAMES, id="after the end"),
    ],
)
def test_spans_that_are_none(span_s, code):
    assert refusal(video("h264 in mp4"), span_s=span_s).code == code


def test_a_span_is_cut_at_the_end_of_the_video():
    for end_s in (100.0, math.inf, None):
        frames = decode_video(
            video("h264 in mp4"), FrameSampling(num_frames=3), span_s=(4.5, end_s)
        )
        assert numbers(frames) == [45, 46, 47]
    assert numbers(decode_video(video("h264 in mp4"), EIGHT, span_s=(None, 0.3))) == [0, 1, 2]
