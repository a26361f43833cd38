"""Videos of all kinds that we read; each frame shows its number. And a slow, obvious decoder."""

import io
import socket
from functools import cache

import av
import numpy as np
import pytest

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError
from tests.clips import make_video, number_of
from tests.pipeline.decoding import decode_video

RATE = 10
NUM_FRAMES = 48
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
    "h264 in asf": ("asf", "libx264", {}),
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
    """Decode every frame of a video, in the order of display, in the slow and obvious way."""
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
    """Fail if Python opens a socket; tests with a listener watch FFmpeg."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection"))
        yield
