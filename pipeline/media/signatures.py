"""Names what a file is by its first bytes: media, or what often stands in the place of media.

It explains a failure, and decides nothing: a file is first given to the decoders. Of a text only
short messages that were written for readers are quoted (a title, an error code), since a row could
name a file that its author should not read.
"""

import binascii
import re
from collections.abc import Callable

HEAD_BYTES = 4096  # enough for `describe`
TEXT = "text, not media"  # what `describe` says of text that is nothing more
_QUOTED = 100  # characters of a quotation

# Media; the decoders read most of them.
_MEDIA: tuple[tuple[str, bytes], ...] = (
    ("a JPEG picture", rb"\xff\xd8\xff"),
    ("a PNG picture", rb"\x89PNG\r\n\x1a\n"),
    ("a GIF picture", rb"GIF8[79]a"),
    ("a WebP picture", rb"RIFF.{4}WEBP"),
    ("a TIFF picture", rb"II[*+]\0|MM\0[*+]"),
    ("a BMP picture", rb"BM.{4}\0{4}"),
    ("a PDF", rb"%PDF-"),
    ("a HEIC or AVIF picture", rb".{4}ftyp(heic|heix|mif1|msf1|avif|avis)"),
    ("an MP4 or QuickTime video", rb".{4}(ftyp|moov|mdat|styp|moof)"),
    ("a Matroska or WebM video", rb"\x1a\x45\xdf\xa3"),
    ("an AVI video", rb"RIFF.{4}AVI "),
    ("an FLV video", rb"FLV\x01"),
    ("an ASF or WMV video", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    ("an Ogg file", rb"OggS\0"),
    ("an MPEG transport stream", rb"G.{187}G"),
    ("an MPEG program stream", rb"\0\0\x01\xba"),
)
_OTHERS: tuple[tuple[str, bytes], ...] = (
    (
        "a Git LFS pointer, and not the file itself; `git lfs pull` fetches it",
        rb"version https://(git-lfs|hawser)\.github\.com/spec/",
    ),
    (
        "a git-annex pointer, and not the file itself; `git annex get` fetches it",
        rb"(\.\./)*(\.git)?/annex/objects/",
    ),
    (
        "a DVC pointer, and not the file itself; `dvc pull` fetches it",
        rb"outs:\s+- (md5|etag):",
    ),
    ("data packed by gzip; unpack the file", rb"\x1f\x8b"),
    ("data packed by zstd; unpack the file", rb"\x28\xb5\x2f\xfd"),
    ("data packed by bzip2; unpack the file", rb"BZh[1-9]1AY&SY"),
    ("data packed by xz; unpack the file", rb"\xfd7zXZ\0"),
    ("a ZIP archive or an Office document", rb"PK(\x03\x04|\x05\x06|\x07\x08)"),
    ("a 7z archive", rb"7z\xbc\xaf\x27\x1c"),
    ("a RAR archive", rb"Rar!\x1a\x07"),
    ("a tar archive", rb".{257}ustar"),
    ("an Office document of the old kind", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ("a Parquet file; give it as --input", rb"PAR1"),
    ("an HDF5 file", rb"\x89HDF\r\n\x1a\n"),
    ("a NumPy array", rb"\x93NUMPY"),
    ("a Python pickle", rb"\x80[\x02-\x05](\x95|\}|\]|c)"),
    ("an SQLite database", rb"SQLite format 3\0"),
    ("a program", rb"\x7fELF|MZ.{58}"),
    ("RTF text", rb"\{\\rtf"),
    ("PostScript, which is not read; convert it to a PDF", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("a Photoshop file, which is not read", rb"8BPS\0"),
    ("a JPEG XL picture, which is not read", rb"\xff\x0a|\0\0\0\x0cJXL \r\n"),
    ("a JPEG 2000 picture, which is not read", rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51"),
    ("a JPEG XR picture, which is not read", rb"II\xbc"),
    ("a PNM picture, which is not read; convert it to a PNG", rb"P[1-7]\s+[\d#W]"),
    ("a GIMP file, which is not read", rb"gimp xcf"),
    ("an OpenEXR picture, which is not read", rb"\x76\x2f\x31\x01"),
    ("a Radiance picture, which is not read", rb"#\?R(ADIANCE|GBE)"),
    ("a QOI picture, which is not read", rb"qoif"),
    ("a DDS texture, which is not read", rb"DDS "),
    ("a camera's raw file, which is not read", rb"II(U\0|RO|RS)|MMOR|FUJIFILMCCD-RAW"),
    ("an icon, which is not read", rb"\0\0\x01\0[\x01-\x20]\0"),
    ("a FLAC audio file", rb"fLaC\0"),
    ("an MP3 audio file", rb"ID3[\x02-\x04]"),
    ("a WAV audio file", rb"RIFF.{4}WAVE"),
    # A PNG begins with bytes by which such damage shows (W3C PNG, "PNG signature").
    ("a PNG picture whose line ends were changed, as FTP does with text", rb"\x89PNG[\r\n]+\x1a"),
    ("a PNG picture without its highest bits", rb"\tPNG\r\n\x1a\n"),
    (
        "a picture that was read as text, which destroyed it",
        rb"\xef\xbf\xbd(PNG|\xef\xbf\xbd)|\xc3\xbf\xc3\x98\xc3\xbf|\xc2\x89PNG|b['\"]\\x(ff|89)",
    ),
    ("nothing but zeros, as a download leaves that was begun only", rb"\0{256}"),
)
_WHITE = b" \t\r\n\f\v"
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def media_kind(head: bytes) -> str | None:
    """Name the media that begin with these bytes, such as `a JPEG picture`; None for others."""
    return _first(_MEDIA, head)


def describe(head: bytes) -> str | None:
    """Name what begins with these bytes and is no media; None if it may be media, or anything.

    `head` is the first `HEAD_BYTES` of a file, or all of a shorter one. The name is a noun phrase
    for an error message: `an HTML page with the title "Log in"`.
    """
    if not head or media_kind(head):
        return None
    if (name := _first(_OTHERS, head)) is not None:
        return name
    text = head.removeprefix(_BOMS[0]).lstrip(_WHITE)
    if (inner := media_kind(text)) is not None:
        return f"{inner} behind {len(head) - len(text)} bytes that do not belong to it; remove them"
    for pattern, name_of in _TEXTS:
        if re.match(pattern, text):
            return name_of(text)
    if (inner := _kind_in_base64(text)) is not None:
        return f"a file with the base64 text of {inner}; decode it"
    return TEXT if _is_text(head) else None


def media_in_base64(text: str) -> str | None:
    """Name the media of which this is the beginning of base64 text; None if it is none."""
    return _kind_in_base64(text[:HEAD_BYTES].encode(errors="replace"))


def _first(table: tuple[tuple[str, bytes], ...], head: bytes) -> str | None:
    return next((name for name, pattern in table if re.match(b"(?s:" + pattern + b")", head)), None)


def _kind_in_base64(text: bytes) -> str | None:
    letters = re.match(rb"[A-Za-z0-9+/_\s-]*", text)
    packed = b"".join((letters.group() if letters else b"").split())
    packed = packed[: len(packed) // 4 * 4].translate(bytes.maketrans(b"-_", b"+/"))
    if len(packed) < 32:
        return None
    return media_kind(binascii.a2b_base64(packed))


def _markup(text: bytes) -> str:
    lower = text.lower()
    if b"<svg" in lower and b"<html" not in lower:
        return "an SVG drawing, which is not read; convert it to a PNG"
    if re.match(rb"<(\?xml|error|listbucketresult|!--)", lower) and b"<html" not in lower:
        return _xml(text)
    title = re.search(rb"(?is)<title[^>]*>(.*?)</title", text)
    if title:
        return f"an HTML page with the title {_quoted(title.group(1))}"
    asks = re.search(rb"\b(log|sign)[ -]?in\b|password", lower)
    return "an HTML page" + (", which seems to ask for a login" if asks else "")


def _xml(text: bytes) -> str:
    code = re.search(rb"(?is)<code>(.*?)</code>", text)
    if code is None:
        return "an XML document"
    message = re.search(rb"(?is)<message>(.*?)</message>", text)
    more = f": {_quoted(message.group(1))}" if message else ""
    return f"an XML error document with the code {_quoted(code.group(1))}{more}"


def _json(text: bytes) -> str:
    found = re.search(rb'"(?:error|message|detail|code)"\s*:\s*("(?:[^"\\]|\\.)*"|\d+)', text)
    return "a JSON document" + (f" that says {_quoted(found.group(1))}" if found else "")


def _quoted(text: bytes) -> str:
    words = " ".join(text.decode(errors="replace").strip('"').split())
    short = "".join(letter for letter in words if letter.isprintable())[:_QUOTED]
    return f'"{short}"'


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 or UTF-16 without control characters; the last letter may be cut."""
    if head.startswith(_BOMS[1:]):
        return True
    if _CONTROL.search(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3
    return True


# Formats that are text, by what follows white space at the start.
_TEXTS: tuple[tuple[bytes, Callable[[bytes], str]], ...] = (
    (rb"(?i)<(\?xml|!--|!doctype|html|head|body|title|script|meta|div|svg|error)\b", _markup),
    (rb"<ListBucketResult\b", _markup),
    (rb'\{\s*("|\}|$)|\[\s*[\[{"]', _json),
    (rb"#EXTM3U", lambda _: "an HLS playlist, which is not followed; name the video itself"),
    (rb"ffconcat version", lambda _: "a list of files for FFmpeg, which is not followed"),
    (rb"data:[\w/+.;=-]*,", lambda _: "a file with the text of a data: URI; decode it"),
)
