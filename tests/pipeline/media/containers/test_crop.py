"""What a container cuts off its pictures is not shown; a broken crop cuts nothing."""

import struct

import numpy as np
import pytest

from pipeline.media.containers import boxes, matroska
from pipeline.media.containers.reader import Reader
from pipeline.media.frame_sampling import FrameSampling
from tests.clips import make_video
from tests.pipeline.decoding import decode_video

FOUR = FrameSampling(num_frames=4)
WIDTH, HEIGHT = 64, 48


def with_clap(source: bytes, *numbers: int) -> bytes:
    """Add a `clap` box of eight numbers to the video of an MP4 file that ends with its header."""
    data = bytearray(source)
    entry = data.index(b"stsd", data.index(b"vide")) + 12
    data[entry + 86 : entry + 86] = struct.pack(">I4s8i", 40, b"clap", *numbers)
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = data.rindex(kind, 0, entry + 8) - 4
        data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + 40)
    return bytes(data)


def clap(left: int, top: int, right: int, bottom: int) -> bytes:
    rest = (WIDTH - left - right, 1, HEIGHT - top - bottom, 1)
    return with_clap(make_video(), *rest, left - right, 2, top - bottom, 2)


def with_pixel_crop(left: int, top: int, right: int, bottom: int) -> bytes:
    """A Matroska file with PixelCrop, in place of the size of its pixels for display."""
    data = bytearray(make_video("matroska", container_options={"write_crc32": "0"}))
    kinds, sides = (0xCC, 0xBB, 0xDD, 0xAA), (left, top, right, bottom)
    crop = b"".join(bytes([0x54, *each]) for each in zip(kinds, [0x81] * 4, sides, strict=True))
    start = data.index(bytes([0xB0, 0x81, WIDTH, 0xBA, 0x81, HEIGHT]))  # PixelWidth, PixelHeight
    segment = data.index(b"\x18\x53\x80\x67") + 4
    tracks = data.rindex(b"\x16\x54\xae\x6b", 0, start) + 4
    track = tracks + _num_size_bytes(data, tracks) + 1
    for place in (segment, tracks, track, data.rindex(b"\xe0", track, start) + 1):
        num_bytes = _num_size_bytes(data, place)
        size = int.from_bytes(data[place : place + num_bytes]) + len(crop)
        data[place : place + num_bytes] = size.to_bytes(num_bytes)
    data[start:start] = crop
    return bytes(data)


def _num_size_bytes(data: bytearray, place: int) -> int:
    return 9 - data[place].bit_length()


@pytest.mark.parametrize("made", [clap, with_pixel_crop], ids=["mp4 clap", "mkv PixelCrop"])
@pytest.mark.parametrize("sides", [(0, 12, 0, 12), (3, 1, 6, 8), (16, 0, 0, 0)])
def test_what_is_cut_off_is_not_shown(made, sides):
    left, top, right, bottom = sides
    frames = decode_video(made(*sides), FOUR)
    whole = decode_video(make_video(), FOUR).rgb
    assert (frames.facts.width_px, frames.facts.height_px) == frames.rgb.shape[2:0:-1]
    expected = whole[:, top : HEIGHT - bottom, left : WIDTH - right]
    assert frames.rgb.shape == expected.shape
    assert np.abs(frames.rgb.astype(int) - expected).mean() < 6  # odd rows share colours
    if not any(side % 2 for side in sides):
        assert np.array_equal(frames.rgb, expected)
    fitted = decode_video(
        made(*sides), FOUR, fit=lambda width, height, _: (width // 2, height // 2)
    )
    assert fitted.rgb.shape[1:3] == (expected.shape[1] // 2, expected.shape[2] // 2)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param((64, 1, 48, 1, 0, 1, 0, 1), id="all"),
        pytest.param((80, 1, 48, 1, 0, 1, 0, 1), id="more than there is"),
        pytest.param((32, 0, 48, 1, 0, 1, 0, 1), id="divided by zero"),
        pytest.param((-32, 1, 48, 1, 0, 1, 0, 1), id="less than nothing"),
        pytest.param((32, 1, 48, 1, 1000, 1, 0, 1), id="beside the picture"),
        pytest.param((2**31 - 1, 1, 1, 2**31 - 1, -(2**31), 1, 7, 3), id="huge"),
    ],
)
def test_a_broken_clean_aperture_cuts_nothing(numbers):
    assert decode_video(with_clap(make_video(), *numbers), FOUR).rgb.shape == (4, HEIGHT, WIDTH, 3)


def test_mutated_structures_are_read_to_an_end():
    random = np.random.default_rng(0)
    for source in 100 * [clap(2, 2, 2, 2), with_pixel_crop(2, 2, 2, 2)]:
        changed = np.frombuffer(source, np.uint8).copy()
        where = random.integers(0, len(changed), 200)
        changed[where] = random.integers(0, 256, len(where))
        for cut in (len(changed), int(random.integers(len(changed)))):
            reader = Reader(changed[:cut].tobytes())
            for sides in (boxes.clean_aperture(reader, 1), matroska.pixel_crop(reader, 0)):
                assert sides is None or len(sides) == 4
