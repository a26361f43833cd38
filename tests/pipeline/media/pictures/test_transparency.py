"""Transparent pictures: what shows through them, in each format and by each way to say it."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.media.decode import decode_media
from pipeline.media.display import FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.windows import PageWindows
from tests.pipeline.media.pictures.png_files import chunk, png_file
from tests.pipeline.media.pictures.tiff_files import bmp_with_alpha

SAMPLING = FrameSampling(num_frames=1)


def words() -> Image.Image:
    """Black words on nothing, over black."""
    image = Image.new("RGBA", (60, 40))
    ImageDraw.Draw(image).text((4, 4), "41", fill=(0, 0, 0, 255), font_size=28)
    return image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def palette(**options) -> bytes:
    image = Image.new("P", (60, 40))
    image.putpalette([255, 0, 255, 30, 200, 30])
    ImageDraw.Draw(image).rectangle((20, 10, 40, 30), fill=1)
    return saved(image, options.pop("kind", "PNG"), **options)


def keyed() -> bytes:
    image = Image.new("RGB", (60, 40), (255, 0, 255))
    ImageDraw.Draw(image).rectangle((20, 10, 40, 30), fill=(30, 200, 30))
    return saved(image, "PNG", transparency=(255, 0, 255))


FILES = {
    "png": saved(words(), "PNG"),
    "png, grey": saved(words().convert("LA"), "PNG"),
    "png, one colour": keyed(),
    "png, one entry": palette(transparency=0),
    "png, all entries": palette(transparency=bytes([0, 255])),
    "webp": saved(words(), "WEBP", lossless=True),
    "webp, lossy": saved(words(), "WEBP"),
    "gif": palette(kind="GIF", transparency=0),
    "tiff": saved(words(), "TIFF"),
    "avif": saved(words(), "AVIF", quality=100, subsampling="4:4:4"),
}


def shown(content: bytes, background: str | None) -> np.ndarray:
    request = FrameRequest(sampling=SAMPLING, background=background)
    (window,) = decode_media(content, [request])
    return window.media[0].rgb[0]


@pytest.mark.parametrize("name", FILES)
def test_white_shows_through_or_the_colour_that_is_asked_for(name):
    content = FILES[name]
    white, navy = shown(content, "#ffffff"), shown(content, "#000080")
    assert white[2, 2] == pytest.approx([255, 255, 255], abs=2)
    assert navy[2, 2].astype(int) == pytest.approx([0, 0, 128], abs=3)
    is_drawn = (np.abs(white.astype(int) - navy) < 8).all(axis=-1)
    assert 0.02 < is_drawn.mean() < 0.4


def test_without_a_background_the_colours_under_the_transparency_show():
    assert (shown(FILES["png"], None) == 0).all()
    assert shown(FILES["png, one entry"], None)[2, 2].tolist() == [255, 0, 255]


def test_each_request_has_its_own_background():
    requests = [FrameRequest(sampling=SAMPLING, background=b) for b in ("#ff0000", "#00ff00")]
    red, green = (w.media[0].rgb[0, 2, 2].tolist() for w in decode_media(FILES["png"], requests))
    assert (red, green) == ([255, 0, 0], [0, 255, 0])
    pages = decode_media(FILES["tiff"], requests[:1], windows=PageWindows())
    assert pages[0].media[0].rgb[0, 2, 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("bits", "value"), [(2, 1), (2, 3), (4, 5), (8, 7), (16, 40_000)])
def test_the_transparent_grey_of_a_png_is_found_at_any_depth(bits, value):
    values = np.array([[[0], [value], [(1 << bits) - 1 - value]]])
    clear = chunk(b"tRNS", struct.pack(">H", value))
    pixels = shown(png_file(values, bits, 0, clear), "#ff0000")
    assert (pixels[0] == (255, 0, 0)).all(axis=-1).tolist() == [False, True, False]


def test_a_fourth_channel_of_zeros_in_a_bitmap_is_not_transparency():
    rgba = np.full((8, 8, 4), (10, 20, 30, 0), np.uint8)
    assert shown(bmp_with_alpha(rgba), "#ffffff")[2, 2].tolist() == [10, 20, 30]
    rgba[0, 0, 3] = 255
    assert shown(bmp_with_alpha(rgba), "#ffffff")[2, 2].tolist() == [255, 255, 255]
