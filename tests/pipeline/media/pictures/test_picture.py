"""Pictures: which frames they give, what is refused, and the traps of each format."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.status import ErrorCode
from tests.pipeline.decoding import decode_media

EIGHT = FrameSampling(num_frames=8)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def picture(kind: str = "PNG", size=(60, 40), mode: str = "RGB", **options) -> bytes:
    """A picture that is red at the left and blue at the right."""
    rgb = np.zeros((size[1], size[0], 3), np.uint8)
    rgb[:, : size[0] // 2, 0] = rgb[:, size[0] // 2 :, 2] = 250
    file = io.BytesIO()
    Image.fromarray(rgb).convert(mode).save(file, kind, **options)
    return file.getvalue()


def animation(kind: str, num_frames: int = 4) -> bytes:
    """Frames of growing grey, of which the k-th lasts (k + 1) tenths of a second."""
    frames = [Image.new("RGB", (32, 24), (50 * at,) * 3) for at in range(num_frames)]
    durations = [100 * (at + 1) for at in range(num_frames)]
    file = io.BytesIO()
    lossless = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(
        file, kind, save_all=True, append_images=frames[1:], duration=durations, **lossless
    )
    return file.getvalue()


def refusal(source, **options) -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode_media(source, EIGHT, **options)
    return caught.value


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_is_one_frame(kind):
    frames = decode_media(picture(kind), EIGHT)
    assert frames.rgb.shape == (1, 40, 60, 3)
    assert frames.rgb[0, 20, 5].astype(int) == pytest.approx([250, 0, 0], abs=6)
    assert frames.rgb[0, 20, 55].astype(int) == pytest.approx([0, 0, 250], abs=6)
    assert frames.timestamps_s.tolist() == [0.0]
    facts = frames.facts
    assert (facts.codec, facts.duration_s, facts.width_px) == (kind.lower(), 0.0, 60)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_every_way_to_store_pixels_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    if mode == "I;16":
        file = io.BytesIO()
        Image.fromarray(np.full((40, 60), 200 << 8, np.uint16)).save(file, "PNG")
        assert (decode_media(file.getvalue(), EIGHT).rgb == 200).all()
    else:
        assert decode_media(picture(kind, mode=mode), EIGHT).rgb.shape == (1, 40, 60, 3)


def test_pictures_are_upright_and_fitted():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    asked = []

    def fit(width_px, height_px, num_frames):
        asked.append((width_px, height_px, num_frames))
        return 20, 30

    frames = decode_media(picture("JPEG", exif=exif.tobytes()), EIGHT, fit=fit)
    assert asked == [(40, 60, 1)]
    assert frames.rgb.shape == (1, 30, 20, 3)
    assert frames.rgb[0, 2, 10, 0] > 200 > 50 > frames.rgb[0, 28, 10, 0]
    assert frames.facts.rotation == 90


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_a_video(kind):
    frames = decode_media(animation(kind), FrameSampling(num_frames=None, fps=10))
    assert frames.timestamps_s == pytest.approx([0.0, 0.1, 0.3, 0.6])
    assert frames.facts.duration_s == pytest.approx(1.0)
    assert frames.facts.is_vfr
    greys = frames.rgb[:, 10, 10, 0].astype(int).tolist()
    assert greys == pytest.approx([0, 50, 100, 150], abs=3)
    middle = decode_media(animation(kind), EIGHT, span_s=(0.35, 0.5))
    assert middle.timestamps_s == pytest.approx([0.3])


def test_pages_are_counted_and_the_first_one_stands_for_all():
    pages = [Image.new("RGB", (8, 8), (at, 0, 0)) for at in range(20)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    assert decode_media(file.getvalue(), EIGHT).rgb.shape == (1, 8, 8, 3)
    error = refusal(file.getvalue(), limits=MediaLimits(max_pages=19))
    assert error.code == ErrorCode.MEDIA_TOO_LARGE
    assert "20 pages, the limit is 19 (--max-pages)" in error.message


def bomb(side_px: int, num_lines: int) -> bytes:
    """A white PNG with one bit a pixel, so that few bytes hold many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    line = b"\0" + b"\xff" * -(-side_px // 8)
    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(line * num_lines, 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(("side_px", "num_lines"), [(9500, 9500), (14_000, 10), (60_000, 10)])
def test_a_picture_that_unfolds_is_refused_before_it_does(side_px, num_lines):
    source = bomb(side_px, num_lines)
    assert len(source) < 24_000
    error = refusal(source)
    assert error.code == ErrorCode.MEDIA_TOO_LARGE
    assert "--max-pixels" in error.message


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_picture_cut_short_is_corrupt(kind, share):
    whole = picture(kind, size=(300, 200))
    cut = whole[: int(len(whole) * share)]
    assert refusal(cut).code == ErrorCode.MEDIA_CORRUPT


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", id="eps"),
        pytest.param(b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c red", "a"};', id="xpm"),
        pytest.param(b"8BPS" + bytes(100), id="psd"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(b"P6 1 1 255 abc", id="ppm"),
    ],
)
def test_other_formats_are_refused(source, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    assert refusal(source).code in (ErrorCode.MEDIA_UNSUPPORTED, ErrorCode.MEDIA_CORRUPT)


def test_decoding_leaves_the_settings_of_pillow_and_warnings_alone():
    most, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    refusal(bomb(9500, 10))
    assert most == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)
