"""Windows: where they lie, which frames they show, and what they cost."""

import io

import av
import numpy as np
import pytest
from PIL import Image

import pipeline.media.video
from pipeline.media.decode import decode_media
from pipeline.media.display import FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import PageWindows, TimeWindows
from pipeline.status import ErrorCode
from tests.clips import make_video, number_of
from tests.pipeline.decoding import decode_video

TWO = FrameRequest(sampling=FrameSampling(num_frames=2))


@pytest.mark.parametrize(
    ("length_s", "overlap_s", "span", "expected"),
    [
        pytest.param(60, 0, (0, 45), [(0, 45)], id="shorter than a window"),
        pytest.param(60, 0, (0, 120), [(0, 60), (60, 120)], id="even"),
        pytest.param(60, 0, (0, 125), [(0, 60), (60, 125)], id="a rest"),
        pytest.param(60, 0, (0, 130), [(0, 60), (60, 120), (120, 130)], id="more than a rest"),
        pytest.param(60, 10, (0, 115), [(0, 60), (50, 115)], id="overlap and a rest"),
        pytest.param(60, 10, (5, 125), [(5, 65), (55, 115), (105, 125)], id="a span"),
        pytest.param(60, 30, (0, 90), [(0, 60), (30, 90)], id="half"),
        pytest.param(2.5, 0, (0, 10), [(0, 2.5), (2.5, 5), (5, 7.5), (7.5, 10)], id="fractions"),
        pytest.param(0.1, 0, (0, 0.3), [(0, 0.1), (0.1, 0.2), (0.2, 0.3)], id="rounding"),
        pytest.param(60, 0, (0, 0), [(0, 0)], id="no duration"),
    ],
)
def test_windows_cover_the_span(length_s, overlap_s, span, expected):
    windows = TimeWindows(length_s=length_s, overlap_s=overlap_s)

    found = windows.cut(*span, max_windows=4)

    assert [each[0] for each in found] == pytest.approx([each[0] for each in expected])
    assert [each[1] for each in found] == pytest.approx([each[1] for each in expected])


def test_ten_hours_are_refused_with_the_flags_before_anything_is_decoded():
    with pytest.raises(MediaError) as caught:
        TimeWindows(length_s=60).cut(0.0, 36_000.0, max_windows=256)

    assert caught.value.code == ErrorCode.MEDIA_TOO_LARGE
    message = "36000 s are 600 windows of 60 s; take longer ones (--window-s), the limit is 256"
    assert caught.value.message == f"{message} (--max-windows)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_s": 0}, "a positive number of s, got 0"),
        ({"length_s": float("inf")}, "got inf"),
        ({"length_s": float("nan")}, "got nan"),
        ({"length_s": 10, "overlap_s": 6}, "by 0 to 5 s, got 6"),
        ({"length_s": 10, "overlap_s": -1}, "got -1"),
        ({"length_s": 10, "merge": " "}, "is empty"),
    ],
)
def test_no_such_windows(options, message):
    with pytest.raises(ValueError, match=message):
        TimeWindows(**options)


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("matroska", "libvpx-vp9"), ("avi", "mpeg4")]
)
@pytest.mark.parametrize("overlap_s", [0.0, 0.4])
def test_each_window_has_the_frames_that_its_span_would_have_alone(container, codec, overlap_s):
    video = make_video(container, codec, numbers=range(40))

    windows = decode_media(video, [TWO], windows=TimeWindows(length_s=1.0, overlap_s=overlap_s))

    assert len(windows) == (4 if overlap_s == 0 else 6)
    for window in windows:
        span = (window.start, window.end)
        expected = decode_video(video, TWO.sampling, span_s=span)
        (frames,) = window.media
        assert np.array_equal(frames.rgb, expected.rgb)
        assert np.array_equal(frames.timestamps_s, expected.timestamps_s)


def test_the_frames_of_all_windows_are_decoded_in_one_plan(monkeypatch):
    video = make_video(numbers=range(40), gop=12)
    plans = []
    planned = pipeline.media.video.plan_runs

    def noted(index, wanted):
        plans.append(len(wanted))
        return planned(index, wanted)

    monkeypatch.setattr(pipeline.media.video, "plan_runs", noted)
    windows = TimeWindows(length_s=1.0, overlap_s=0.5)
    at_rate = FrameRequest(sampling=FrameSampling(num_frames=None, fps=2.0))

    found = decode_media(video, [at_rate], windows=windows)

    assert plans == [8]  # 14 frames are shown, of which 6 twice
    assert sum(len(window.media[0].rgb) for window in found) == 14


def test_a_video_that_ends_early_has_windows_as_far_as_it_goes():
    video = make_video("mpegts", "mpeg2video", numbers=range(40))
    whole = decode_media(video, [TWO], windows=TimeWindows(length_s=1.0))

    cut = decode_media(video[: len(video) // 2], [TWO], windows=TimeWindows(length_s=1.0))

    assert len(whole) == 4
    assert 1 <= len(cut) <= 3
    assert all(window.media for window in cut)


def test_a_video_whose_header_knows_no_duration_has_windows():
    live = make_video("matroska", numbers=range(30), container_options={"live": "1"})

    windows = decode_media(live, [TWO], windows=TimeWindows(length_s=1.0))

    assert [window.start for window in windows] == pytest.approx([0, 1, 2])
    assert [window.end for window in windows] == pytest.approx([1, 2, 3], abs=0.01)
    assert [number_of(window.media[0].rgb[0]) for window in windows] == [2, 12, 22]


def with_noise(video, numbers):
    """Replace some packets of a video with noise."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(video), "r") as source,
        av.open(file, "w", format="matroska") as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is None:
                continue
            written = packet
            if number in numbers:
                written = av.Packet(b"\xa5" * packet.size)
                written.pts, written.dts, written.time_base = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                )
                written.is_keyframe = packet.is_keyframe
            written.stream = stream
            output.mux(written)
    return file.getvalue()


def test_a_window_that_cannot_be_decoded_is_told_beside_the_others():
    video = with_noise(make_video(numbers=range(40), gop=5, num_b_frames=0), range(10, 20))

    first, lost, third, last = decode_media(video, [TWO], windows=TimeWindows(length_s=1.0))

    assert lost.error is not None
    assert lost.error.code == ErrorCode.MEDIA_CORRUPT
    assert lost.error.message == "no frame of 2 of the window can be decoded"
    shown = [round(10 * time_s) for window in (first, third, last)
             for time_s in window.media[0].timestamps_s]  # fmt: skip
    assert shown == [2, 7, 22, 27, 32, 37]
    assert third.media[0].facts.num_decode_errors > 0


def test_seconds_beyond_a_short_window_are_its_error():
    video = make_video(numbers=range(25))
    at = FrameRequest(sampling=FrameSampling(num_frames=None, at_s=(0.7,)))

    whole, also, rest = decode_media(video, [at], windows=TimeWindows(length_s=1.0))

    assert [frames.timestamps_s[0] for frames in (*whole.media, *also.media)] == [0.7, 1.7]
    assert rest.error is not None
    assert rest.error.code == ErrorCode.NO_FRAMES


def test_the_frames_of_all_windows_count_against_the_limit():
    video = make_video(numbers=range(40))
    limits = MediaLimits(max_rgb_bytes=7 * 64 * 48 * 3)

    with pytest.raises(MediaError, match="--max-rgb-bytes"):
        decode_media(video, [TWO], windows=TimeWindows(length_s=1.0), limits=limits)


def test_pictures_have_windows_too():
    shades = [Image.new("RGB", (40, 40), (shade, 0, 0)) for shade in (0, 80, 160, 240)]
    file = io.BytesIO()
    shades[0].save(file, "GIF", save_all=True, append_images=shades[1:], duration=500)
    still = io.BytesIO()
    shades[0].save(still, "PNG")

    first, second = decode_media(file.getvalue(), [TWO], windows=TimeWindows(length_s=1.0))
    (only,) = decode_media(still.getvalue(), [TWO], windows=TimeWindows(length_s=1.0))

    assert first.media[0].timestamps_s.tolist() == [0.0, 0.5]
    assert second.media[0].timestamps_s.tolist() == [1.0, 1.5]
    assert (only.start, only.end, len(only.media[0].rgb)) == (0.0, 0.0, 1)


def test_the_decoding_process_gives_the_same_windows():
    video = make_video(numbers=range(25))
    at = FrameRequest(sampling=FrameSampling(num_frames=None, at_s=(0.7,)))
    decoder = SandboxedDecoder()
    try:
        found = decoder.decode_windows(video, [at], windows=TimeWindows(length_s=1.0))
    finally:
        decoder.close()

    expected = decode_media(video, [at], windows=TimeWindows(length_s=1.0))
    for window, same in zip(found, expected, strict=True):
        assert (window.start, window.end) == (same.start, same.end)
        assert [frames.rgb.tolist() for frames in window.media] == [
            frames.rgb.tolist() for frames in same.media
        ]
        assert (window.error and window.error.message) == (same.error and same.error.message)


def test_page_windows_have_pages():
    with pytest.raises(ValueError, match="pages_per_prompt must be at least 1, got 0"):
        PageWindows(pages_per_prompt=0)
