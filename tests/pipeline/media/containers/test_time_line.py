"""Seconds are those that players show, also where a clock starts again, leaps, or runs before."""

import io

import av
import numpy as np
import pytest

from pipeline.media.containers.packets import read_moved_packets
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.windows import TimeWindows
from pipeline.status import ErrorCode
from tests.clips import make_audio, make_video
from tests.pipeline.decoding import decode_video
from tests.pipeline.videos import RATE, numbers, refusal

ALL = FrameSampling(num_frames=1000)


def joined(container: str, second_s: float, *, num_b_frames: int = 2) -> bytes:
    """Two files in one: frames 0 to 19 from 0 s on, and frames 20 to 39 from `second_s` on."""
    options = {
        "num_b_frames": num_b_frames,
        "codec": "mpeg2video" if container == "mpeg" else "libx264",
    }
    times_s = [second_s + number / RATE for number in range(20)] if second_s else None
    first = make_video(container, numbers=range(20), **options)
    second = make_video(container, numbers=range(20, 40), times_s=times_s, **options)
    return first + (second[13:] if container == "flv" else second)


@pytest.mark.parametrize(
    ("container", "second_s"),
    [
        pytest.param("mpegts", 0.0, id="ts that starts again"),
        pytest.param("mpegts", 15.0, id="ts that leaps 13 s"),
        pytest.param("mpegts", 100.0, id="ts that leaps 98 s"),
        pytest.param("mpegts", 95_000.0, id="ts that leaps a day"),
        pytest.param("flv", 0.0, id="flv that starts again"),
        pytest.param("mpeg", 0.0, id="ps that starts again"),
    ],
)
def test_a_clock_that_starts_again_or_leaps_goes_on(container, second_s):
    source = joined(container, second_s)
    frames = decode_video(source, ALL)
    assert numbers(frames) == list(range(40))
    assert np.diff(frames.timestamps_s) * RATE == pytest.approx(np.ones(39), abs=1.01)
    assert frames.timestamps_s[-1] == pytest.approx(3.9, abs=0.21)
    few = decode_video(source, FrameSampling(num_frames=2))
    assert numbers(few) == pytest.approx([10, 30], abs=1)
    assert set(few.timestamps_s) <= set(frames.timestamps_s)


def test_a_joined_ts_is_reached_without_decoding_all(monkeypatch):
    source = joined("mpegts", 100.0)
    monkeypatch.setattr(
        "pipeline.media.video._Decoding.decode_from_start", lambda *_: pytest.fail("read through")
    )
    assert numbers(decode_video(source, FrameSampling(num_frames=1), span_s=(3.0, 4.0))) == [35]


@pytest.mark.parametrize("container", ["mp4", "matroska", "flv"])
def test_a_pause_that_players_show_stays(container):
    times_s = [
        *(number / RATE for number in range(5)),
        *(20 + number / RATE for number in range(5)),
    ]
    source = make_video(container, numbers=range(10), times_s=times_s, num_b_frames=0)
    assert decode_video(source, ALL).timestamps_s == pytest.approx(times_s, abs=0.002)


def with_sound(container: str, late_s: float, pause_s: float = 0.0) -> bytes:
    """Sound from 0 s on, and 20 frames from `late_s` on, with a pause after the tenth."""
    times_s = [late_s + pause_s * (number >= 10) + number / RATE for number in range(20)]
    file = io.BytesIO()
    picture = make_video("matroska", numbers=range(20), times_s=times_s, num_b_frames=0)
    with (
        av.open(io.BytesIO(picture), "r") as video,
        av.open(io.BytesIO(make_audio("matroska", 2 + late_s + pause_s, 48_000)), "r") as audio,
        av.open(file, "w", format=container) as output,
    ):
        copies = {
            source: output.add_stream_from_template(source.streams[0]) for source in (video, audio)
        }
        packets = [(each, copies[source]) for source in copies for each in source.demux()]
        stored = [each for each in packets if each[0].size]
        for packet, copy in sorted(stored, key=lambda each: (each[0].pts or 0) * each[0].time_base):
            packet.stream = copy
            output.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_time_zero_is_that_of_the_sound_if_it_begins_first(container):
    source = with_sound(container, 1.0)
    frames = decode_video(source, ALL)
    expected = 1.0 + np.arange(20) / RATE
    assert frames.timestamps_s == pytest.approx(expected, abs=0.03)  # sound has a lead-in
    assert frames.facts.duration_s == pytest.approx(2.0, abs=0.03)
    # Seconds of spans, and of frames that are asked for, are those that a player shows.
    one = decode_video(source, FrameSampling(num_frames=1), span_s=(1.6, 1.72))
    assert numbers(one) == [6]
    at = FrameSampling(num_frames=None, at_s=(0.0, 2.05))
    assert numbers(decode_video(source, at)) == [0, 10]
    # A span that begins before the picture is only as long as the picture is shown.
    assert numbers(decode_video(source, FrameSampling(num_frames=1), span_s=(0.0, 2.1))) == [5]
    error = refusal(source, span_s=(0.0, 0.5))
    assert error.code == ErrorCode.NO_FRAMES
    assert "the span ends at 0.500 s, the video begins at 1.0" in error.message


def test_a_window_before_the_picture_is_an_error_of_its_own():
    from pipeline.media.display import FrameRequest
    from pipeline.media.video import decode_video as decode_windows

    windows = decode_windows(
        with_sound("matroska", 1.5),
        [FrameRequest(sampling=FrameSampling(num_frames=2))],
        windows=TimeWindows(length_s=1.0),
    )
    assert [window.start for window in windows] == [0.0, 1.0, 2.0, 3.0]
    assert [len(window.media) for window in windows] == [0, 1, 1, 1]
    assert windows[0].error is not None
    assert windows[0].error.code == ErrorCode.NO_FRAMES


def test_a_pause_of_the_picture_alone_is_no_leap_of_the_clock():
    frames = decode_video(with_sound("mpegts", 0.0, pause_s=12.0), ALL)
    assert numbers(frames) == list(range(20))
    assert np.diff(frames.timestamps_s)[9] == pytest.approx(12.1, abs=0.01)


def test_sound_and_picture_stay_together_where_a_file_was_joined():
    part = with_sound("mpegts", 0.5)
    with av.open(io.BytesIO(part + part), "r") as container:
        stream = container.streams.video[0]
        packets = [
            packet
            for packet, _ in read_moved_packets(container, stream)
            if packet is not None and packet.pts is not None
        ]
        assert stream.time_base is not None
        times_s = np.array([float((p.pts or 0) * stream.time_base) for p in packets])
    assert len(times_s) == 40
    # The sound of the first part ends after 2.5 s; its picture and that of the second come late.
    assert times_s[20] - times_s[0] == pytest.approx(2.5, abs=0.1)
    assert (np.diff(times_s) > 0).all()
