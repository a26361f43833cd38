"""Files of several pictures: which of them are shown, and upright, each as it says."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from pipeline.media.decode import decode_media as decode_windows
from pipeline.media.display import FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError
from pipeline.media.windows import PageWindows
from pipeline.status import ErrorCode
from tests.pipeline.decoding import decode_media

ALL = FrameSampling(num_frames=None, fps=10.0)
NEW_SUBFILE_TYPE, ORIENTATION = 254, 274


def tiff(*pages: tuple[Image.Image, dict[int, int | bytes]]) -> bytes:
    """A TIFF of pages with their own tags."""
    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file, new=True) as writer:
        for image, tags in pages:
            image.save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    return file.getvalue()


def pages_of(content: bytes) -> list[np.ndarray]:
    request = FrameRequest(sampling=FrameSampling())
    windows = decode_windows(content, [request], windows=PageWindows())
    return [window.media[0].rgb[0] for window in windows]


RED, BLUE = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (60, 40), "blue")
SMALL = Image.new("RGB", (6, 4), "lime")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_upright_and_its_size_is_that_of_what_is_shown(orientation):
    image = RED.copy()
    image.paste((0, 255, 0), (0, 0, 6, 4))  # the corner where the stored picture begins
    frames = decode_media(tiff((image, {ORIENTATION: orientation})), ALL)
    size = (40, 60) if orientation >= 5 else (60, 40)
    assert (frames.facts.width_px, frames.facts.height_px) == size
    assert frames.rgb.shape == (1, size[1], size[0], 3)
    rows, columns = np.nonzero(frames.rgb[0, ..., 1])
    is_below, is_right = rows.min() > 0, columns.min() > 0
    corners = {
        1: (0, 0),
        2: (0, 1),
        3: (1, 1),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (1, 1),
        8: (1, 0),
    }
    assert (is_below, is_right) == corners[orientation]
    assert frames.facts.rotation == [0, 0, 180, 180, 90, 90, 270, 270][orientation - 1]


@pytest.mark.parametrize("text", ['tiff:Orientation="6"', "tiff:Orientation='6'"])
def test_a_tiff_that_is_turned_by_xmp_alone_is_upright(text):
    frames = decode_media(tiff((RED, {700: f"<rdf:Description {text}/>".encode()})), ALL)
    assert frames.rgb.shape == (1, 60, 40, 3)
    assert frames.facts.rotation == 90
    both = tiff((RED, {ORIENTATION: 1, 700: f"<rdf:Description {text}/>".encode()}))
    assert decode_media(both, ALL).rgb.shape == (1, 40, 60, 3)


def test_the_pages_of_a_scan_are_turned_each_for_itself():
    content = tiff((RED, {ORIENTATION: 1}), (BLUE, {ORIENTATION: 6}), (RED, {ORIENTATION: 8}))
    assert [page.shape for page in pages_of(content)] == [(40, 60, 3), (60, 40, 3), (60, 40, 3)]


def test_previews_and_masks_of_a_tiff_are_no_pages():
    content = tiff((SMALL, {NEW_SUBFILE_TYPE: 1}), (RED, {}), (SMALL, {NEW_SUBFILE_TYPE: 5}))
    (page,) = pages_of(content)
    assert page.shape == (40, 60, 3)
    assert decode_media(content, ALL).rgb.shape == (1, 40, 60, 3)


def test_a_tiff_of_previews_alone_is_refused_as_a_raw_file():
    with pytest.raises(MediaError, match="camera's raw file") as caught:
        decode_media(tiff((SMALL, {NEW_SUBFILE_TYPE: 1})), ALL)
    assert caught.value.code == ErrorCode.MEDIA_UNSUPPORTED


def test_the_hidden_default_image_of_an_animated_png_is_no_frame():
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (50 * at, 0, 0)) for at in range(4)]
    durations = [100, 200, 300]
    options = {"save_all": True, "append_images": frames[1:], "duration": durations}
    frames[0].save(file, "PNG", default_image=True, **options)
    decoded = decode_media(file.getvalue(), ALL)
    assert decoded.rgb[:, 4, 4, 0].tolist() == [50, 100, 150]
    assert decoded.timestamps_s == pytest.approx([0.0, 0.1, 0.3])
    assert decoded.facts.duration_s == pytest.approx(0.6)
    assert pages_of(file.getvalue())[0][4, 4, 0] == 50


@pytest.mark.parametrize("milliseconds", [70, 200, 330])
def test_frames_of_equal_length_are_of_a_constant_rate(milliseconds):
    frames = [Image.new("RGB", (8, 8), (50 * at, 0, 0)) for at in range(5)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds)
    decoded = decode_media(file.getvalue(), FrameSampling(num_frames=100))
    assert not decoded.facts.is_vfr
    assert len(decoded.rgb) == 5


@pytest.mark.parametrize("seconds", [(0.0,), (0.0, 3.0)])
def test_a_still_picture_is_what_is_shown_at_second_0(seconds):
    file = io.BytesIO()
    RED.save(file, "PNG")
    frames = decode_media(file.getvalue(), FrameSampling(num_frames=None, at_s=seconds))
    assert frames.timestamps_s.tolist() == [0.0]
    with pytest.raises(MediaError, match=r"none of the seconds \[3.0\]"):
        decode_media(file.getvalue(), FrameSampling(num_frames=None, at_s=(3.0,)))
