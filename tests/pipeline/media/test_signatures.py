"""What stands where media should be is named in the row's error; media are called nothing else."""

import base64
import gzip
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.media.decode import decode_media
from pipeline.media.display import FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError
from pipeline.media.signatures import HEAD_BYTES, describe, media_kind
from pipeline.media.windows import PageWindows
from pipeline.status import ErrorCode
from tests.clips import make_audio, make_video
from tests.pipeline.pdfs import make_pdf


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, kind)
    return file.getvalue()


def written(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", picture("JPEG"))


def archived(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))


NOT_MEDIA = {
    "login page": (
        b'<!DOCTYPE html>\n<html lang="en"><head><title> Log\n in </title></head>',
        'an HTML page with the title "Log in"',
    ),
    "page without a head": (b"\n\n<HTML><body>no</body>", "an HTML page"),
    "login page without a title": (
        b"<!DOCTYPE html><html><body>Please log in</body></html>",
        "an HTML page, which seems to ask for a login",
    ),
    "page of XHTML": (b"<?xml version='1.0'?><!DOCTYPE html><html>", "an HTML page"),
    "XML error": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>No</Message></Error>',
        'an XML error document with the code "AccessDenied": "No"',
    ),
    "XML error without a head": (
        b"<Error><Code>NoSuchKey</Code></Error>",
        'an XML error document with the code "NoSuchKey"',
    ),
    "XML": (b"\xef\xbb\xbf<?xml version='1.0'?><rss></rss>", "an XML document"),
    "SVG": (b"<?xml version='1.0'?><!-- a --><svg width='9'></svg>", "an SVG drawing"),
    "JSON error": (
        b'{"status": 1, "error": "quota exceeded"}',
        'a JSON document that says "quota exceeded"',
    ),
    "JSON": (b'[{"a": 1}]', "a JSON document"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "a Git LFS pointer, and not the file itself; `git lfs pull` fetches it",
    ),
    "annex pointer": (b"/annex/objects/SHA256E-s9--0.mp4\n", "a git-annex pointer"),
    "DVC pointer": (b"outs:\n- md5: 0\n  size: 9\n  path: a.mp4\n", "a DVC pointer"),
    "gzip": (gzip.compress(picture("JPEG")), "data packed by gzip; unpack the file"),
    "zip": (written(zipped), "a ZIP archive or an Office document"),
    "tar": (written(archived), "a tar archive"),
    "Parquet": (written(lambda file: pq.write_table(pa.table({"a": [1]}), file)), "a Parquet file"),
    "NumPy": (written(lambda file: np.save(file, np.zeros(9))), "a NumPy array"),
    "pickle": (pickle.dumps({"a": 1}), "a Python pickle"),
    "line ends before": (
        b"\r\n" + picture("JPEG"),
        "a JPEG picture behind 2 bytes that do not belong to it; remove them",
    ),
    "byte order mark before": (b"\xef\xbb\xbf" + picture("PNG"), "a PNG picture behind 3 bytes"),
    "changed line ends": (
        picture("PNG").replace(b"\r\n", b"\n"),
        "a PNG picture whose line ends were changed",
    ),
    "read as UTF-8": (
        picture("PNG").decode(errors="replace").encode(),
        "a picture that was read as text",
    ),
    "read as Latin-1": (
        picture("JPEG").decode("latin-1").encode(),
        "a picture that was read as text",
    ),
    "repr of bytes": (repr(picture("JPEG")).encode(), "a picture that was read as text"),
    "base64": (
        base64.encodebytes(picture("JPEG")),
        "a file with the base64 text of a JPEG picture; decode it",
    ),
    "data URI": (
        b"data:image/jpeg;base64," + base64.b64encode(picture("JPEG")),
        "a file with the text of a data: URI; decode it",
    ),
    "playlist": (b"#EXTM3U\n#EXTINF:9,\na.ts\n", "an HLS playlist, which is not followed"),
    "zeros": (bytes(5000), "nothing but zeros"),
    "text": ("Gr\u00fc\u00dfe\n".encode() * 2000, "text, not media"),
    "text of UTF-16": ("Hello".encode("utf-16"), "text, not media"),
    "JPEG XL": (b"\xff\x0a\xff\x07\x08\x83\x04\x0c\x00\x4b", "a JPEG XL picture"),
    "FLAC": (b"fLaC\0\0\0\x22" + bytes(34), "a FLAC audio file"),
    "PostScript": (b"%!PS-Adobe-3.0\n", "PostScript, which is not read"),
}
MEDIA = {
    **{kind: picture(kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")},
    **{kind: make_video(kind, numbers=range(3)) for kind in ("mp4", "matroska", "avi", "mpegts")},
    "FLV": make_video("flv", numbers=range(3)),
    "MPEG": make_video("mpeg", "mpeg2video", numbers=range(3)),
    "PDF": make_pdf(),
}


@pytest.mark.parametrize("windows", [None, PageWindows()], ids=["as a video", "as a document"])
@pytest.mark.parametrize("name", NOT_MEDIA)
def test_the_error_of_a_row_names_what_is_there(name, windows):
    source, what = NOT_MEDIA[name]
    request = FrameRequest(sampling=FrameSampling(num_frames=1), fit=None)
    for opened in (source, io.BytesIO(source)):
        with pytest.raises(MediaError) as caught:
            decode_media(opened, [request], windows=windows)
        assert caught.value.message.startswith(f"the file is {what}")
        assert caught.value.code in (ErrorCode.MEDIA_CORRUPT, ErrorCode.MEDIA_UNSUPPORTED)


@pytest.mark.parametrize("kind", MEDIA)
def test_media_are_known_and_called_nothing_else(kind):
    assert media_kind(MEDIA[kind])
    for num_bytes in (0, 16, 64, HEAD_BYTES):
        assert describe(MEDIA[kind][:num_bytes]) is None


@pytest.mark.parametrize("kind", ["JPEG", "mp4"])
def test_media_that_are_damaged_are_not_called_anything_else(kind):
    request = FrameRequest(sampling=FrameSampling(num_frames=1), fit=None)
    with pytest.raises(MediaError, match=r"cannot be read|holds no stream"):
        decode_media(MEDIA[kind][: len(MEDIA[kind]) // 2], [request])


def test_noise_and_nothing_have_no_name():
    for seed in range(50):
        assert describe(np.random.default_rng(seed).bytes(HEAD_BYTES)) is None
    assert describe(b"") is None
    assert describe(make_audio()) is None  # a container that is read; the error is another


def test_a_document_job_names_the_media_that_it_does_not_read():
    request = FrameRequest(sampling=FrameSampling(num_frames=1), fit=None)
    with pytest.raises(MediaError, match="neither a PDF nor a picture, but an MP4 or QuickTime"):
        decode_media(MEDIA["mp4"], [request], windows=PageWindows())


def test_no_more_of_a_file_is_quoted_than_a_message():
    """A row could name a file that its author should not read."""
    assert describe(b"password: SECRET\n") == "text, not media"
    assert describe(b'{"password": "SECRET"}') == "a JSON document"
    assert describe(b"<?xml version='1.0'?><password>SECRET</password>") == "an XML document"
    long = describe(b"<title>" + b"\x1b[31m a\n" * 500 + b"</title>")
    assert long is not None
    assert len(long) < 200
    assert long.isprintable()


@pytest.mark.parametrize(
    "unit", [b"<!--", b"<?xml", b"<title>", b"<code>", b'"error":"\\', b"{", b"A", b" ", b"-->"]
)
def test_hostile_text_is_described_at_once(unit):
    for before in (b"", b"<!--", b"<?xml ", b"<html>", b"<Error>", b'{"'):
        describe((before + unit * HEAD_BYTES)[:HEAD_BYTES])
