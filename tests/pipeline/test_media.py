import io
import math
import pickle
import socket
import struct
import time
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from pipeline.frames import Frames, MediaFacts
from pipeline.limits import MediaError, MediaLimits
from pipeline.sampling import FrameSampling
from pipeline.schema import ErrorCode
from pipeline.video import decode_video
from tests.clips import make_audio, make_video, number_of, real_clips

RATE = 10
NUM_FRAMES = 48
FACTS = MediaFacts(
    duration_s=1.0,
    fps=1.0,
    width_px=4,
    height_px=4,
    codec="h264",
    rotation=0,
    is_vfr=False,
    is_interlaced=False,
    num_decode_errors=0,
)
EVERY = FrameSampling(num_frames=NUM_FRAMES)
EIGHT = FrameSampling(num_frames=8)
QUIET_X265 = {"x265-params": "log-level=none:pools=1:frame-threads=1:keyint=12"}
ALT_REF = {"auto-alt-ref": "1", "lag-in-frames": "12"}
AV1 = {"preset": "10", "crf": "20", "svtav1-params": "lp=1:keyint=12"}

# container, codec, encoder options
KINDS = {
    "h264 in mp4": ("mp4", "libx264", {}),
    "h264 with open groups in mp4": ("mp4", "libx264", {"x264-params": "open-gop=1:bframes=3"}),
    "h264 in mov": ("mov", "libx264", {}),
    "h264 in mkv": ("matroska", "libx264", {}),
    "h264 in ts": ("mpegts", "libx264", {}),
    "h264 in flv": ("flv", "libx264", {}),
    "h264 in avi": ("avi", "libx264", {}),
    "hevc in mp4": ("mp4", "libx265", QUIET_X265),
    "hevc in mkv": ("matroska", "libx265", QUIET_X265),
    "hevc in ts": ("mpegts", "libx265", QUIET_X265),
    "vp8 in webm": ("webm", "libvpx", ALT_REF),
    "vp9 in webm": ("webm", "libvpx-vp9", ALT_REF),
    "vp9 in mp4": ("mp4", "libvpx-vp9", ALT_REF),
    "av1 in mp4": ("mp4", "libsvtav1", AV1),
    "av1 in webm": ("webm", "libsvtav1", AV1),
    "mpeg4 in avi": ("avi", "mpeg4", {}),
    "mpeg4 in mp4": ("mp4", "mpeg4", {}),
    "mpeg2 in ps": ("mpeg", "mpeg2video", {}),
    "mpeg2 in ts": ("mpegts", "mpeg2video", {}),
    "mjpeg in avi": ("avi", "mjpeg", {}),
}


@cache
def video(kind: str) -> bytes:
    container, codec, options = KINDS[kind]
    return make_video(container, codec, options=options, numbers=range(NUM_FRAMES))


@cache
def sequential(kind: str) -> list[np.ndarray]:
    """The slow twin: every frame of a video in the order of display."""
    with av.open(io.BytesIO(video(kind)), mode="r") as container:
        frames = container.decode(video=0)
        return [f.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray() for f in frames]


def numbers(frames: Frames) -> list[int]:
    return [number_of(rgb) for rgb in frames.rgb]


def refusal(source, sampling=EIGHT, **options) -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode_video(source, sampling, **options)
    return caught.value


@pytest.fixture(autouse=True, scope="module")
def no_sockets():
    """Python opens none here; for FFmpeg's see the tests with a listener."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection"))
        yield


# What comes out


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_sequential_decoding(kind):
    truth = sequential(kind)
    assert [number_of(rgb) for rgb in truth] == list(range(NUM_FRAMES))
    frames = decode_video(video(kind), EVERY)
    assert frames.timestamps_s == pytest.approx(np.arange(NUM_FRAMES) / RATE, abs=0.002)
    assert np.array_equal(frames.rgb, truth)


@pytest.mark.parametrize("kind", KINDS)
def test_spans_give_the_frames_of_sequential_decoding(kind):
    truth = sequential(kind)
    for start in range(0, NUM_FRAMES, 5):
        # The middle of each frame, three frames long.
        span_s = (start / RATE, min(start + 3, NUM_FRAMES) / RATE)
        expected = range(start, min(start + 3, NUM_FRAMES))
        frames = decode_video(video(kind), FrameSampling(num_frames=len(expected)), span_s=span_s)
        assert numbers(frames) == list(expected)
        assert np.array_equal(frames.rgb, [truth[number] for number in expected])
        assert frames.timestamps_s == pytest.approx(np.array(expected) / RATE, abs=0.002)


@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
@pytest.mark.parametrize(
    ("name", "size", "num_frames", "rate"),
    [
        pytest.param("bigbuckbunny", (1280, 720), 132, 25, id="big buck bunny"),
        pytest.param("bikes", (640, 272), 250, 25, id="bikes"),
        # 176 x 144 with pixels 128:117 wide
        pytest.param("carphone_pristine", (193, 144), 120, 29.97, id="carphone"),
        pytest.param("carphone_distorted", (193, 144), 120, 29.97, id="carphone distorted"),
    ],
)
def test_real_clips(name, size, num_frames, rate, as_file):
    path = real_clips()[name]
    with path.open("rb") as file:
        frames = decode_video(file if as_file else file.read(), FrameSampling(num_frames=4))
    assert frames.rgb.shape == (4, size[1], size[0], 3)
    middles = (np.arange(4) + 0.5) * num_frames / 4
    assert frames.timestamps_s == pytest.approx(np.floor(middles) / rate, abs=0.001)
    assert frames.rgb.std() > 10


def test_a_variable_rate_keeps_its_times():
    times_s = [0.0, 0.1, 0.5, 0.51, 0.52, 3.0, 3.5]
    for container in ("mp4", "matroska"):
        source = make_video(container, numbers=range(7), times_s=times_s)
        frames = decode_video(source, FrameSampling(num_frames=1000))
        assert frames.timestamps_s == pytest.approx(times_s, abs=0.001)
        assert numbers(frames) == list(range(7))
        at_middles = decode_video(source, FrameSampling(num_frames=2))
        assert numbers(at_middles) == [4]  # on display at both target times


@pytest.mark.parametrize("container", ["mpegts", "matroska", "mp4"])
def test_time_zero_is_the_first_frame(container):
    times_s = [100 + number / RATE for number in range(20)]
    frames = decode_video(
        make_video(container, numbers=range(20), times_s=times_s), FrameSampling(num_frames=20)
    )
    assert numbers(frames) == list(range(20))
    assert frames.timestamps_s == pytest.approx(np.arange(20) / RATE, abs=0.001)


def test_frames_that_an_edit_list_hides_do_not_count():
    source = make_video(
        numbers=range(30),
        times_s=[(number - 5) / RATE for number in range(30)],
        container_options={"avoid_negative_ts": "disabled"},
    )
    frames = decode_video(source, FrameSampling(num_frames=25))
    assert numbers(frames) == list(range(5, 30))
    assert frames.timestamps_s[0] == 0.0


def test_a_rate_is_kept_and_capped():
    source = video("h264 in mp4")
    sampling = FrameSampling(num_frames=None, fps=1)
    assert numbers(decode_video(source, sampling)) == [5, 15, 25, 35, 45]
    capped = decode_video(source, FrameSampling(num_frames=None, fps=5, max_frames=3))
    assert numbers(capped) == [8, 24, 40]


def test_more_frames_than_there_are_gives_all_of_them_once():
    frames = decode_video(make_video(numbers=range(3)), FrameSampling(num_frames=500))
    assert numbers(frames) == [0, 1, 2]


def test_a_video_of_one_frame():
    for container in ("mp4", "matroska", "mpegts", "avi"):
        frames = decode_video(make_video(container, numbers=[7]), EIGHT)
        assert numbers(frames) == [7]
        assert frames.timestamps_s.tolist() == [0.0]


def test_the_duration_in_the_header_is_not_believed():
    source = make_video("matroska", numbers=range(10))
    position = source.index(b"\x44\x89\x88") + 3  # Duration, a float64 in milliseconds
    hostile = source[:position] + struct.pack(">d", 94_608_000_000.0) + source[position + 8 :]
    with av.open(io.BytesIO(hostile), mode="r") as container:
        assert container.duration == 94_608_000 * av.time_base
    frames = decode_video(hostile, FrameSampling(num_frames=None, fps=1000))
    assert numbers(frames) == list(range(10))


@pytest.mark.parametrize("size", [(63, 47), (65, 49), (17, 33)])
def test_odd_sizes(size):
    source = make_video("webm", "libvpx-vp9", size=size)
    assert decode_video(source, EIGHT).rgb.shape == (8, size[1], size[0], 3)
    fitted = decode_video(source, EIGHT, fit=lambda width_px, *_: (width_px - 8, 31))
    assert fitted.rgb.shape == (8, 31, size[0] - 8, 3)


def test_fit_gets_the_displayed_size_and_gives_the_final_one():
    asked = []

    def fit(width_px: int, height_px: int, num_frames: int) -> tuple[int, int]:
        asked.append((width_px, height_px, num_frames))
        return 28, 56

    frames = decode_video(turned(video("h264 in mp4"), QUARTER_LEFT), EIGHT, fit=fit)
    assert asked == [(48, 64, 8)]
    assert frames.rgb.shape == (8, 56, 28, 3)
    with pytest.raises(ValueError, match=r"fit\(64, 48, 8\) returned no size: \(0, 5\)"):
        decode_video(video("h264 in mp4"), EIGHT, fit=lambda *_: (0, 5))


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        pytest.param(Fraction(4, 3), (85, 48), id="wide pixels"),
        pytest.param(Fraction(1, 2), (64, 96), id="tall pixels"),
        pytest.param(Fraction(200, 1), (64, 48), id="absurd pixels"),
    ],
)
def test_pixels_become_square(aspect, size):
    frames = decode_video(make_video(aspect=aspect), EIGHT)
    assert frames.rgb.shape == (8, size[1], size[0], 3)


QUARTER_LEFT = (0, -1, 1, 0)  # a, b, c, d of the display matrix
HALF = (-1, 0, 0, -1)
QUARTER_RIGHT = (0, 1, -1, 0)
MIRROR = (-1, 0, 0, 1)


def turned(source: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Write a display matrix into the track header of an mp4."""
    start = source.index(b"tkhd") + 44  # version, flags, times, ids, layer, volume come before
    a, b, c, d = (value << 16 for value in matrix)
    written = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return source[:start] + written + source[start + 36 :]


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        pytest.param(QUARTER_LEFT, lambda rgb: np.rot90(rgb, 1), id="quarter left"),
        pytest.param(HALF, lambda rgb: np.rot90(rgb, 2), id="half"),
        pytest.param(QUARTER_RIGHT, lambda rgb: np.rot90(rgb, 3), id="quarter right"),
        pytest.param(MIRROR, lambda rgb: rgb[:, ::-1], id="mirrored"),
        # x' = y, y' = x: rows become columns
        pytest.param((0, 1, 1, 0), lambda rgb: rgb.transpose(1, 0, 2), id="transposed"),
    ],
)
def test_frames_are_upright(matrix, turn):
    frames = decode_video(turned(video("h264 in mp4"), matrix), EVERY)
    truth = [turn(rgb) for rgb in sequential("h264 in mp4")]
    assert np.array_equal(frames.rgb, truth)


def test_a_change_of_size_gives_frames_of_the_first_size():
    start_s = 2.0
    first = make_video("mpegts", numbers=range(20))
    times_s = [start_s + number / RATE for number in range(20)]
    second = make_video("mpegts", numbers=range(20, 40), times_s=times_s, size=(128, 96))
    frames = decode_video(first + second, FrameSampling(num_frames=40))
    assert frames.rgb.shape[1:] == (48, 64, 3)
    assert len(frames.rgb) > 30


def facts_of(source: bytes, sampling=EIGHT) -> MediaFacts:
    return decode_video(source, sampling).facts


def test_facts_are_told():
    facts = facts_of(video("h264 in mp4"))
    assert (facts.duration_s, facts.fps) == pytest.approx((4.8, 10.0))
    assert (facts.width_px, facts.height_px, facts.codec) == (64, 48, "h264")
    assert (facts.rotation, facts.is_vfr, facts.is_interlaced) == (0, False, False)
    assert facts.num_decode_errors == 0
    quarter = facts_of(turned(video("h264 in mp4"), QUARTER_LEFT))
    assert (quarter.width_px, quarter.height_px, quarter.rotation) == (48, 64, 270)
    assert facts_of(turned(video("h264 in mp4"), QUARTER_RIGHT)).rotation == 90
    assert facts_of(video("av1 in mp4")).codec == "av1"
    assert facts_of(make_video(aspect=Fraction(4, 3))).width_px == 85
    assert facts_of(make_video(numbers=range(4), times_s=[0, 0.1, 0.2, 0.9])).is_vfr


def test_the_duration_of_an_mkv_without_one_comes_from_its_packets():
    source = make_video("matroska", numbers=range(10))
    without = source.replace(b"\x44\x89\x88", b"\xec\x80\x88")  # Duration becomes Void
    assert facts_of(without).duration_s == pytest.approx(1.0, abs=0.01)


def test_interlaced_frames_are_told():
    options = {"x264-params": "tff=1"}
    assert facts_of(make_video(options=options)).is_interlaced
    assert facts_of(make_video("mpegts", options=options)).is_interlaced


def test_frames_at_given_seconds():
    source = video("hevc in mp4")
    sampling = FrameSampling(num_frames=None, at_s=(0.0, 1.25, 4.7, 99.0))
    assert numbers(decode_video(source, sampling)) == [0, 12, 47]
    assert numbers(decode_video(source, sampling, span_s=(2.0, 4.0))) == [20, 32]
    after = FrameSampling(num_frames=None, at_s=(50.0,))
    assert refusal(source, after).code == ErrorCode.NO_FRAMES


@pytest.mark.parametrize("kind", ["h264 in mp4", "vp9 in webm", "mpeg2 in ts", "hevc in mkv"])
def test_keyframes_stand_for_the_frames_behind_them(kind):
    frames = decode_video(video(kind), FrameSampling(num_frames=16, keyframes_only=True))
    assert numbers(frames) == [0, 12, 24, 36]
    in_avi = FrameSampling(num_frames=4, keyframes_only=True)  # where keyframes are not known
    assert numbers(decode_video(video("mpeg4 in avi"), in_avi)) == [6, 18, 30, 42]
    assert frames.timestamps_s * RATE == pytest.approx(np.array([0, 12, 24, 36]), abs=0.02)
    assert np.array_equal(frames.rgb, [sequential(kind)[at] for at in numbers(frames)])


PLANNED = [kind for kind in KINDS if "avi" not in kind and kind != "mpeg2 in ps"]


@pytest.mark.parametrize("kind", PLANNED)
def test_few_frames_are_reached_without_decoding_all(kind, monkeypatch):
    monkeypatch.setattr("pipeline.video._decode_all", lambda *_: pytest.fail("read through"))
    sampling = FrameSampling(num_frames=2)
    assert numbers(decode_video(video(kind), sampling)) == [12, 36]
    assert numbers(decode_video(video(kind), sampling, span_s=(3.0, 4.8))) == [34, 43]


ODD = {
    "intra refresh instead of keyframes": ("mp4", {"x264-params": "intra-refresh=1"}),
    "frames that nothing shows first": ("mp4", {"x264-params": "open-gop=1:b-pyramid=normal"}),
    "one keyframe": ("matroska", {"x264-params": "keyint=infinite"}),
    "keyframes alone": ("mp4", {"x264-params": "keyint=1"}),
    "many references": ("mpegts", {"x264-params": "ref=8:bframes=8:b-adapt=2:weightp=2"}),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("variable", [False, True], ids=["constant rate", "variable rate"])
def test_odd_streams_give_the_frames_of_sequential_decoding(odd, variable):
    container, options = ODD[odd]
    times_s = [number / RATE + (0.05 if variable and number % 3 else 0.0) for number in range(48)]
    source = make_video(container, options=options, numbers=range(48), times_s=times_s)
    with av.open(io.BytesIO(source), mode="r") as opened:
        truth = [
            frame.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()
            for frame in opened.decode(video=0)
        ]
    for start in range(0, 48, 7):
        at_s = tuple(times_s[number] + 0.01 for number in range(start, 48, 11))
        frames = decode_video(source, FrameSampling(num_frames=None, at_s=at_s))
        assert numbers(frames) == list(range(start, 48, 11))
        assert np.array_equal(frames.rgb, [truth[number] for number in numbers(frames)])


def test_a_container_that_is_wrong_about_its_keyframes_is_not_believed():
    """Without its table of keyframes an mp4 calls every frame one."""
    for codec in ("libx264", "mpeg4", "libvpx-vp9"):
        source = make_video("mp4", codec, numbers=range(48), num_b_frames=0)
        wrong = source.replace(b"stss", b"free")
        expected = decode_video(source, FrameSampling(num_frames=4))
        assert np.array_equal(decode_video(wrong, FrameSampling(num_frames=4)).rgb, expected.rgb)


# What is refused


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
    """The port of a server that nobody may talk to."""
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
    start = time.monotonic()
    error = refusal(wrap(ATTACKS[attack](tmp_path, listener)))
    assert time.monotonic() - start < 1.0
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
    error = refusal(make_video("matroska", "ffv1"))
    assert error.code == ErrorCode.MEDIA_UNSUPPORTED
    assert "ffv1" in error.message


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
    with pytest.raises(ValueError, match="max_pixels must be positive, got nan"):
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


# Damage


HEADER_IN_FRONT = {"movflags": "faststart"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize(
    ("container", "options"),
    [
        pytest.param("mp4", HEADER_IN_FRONT, id="mp4 with its header in front"),
        pytest.param("mp4", FRAGMENTED, id="fragmented mp4"),
        pytest.param("matroska", {}, id="mkv"),
        pytest.param("mpegts", {}, id="ts"),
        pytest.param("avi", {}, id="avi"),
        pytest.param("flv", {}, id="flv"),
    ],
)
def test_a_cut_video_gives_the_frames_that_are_left(container, options):
    whole = make_video(container, numbers=range(NUM_FRAMES), container_options=options)
    frames = decode_video(whole[: len(whole) * 6 // 10], EIGHT)
    assert len(frames.rgb) == 8
    if container == "mp4":  # the others do not say how long they should be
        assert frames.facts.num_decode_errors > 0 or options == FRAGMENTED
    shown = numbers(frames)[:-1]  # the last one may be cut in two
    assert shown == sorted(set(shown))
    assert frames.timestamps_s[:-1] * RATE == pytest.approx(np.array(shown), abs=0.02)
    assert 10 < shown[-1] < 40


def test_an_mp4_cut_before_its_header_is_corrupt():
    whole = video("h264 in mp4")
    assert refusal(whole[: len(whole) // 2]).code == ErrorCode.MEDIA_CORRUPT


def test_a_stream_cut_at_its_head_begins_with_the_first_frame_that_decodes():
    whole = video("h264 in ts")
    frames = decode_video(whole[188 * 20 :], FrameSampling(num_frames=1000))
    shown = numbers(frames)
    assert shown == list(range(shown[0], NUM_FRAMES))
    assert shown[0] in (12, 24)  # a keyframe
    assert frames.timestamps_s[0] == 0.0


@pytest.mark.parametrize("kind", ["h264 in mp4", "h264 in ts", "hevc in mkv", "mpeg4 in avi"])
@pytest.mark.parametrize("seed", range(5))
def test_damaged_bytes_give_frames_or_a_media_error(kind, seed):
    rng = np.random.default_rng(seed)
    damaged = np.frombuffer(video(kind), dtype=np.uint8).copy()
    where = rng.integers(0, len(damaged), len(damaged) // (5 * 4**seed))
    damaged[where] = rng.integers(0, 256, len(where))
    try:
        frames = decode_video(damaged.tobytes(), EIGHT, limits=MediaLimits(max_pixels=1 << 20))
    except MediaError:
        return
    assert 1 <= len(frames.rgb) <= 8


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_frames_in_the_middle_that_are_noise_cost_only_themselves(container):
    whole = bytearray(make_video(container, numbers=range(NUM_FRAMES), num_b_frames=0))
    middle = len(whole) // 2
    whole[middle : middle + 300] = bytes(300)
    frames = decode_video(bytes(whole), EVERY)
    assert frames.facts.num_decode_errors > 0
    shown = numbers(frames)
    assert len(shown) >= 30
    assert {0, 47} <= set(shown)


def test_a_file_whose_frames_are_all_noise_is_corrupt():
    whole = bytearray(make_video(container_options=HEADER_IN_FRONT))
    start = whole.index(b"mdat") + 4
    whole[start:] = b"\xff" * (len(whole) - start)
    assert refusal(bytes(whole)).code == ErrorCode.MEDIA_CORRUPT


def test_a_header_without_frames_has_none():
    whole = make_video(container_options=FRAGMENTED)
    assert refusal(whole[: whole.index(b"moof") - 4]).code == ErrorCode.NO_FRAMES


def test_metadata_that_is_not_utf8_is_no_matter():
    whole = make_video("matroska", title="caption XXXX")
    assert len(decode_video(whole.replace(b"XXXX", b"\xe9\xff\xfe\xe9"), EIGHT).rgb) == 8


# Sources


class Flaky(io.BytesIO):
    """A file that can be read up to the middle."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > len(self.getvalue()) // 2:
            raise OSError(5, "Input/output error")
        return super().read(size)


def test_a_file_that_cannot_be_read_to_the_end_is_unreadable():
    error = refusal(Flaky(real_clips()["bigbuckbunny"].read_bytes()))
    assert error.code == ErrorCode.MEDIA_UNREADABLE
    assert "Input/output error" in error.message


def test_a_file_that_returns_more_than_asked_for_is_no_danger():
    class Generous(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size) + bytes(1 << 20)

    assert numbers(decode_video(Generous(video("h264 in mp4")), EVERY)) == list(range(NUM_FRAMES))


def test_decoding_keeps_no_file_open():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for kind in ("h264 in mp4", "h264 in ts"):
        decode_video(video(kind), EIGHT, span_s=(3.0, 4.0))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# The types


def test_media_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(MediaError(ErrorCode.MEDIA_CORRUPT, "bad")))
    assert (error.code, error.message, str(error)) == (ErrorCode.MEDIA_CORRUPT, "bad", "bad")


@pytest.mark.parametrize(
    ("rgb", "timestamps_s"),
    [
        pytest.param(np.zeros((2, 4, 4)), [0.0, 1.0], id="pixels are not bytes"),
        pytest.param(np.zeros((2, 4, 4), np.uint8), [0.0, 1.0], id="no channels"),
        pytest.param(np.zeros((0, 4, 4, 3), np.uint8), [], id="no frames"),
        pytest.param(np.zeros((2, 4, 4, 3), np.uint8), [0.0], id="a time is missing"),
        pytest.param(np.zeros((2, 4, 4, 3), np.uint8), [1.0, 1.0], id="times stand still"),
        pytest.param(np.zeros((2, 4, 4, 3), np.uint8), [0.0, math.nan], id="no time"),
    ],
)
def test_frames_are_checked(rgb, timestamps_s):
    with pytest.raises(ValueError, match=r"rgb|timestamps"):
        Frames(rgb=rgb, timestamps_s=np.array(timestamps_s), facts=FACTS)
