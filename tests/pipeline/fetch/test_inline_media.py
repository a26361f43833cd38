"""Text that holds the media itself is decoded; text that is neither media nor a path is named."""

import base64
import io
from urllib.parse import quote

import pytest
from PIL import Image

from pipeline.fetch.media_access import MediaAccess
from pipeline.media.limits import MediaError
from pipeline.status import ErrorCode
from tests.clips import make_video


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, kind)
    return file.getvalue()


JPEG = picture("JPEG")
PACKED = base64.b64encode(JPEG).decode()


def refusal(media: str, **options) -> MediaError:
    with pytest.raises(MediaError) as caught:
        MediaAccess(**options).open(media)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"data:image/jpeg;base64,{PACKED}", id="data URI"),
        pytest.param(f" DATA:image/jpeg;charset=x;BASE64,{PACKED}\n", id="capitals, white space"),
        pytest.param(f"data:;base64,{PACKED}", id="no type"),
        pytest.param(f"data:image/jpeg;base64,{quote(PACKED, safe='')}", id="both encodings"),
        pytest.param(f"data:image/jpeg,{quote(JPEG)}", id="percent-encoded"),
        pytest.param(f"data:image/jpeg;base64,{PACKED.rstrip('=')}", id="no padding"),
        pytest.param(PACKED, id="bare"),
        pytest.param(base64.encodebytes(JPEG).decode(), id="bare, in lines"),
        pytest.param(base64.urlsafe_b64encode(JPEG).decode().rstrip("="), id="bare, URL-safe"),
    ],
)
def test_media_in_text_are_decoded(text):
    assert MediaAccess().open(text) == JPEG
    assert MediaAccess().open({"bytes": None, "path": text}) == JPEG


@pytest.mark.parametrize(
    "media",
    [picture("PNG"), picture("GIF"), picture("WEBP"), picture("BMP"), picture("TIFF")]
    + [make_video(kind, numbers=range(3)) for kind in ("mp4", "matroska", "mpegts", "avi")]
    + [b"%PDF-1.7\n" + bytes(99)],
)
def test_bare_base64_of_each_format_is_known(media):
    assert MediaAccess().open(base64.b64encode(media).decode()) == media


@pytest.mark.parametrize("text", ["data:image/png;base64,AAA*", f"data:;base64,{PACKED[:41]}"])
def test_base64_that_is_damaged_is_an_error_of_the_row(text):
    error = refusal(text)
    assert error.code == ErrorCode.MEDIA_CORRUPT
    assert error.message.startswith("the row's base64 text cannot be decoded: ")


@pytest.mark.parametrize("text", [PACKED, f"data:,{quote(JPEG)}", f"data:;base64,{PACKED}"])
def test_media_in_text_over_the_limit_are_refused(text):
    assert refusal(text, max_bytes=len(JPEG) // 4).code == ErrorCode.MEDIA_TOO_LARGE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(base64.b64encode(bytes(300)).decode(), "looks like base64", id="base64"),
        pytest.param("/" + "a" * 299, "looks like base64", id="base64 with a slash"),
        pytest.param(repr(JPEG), "the text of Python bytes", id="repr of bytes"),
        pytest.param(repr({"bytes": JPEG, "path": None}), "text of a structure", id="structure"),
        pytest.param("C:\\clips\\a.mp4", "a path of Windows", id="Windows"),
        pytest.param("\\\\server\\clips\\a.mp4", "a path of Windows", id="Windows server"),
    ],
)
def test_text_that_is_no_path_is_named(text, told):
    error = refusal(text)
    assert told in error.message
    assert len(error.message) < 1000


@pytest.mark.parametrize("text", ["clip", "a/b/c", "/9j/4AAQ", "x" * 255, "iVBORw0KGgo.png"])
def test_names_of_files_are_no_base64(text, tmp_path):
    error = refusal(text, base=str(tmp_path))
    assert error.code in (ErrorCode.MEDIA_MISSING, ErrorCode.URI_NOT_ALLOWED)
    assert "base64" not in error.message
