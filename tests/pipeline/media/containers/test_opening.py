"""Which stream of a file is taken, and which codecs are."""

import io

import av
import numpy as np
import pytest
from av.stream import Disposition

from pipeline.media.containers.opening import open_video
from pipeline.media.containers.reader import Reader
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.status import ErrorCode
from tests.clips import RATE, make_video
from tests.pipeline.decoding import decode_video
from tests.pipeline.fuzz_media import BY_FFMPEG, by_ffmpeg
from tests.pipeline.videos import EIGHT


def two_streams(*sizes: tuple[int, int], default: int | None = None) -> bytes:
    """A file with a stream of each size; `default`, or each of them, is marked to be shown."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        streams = [output.add_stream("libx264", rate=RATE) for _ in sizes]
        for number, (stream, size) in enumerate(zip(streams, sizes, strict=True)):
            stream.width, stream.height = size
            stream.pix_fmt, stream.options = "yuv420p", {"bf": "0", "crf": "20"}
            is_shown = default is None or number == default
            shown = Disposition.default if is_shown else Disposition.dub
            stream.disposition = shown.value  # pyright: ignore[reportAttributeAccessIssue]
        for number in range(20):
            for stream, (width, height) in zip(streams, sizes, strict=True):
                noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
                frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
                frame.pts = number
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("default", "expected"), [(None, 1), (0, 0)], ids=["the best one", "the default one"]
)
def test_of_several_streams_the_one_that_players_show_is_taken(default, expected):
    sizes = ((64, 36), (96, 54))
    frames = decode_video(two_streams(*sizes, default=default), EIGHT)
    assert (frames.facts.width_px, frames.facts.height_px) == sizes[expected]
    assert frames.facts.stream == expected


@pytest.mark.parametrize("kind", BY_FFMPEG)
def test_codecs_of_archives_and_cameras_are_read_within_the_limits(kind, tmp_path, monkeypatch):
    source = by_ffmpeg(kind, tmp_path)
    frames = decode_video(source, EIGHT)
    assert frames.rgb.shape == (8, 120, 256, 3)
    assert frames.facts.num_decode_errors == 0
    with pytest.raises(MediaError, match="--max-pixels"):
        decode_video(source, EIGHT, limits=MediaLimits(max_pixels=20_000))
    # The decoder itself refuses, too, where the header of a file says less than its frames.
    monkeypatch.setattr(MediaLimits, "check_pixels", lambda *_: None)
    with pytest.raises(MediaError) as caught:
        decode_video(source, EIGHT, limits=MediaLimits(max_pixels=20_000))
    assert caught.value.code == ErrorCode.MEDIA_CORRUPT


def test_the_tiles_of_a_picture_are_no_video(monkeypatch):
    """FFmpeg marks the tiles of a HEIF picture as dependent streams."""
    source = make_video("mp4")
    monkeypatch.setattr("pipeline.media.containers.opening.is_dependent", lambda _: True)
    with (
        pytest.raises(MediaError, match="a picture that is stored in tiles"),
        open_video(Reader(source), MediaLimits()),
    ):
        pass
