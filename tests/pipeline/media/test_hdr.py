"""High dynamic range and more than 8 bits become a sane 8-bit picture."""

import io

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.hdr import to_sdr
from tests.pipeline.decoding import decode_video

PQ, HLG = 16, 18
# 203 cd/m2, the reference white, and 26 cd/m2, a middle grey (ITU-R BT.2408, table 1)
WHITE = {PQ: 0.58, HLG: 0.75}
GREY = {PQ: 0.38, HLG: 0.38}


def ramp(transfer: int) -> np.ndarray:
    code = np.repeat(np.arange(0, 65536, 64, dtype=np.uint16)[None, :, None], 3, axis=2)
    return to_sdr(code, transfer)[0].astype(int)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_brighter_stays_brighter_and_grey_stays_grey(transfer):
    codes = ramp(transfer)
    assert (np.diff(codes[:, 0]) >= 0).all()
    assert codes[0].tolist() == [0, 0, 0]
    assert codes[-1].tolist() == [255, 255, 255]
    assert np.ptp(codes, axis=1).max() <= 1


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_white_is_bright_and_grey_is_in_the_middle(transfer):
    codes = ramp(transfer)[:, 0]
    assert 205 <= codes[round(WHITE[transfer] * 1023)] <= 235  # room for lights above it
    assert 85 <= codes[round(GREY[transfer] * 1023)] <= 120


def test_colours_outside_of_the_small_gamut_are_clipped():
    green = np.array([[[0, 40_000, 0]]], np.uint16)
    red, green, blue = to_sdr(green, PQ)[0, 0].tolist()
    assert green > 200
    assert red == blue == 0


def encoded(pixels: np.ndarray, pix_fmt: str, options: dict[str, str]) -> bytes:
    """A few equal frames of 10 bits a channel."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx265", rate=10)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
        stream.options = {"x265-params": "log-level=none:pools=1:frame-threads=1:lossless=1"}
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb48le").reformat(format=pix_fmt)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def test_ten_bits_look_like_eight():
    shades = np.linspace(20, 235, 64).astype(np.uint16)
    pixels = np.repeat(np.tile(shades, (64, 1))[:, :, None], 3, axis=2) * 257
    frames = decode_video(encoded(pixels, "yuv420p10le", {}), FrameSampling(num_frames=1))
    assert np.abs(frames.rgb[0].astype(int) - (pixels >> 8)).max() <= 3


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_a_video_that_says_so_is_toned(transfer):
    code = round(WHITE[transfer] * 65535)
    pixels = np.full((64, 64, 3), code, np.uint16)
    options = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    frames = decode_video(encoded(pixels, "yuv420p10le", options), FrameSampling(num_frames=1))
    middle = frames.rgb[0, 32, 32].astype(int)
    assert np.ptp(middle) <= 2
    assert 205 <= middle[0] <= 235
