"""Pictures of more than 8 bits, of floats, of ink and of Lab: the brightness that they show."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError
from pipeline.status import ErrorCode
from tests.pipeline.decoding import decode_media
from tests.pipeline.media.pictures.heif_files import coded_av1, heif
from tests.pipeline.media.pictures.tiff_files import tiff_file

ONE = FrameSampling(num_frames=1)
RAMP = np.linspace(0.0, 1.0, 64 * 64).reshape(64, 64)
WHITE_IS_ZERO = {262: 0}


def tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", **options)
    return file.getvalue()


def grey(content: bytes) -> np.ndarray:
    return decode_media(content, ONE).rgb[0, ..., 0].astype(int)


def test_floats_from_0_to_1_are_black_to_white():
    assert np.abs(grey(tiff(RAMP.astype(np.float32))) - 255 * RAMP).max() <= 0.5
    inverted = grey(tiff(RAMP.astype(np.float32), tiffinfo=WHITE_IS_ZERO))
    assert np.abs(inverted - 255 * (1 - RAMP)).max() <= 1


def test_a_few_highlights_above_1_are_white():
    values = RAMP.astype(np.float32)
    values[0, :8] = 40.0
    assert grey(tiff(values))[0, :8].tolist() == [255] * 8


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(RAMP.astype(np.float32) * 255, id="floats to 255"),
        pytest.param(np.full((8, 8), np.nan, np.float32), id="no numbers"),
        pytest.param((RAMP * 1000).astype(np.int32), id="32 bits"),
    ],
)
def test_samples_without_a_known_brightness_are_refused(values):
    with pytest.raises(MediaError, match="scale them to") as caught:
        grey(tiff(values))
    assert caught.value.code == ErrorCode.MEDIA_UNSUPPORTED


def test_16_bits_show_their_high_byte_also_where_white_is_zero():
    values = (RAMP * 65535).astype(np.uint16)
    assert (grey(tiff(values)) == values >> 8).all()
    assert (grey(tiff(values, tiffinfo=WHITE_IS_ZERO)) == 255 - (values >> 8)).all()


def test_12_bits_show_their_high_bits():
    black_grey_white = bytes.fromhex("000 800 fff 000".replace(" ", ""))
    content = tiff_file(black_grey_white, (4, 1), (12,))
    assert grey(content)[0].tolist() == [0, 128, 255, 0]


def test_floats_in_three_channels_are_refused_by_their_kind():
    ones = np.ones((4, 4, 3), "<f4").tobytes()
    with pytest.raises(MediaError, match=r"\(32, 32, 32\) bits, sample format") as caught:
        grey(tiff_file(ones, (4, 4), (32, 32, 32), {339: 3}))
    assert caught.value.code == ErrorCode.MEDIA_UNSUPPORTED


def test_colours_of_lab_become_rgb():
    file = io.BytesIO()
    Image.new("LAB", (8, 8), (136, 208, 195)).save(file, "TIFF")  # L* 53, a* 80, b* 67: red
    red = decode_media(file.getvalue(), ONE).rgb[0, 4, 4].astype(int)
    assert red == pytest.approx([254, 0, 0], abs=12)


def test_ink_is_shown_as_light():
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("TIFF", "JPEG"):
        file = io.BytesIO()
        ink.save(file, kind)
        red = decode_media(file.getvalue(), ONE).rgb[0, 8, 8].astype(int)
        assert red == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_an_avif_of_high_dynamic_range_is_toned_as_a_video_is(transfer):
    from pipeline.media.hdr import to_sdr

    y, x = np.mgrid[:64, :64]
    coded = coded_av1(np.dstack([x * 2, x + y, y * 2]).astype(np.uint8))
    primaries_transfer_matrix = np.array([9, transfer, 6], ">u2").tobytes()
    content = heif([coded], colors=b"nclx" + primaries_transfer_matrix + b"\x80")

    shown = decode_media(content, ONE).rgb[0].astype(int)

    expected = to_sdr(coded.rgb.astype(np.uint16) * 257, transfer).astype(int)
    assert np.abs(shown - expected).mean() < 3
    assert np.abs(shown - coded.rgb).mean() > 10
