"""Damaged videos, and files that cannot be read: what can be decoded comes out, and is counted."""

import io
from pathlib import Path

import numpy as np
import pytest

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.schema import ErrorCode
from tests.clips import make_video, real_clips
from tests.pipeline.decoding import decode_video
from tests.pipeline.videos import (
    EIGHT,
    EVERY,
    NUM_FRAMES,
    RATE,
    no_sockets,  # noqa: F401, a fixture
    numbers,
    refusal,
    video,
)

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
    # Time 0 is that of the first packet, which cannot be decoded.
    first = round(shown[0] - frames.timestamps_s[0] * RATE)
    assert 0 < first < shown[0]
    assert frames.timestamps_s * RATE == pytest.approx(np.array(shown) - first)


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
