"""PDFs and scans: each page becomes a picture that fits, and an attack only an error code."""

import ctypes
import io
import os
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from model.config import ImageConfig
from model.inputs.prompt import PromptError
from pipeline.media.decode import decode_media
from pipeline.media.display import FrameRequest
from pipeline.media.documents import decode_document
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import PageWindows
from pipeline.prompts.frame_view import FitFrames
from pipeline.status import ErrorCode
from tests.clips import make_video
from tests.pipeline.media.test_media_refused import listener  # noqa: F401, a fixture
from tests.pipeline.pdfs import A4, ATTACKS, encrypted, make_pdf

IN_OPEN, IN_NONBLOCK = 0x20, os.O_NONBLOCK
REQUEST = FrameRequest(sampling=FrameSampling())


@pytest.fixture(scope="module")
def decoder():
    decoder = SandboxedDecoder(
        MediaLimits(max_decode_s=2.0)
    )  # of CPU time, after which it is killed
    yield decoder
    decoder.close()


def refusal(source, **limits) -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode_document(source, fit=None, limits=MediaLimits(**limits))
    return caught.value


def test_each_page_is_drawn_at_200_dpi_and_says_what_it_is():
    pages = decode_document(make_pdf(["One", "Two", ""]), fit=None, limits=MediaLimits())

    assert [(page.start, page.end) for page in pages] == [(0, 1), (1, 2), (2, 3)]
    one, two, empty = (page.media[0] for page in pages)
    assert one.rgb.shape == (1, 2339, 1653, 3)
    assert (empty.rgb == 255).all()
    assert 0.001 < (one.rgb < 128).mean() < 0.1
    assert (one.rgb != two.rgb).any()
    assert (one.facts.codec, one.facts.width_px, one.facts.height_px) == ("pdf", *A4)


def test_colours_are_red_green_blue():
    red = make_pdf(content="1 0 0 rg 0 0 595 842 re f")

    (page,) = decode_document(red, fit=None, limits=MediaLimits())

    assert (page.media[0].rgb == (255, 0, 0)).all()


def test_a_turned_page_is_shown_upright():
    (page,) = decode_document(make_pdf(page="/Rotate 90"), fit=None, limits=MediaLimits())

    assert page.media[0].rgb.shape == (1, 1653, 2339, 3)
    assert page.media[0].facts.rotation == 90


@pytest.mark.parametrize("size", [A4, (842, 595), (1684, 2384), (200, 5000)])
def test_a_page_takes_what_the_checkpoint_allows(size):
    half = (0.5, 0.5, 0.5)
    image = ImageConfig(in_token_limit=4096, image_mean=half, image_std=half)
    fit = FitFrames(image=image, max_frame_tokens=None)

    (page,) = decode_document(make_pdf(size=size), fit=fit, limits=MediaLimits())

    _, height_px, width_px, _ = page.media[0].rgb.shape
    assert fit(width_px, height_px, 1) == (width_px, height_px)
    assert 0.95 * 4096 < (width_px / 14) * (height_px / 14) < 1.05 * 4096
    assert width_px / height_px == pytest.approx(size[0] / size[1], rel=0.02)


def test_limits_name_their_flags():
    three = make_pdf(["a", "b", "c"])
    assert "3 pages, the limit is 2 (--max-pages)" in refusal(three, max_pages=2).message
    assert "(--max-rgb-bytes)" in refusal(three, max_rgb_bytes=20_000_000).message
    assert "(--max-media-bytes)" in refusal(three, max_bytes=100).message
    (page,) = decode_document(make_pdf(), fit=None, limits=MediaLimits(max_pixels=99 * 99))
    assert page.error is not None
    assert page.error.code == ErrorCode.MEDIA_TOO_LARGE
    assert "the page measures 595 x 842 points" in page.error.message
    assert "(--max-pixels)" in page.error.message


def test_a_page_as_thin_as_a_hair_is_too_large_all_the_same():
    thin = make_pdf(size=(3e9, 0.01))
    (page,) = decode_document(thin, fit=lambda *_: (28, 28), limits=MediaLimits())

    assert page.error is not None
    assert page.error.code == ErrorCode.MEDIA_TOO_LARGE


def test_a_page_that_cannot_be_drawn_leaves_the_others():
    def picky(width_px, height_px, num_frames):
        raise PromptError("bad_prompt", f"no {width_px}")

    pages = decode_document(make_pdf(["a", "b"]), fit=picky, limits=MediaLimits())

    assert [page.error and page.error.message for page in pages] == [
        "no 1653",
        "no 1653",
    ]


def test_a_file_that_fails_while_it_is_read_is_unreadable():
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("the disk is gone")

    error = refusal(Broken(make_pdf()))

    assert error.code == ErrorCode.MEDIA_UNREADABLE
    assert "the disk is gone" in error.message


def test_the_pages_of_a_scan_are_pages_of_their_own_sizes():
    pages = [Image.new("RGB", (60, 80), "red"), Image.new("RGB", (90, 40), "blue")]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])

    red, blue = decode_media(file.getvalue(), [REQUEST], windows=PageWindows())

    assert red.media[0].rgb.shape == (1, 80, 60, 3)
    assert blue.media[0].rgb.shape == (1, 40, 90, 3)
    assert (red.start, blue.start, blue.end) == (0, 1, 2)
    assert (blue.media[0].rgb == (0, 0, 255)).all()
    assert red.media[0].facts.width_px == 60
    limits = MediaLimits(max_rgb_bytes=20_000)
    with pytest.raises(MediaError, match="--max-rgb-bytes"):
        decode_media(file.getvalue(), [REQUEST], windows=PageWindows(), limits=limits)


def test_a_video_is_no_document():
    with pytest.raises(MediaError, match="neither a PDF nor a picture") as caught:
        decode_media(make_video(numbers=range(3)), [REQUEST], windows=PageWindows())
    assert caught.value.code == ErrorCode.MEDIA_UNSUPPORTED


def test_a_pdf_among_videos_is_told_what_reads_it():
    with pytest.raises(MediaError, match="a PDF, which") as caught:
        decode_media(make_pdf(), [REQUEST])
    assert caught.value.code == ErrorCode.MEDIA_UNSUPPORTED


def test_the_decoding_process_draws_the_same_pages(decoder):
    document = make_pdf(["One", "Two"])
    expected = decode_document(document, fit=None, limits=MediaLimits())

    pages = decoder.decode_windows(document, [REQUEST], windows=PageWindows())

    for page, same in zip(pages, expected, strict=True):
        assert np.array_equal(page.media[0].rgb, same.media[0].rgb)
        assert page.media[0].facts == same.media[0].facts


@contextmanager
def nobody_opens(path):
    """Fail if a file is opened meanwhile, as the kernel reports it."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(IN_NONBLOCK)
    assert descriptor >= 0
    try:
        assert libc.inotify_add_watch(descriptor, os.fsencode(path), IN_OPEN) >= 0
        yield
        with pytest.raises(BlockingIOError):
            os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def test_the_watch_on_a_file_sees_it_opened(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    with pytest.raises(pytest.fail.Exception), nobody_opens(tmp_path / "secret"):
        (tmp_path / "secret").read_bytes()


@pytest.mark.parametrize("name", ATTACKS)
def test_harm_is_a_code_or_a_page_without_files_or_sockets(name, decoder, tmp_path, listener):  # noqa: F811
    code, make = ATTACKS[name]
    secret = tmp_path / "secret.pdf"
    secret.write_bytes(make_pdf())
    document = make(str(secret), listener)

    with nobody_opens(secret):
        try:
            pages = decoder.decode_windows(document, [REQUEST], windows=PageWindows())
        except MediaError as error:
            found = error.code
        else:
            found = pages[0].error and pages[0].error.code

    assert found == code


def test_an_encrypted_document_says_so():
    error = refusal(encrypted())
    assert error.code == ErrorCode.MEDIA_ENCRYPTED
    assert "password" in error.message
