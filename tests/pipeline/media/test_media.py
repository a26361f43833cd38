"""The frames of a video are those of sequential decoding, upright and square, with their facts."""

import io
import math
import pickle
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.frames import Frames, MediaFacts
from pipeline.media.limits import MediaError
from pipeline.schema import ErrorCode
from tests.clips import make_video, number_of, real_clips
from tests.pipeline.decoding import decode_video
from tests.pipeline.videos import (
    EIGHT,
    EVERY,
    KINDS,
    NUM_FRAMES,
    RATE,
    no_sockets,  # noqa: F401, a fixture
    numbers,
    refusal,
    sequential,
    video,
)

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


NOT_PLANNED = ("avi", "asf", "ps")
PLANNED = [kind for kind in KINDS if not kind.endswith(NOT_PLANNED)]


@pytest.mark.parametrize("kind", PLANNED)
def test_few_frames_are_reached_without_decoding_all(kind, monkeypatch):
    monkeypatch.setattr(
        "pipeline.media.video._Decoding.decode_from_start", lambda *_: pytest.fail("read through")
    )
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
    """An mp4 without its table of keyframes says that every frame is one."""
    for codec in ("libx264", "mpeg4", "libvpx-vp9"):
        source = make_video("mp4", codec, numbers=range(48), num_b_frames=0)
        wrong = source.replace(b"stss", b"free")
        expected = decode_video(source, FrameSampling(num_frames=4))
        assert np.array_equal(decode_video(wrong, FrameSampling(num_frames=4)).rgb, expected.rgb)


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
