"""Frames are upright, cropped and whole, also if a video turns half-way."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from pipeline.media.frame_sampling import FrameSampling
from tests.clips import RATE, make_video, picture
from tests.pipeline.decoding import decode_video
from tests.pipeline.media.test_media import turned
from tests.pipeline.videos import EVERY, sequential, video

# a, b, c, d of the display matrix, which shows the point (x, y) at (ax + cy, bx + dy)
MATRICES = {
    (1, 0, 0, 1): lambda rgb: rgb,
    (-1, 0, 0, 1): lambda rgb: rgb[:, ::-1],
    (1, 0, 0, -1): lambda rgb: rgb[::-1],
    (-1, 0, 0, -1): lambda rgb: rgb[::-1, ::-1],
    (0, 1, 1, 0): lambda rgb: rgb.transpose(1, 0, 2),
    (0, 1, -1, 0): lambda rgb: rgb.transpose(1, 0, 2)[:, ::-1],
    (0, -1, 1, 0): lambda rgb: rgb.transpose(1, 0, 2)[::-1],
    (0, -1, -1, 0): lambda rgb: rgb.transpose(1, 0, 2)[::-1, ::-1],
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_display_matrices_are_followed(matrix):
    frames = decode_video(turned(video("h264 in mp4"), matrix), EVERY)
    truth = [MATRICES[matrix](rgb) for rgb in sequential("h264 in mp4")]
    assert np.array_equal(frames.rgb, truth)


def test_the_expected_pixels_of_the_matrices_are_those_of_the_formula():
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)  # y, x
    for (a, b, c, d), expected in MATRICES.items():
        points = {(a * x + c * y, b * x + d * y): stored[y, x] for y in range(2) for x in range(3)}
        left, top = (min(point[axis] for point in points) for axis in (0, 1))
        shown = expected(stored)
        for (x, y), value in points.items():
            assert shown[y - top, x - left] == value


def jpegs(orientation: int) -> bytes:
    """A video of JPEGs that have an orientation in their EXIF data."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(3):
            packet = av.Packet(jpeg(number, orientation))
            packet.stream, packet.time_base = stream, Fraction(1, RATE)
            packet.pts = packet.dts = number
            output.mux(packet)
    return file.getvalue()


def jpeg(number: int, orientation: int) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(picture(number, 64, 48))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_side_data_that_pyav_does_not_list_is_no_matter(orientation):
    """FFmpeg gives frames of such a video their EXIF data, a kind that PyAV 18 does not know."""
    frames = decode_video(jpegs(orientation), FrameSampling(num_frames=3))
    for number, rgb in enumerate(frames.rgb):
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg(number, orientation))))
        assert rgb.shape == np.asarray(upright).shape
        assert np.abs(rgb.astype(int) - np.asarray(upright)).mean() < 6


def test_a_video_that_turns_half_way_is_whole_and_not_stretched():
    times_s = [2 + number / RATE for number in range(20)]
    wide = make_video("mpegts", numbers=range(20), num_b_frames=0)
    tall = make_video(
        "mpegts", numbers=range(20, 40), times_s=times_s, size=(48, 64), num_b_frames=0
    )
    frames = decode_video(wide + tall, FrameSampling(num_frames=1000))
    assert frames.rgb.shape == (40, 48, 64, 3)
    alone = decode_video(tall, FrameSampling(num_frames=1000), fit=lambda *_: (36, 48))
    assert np.array_equal(frames.rgb[20:, :, 14:50], alone.rgb)
    assert (frames.rgb[20:, :, :14] == 0).all()
    assert (frames.rgb[20:, :, 50:] == 0).all()
