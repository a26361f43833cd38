"""Which picture a file is, by its first bytes, and opening it within the limits.

Pillow tries the one format that the bytes name and no other. Pillow reads AVIF by libavif, and
HEIC by pillow-heif, which carries libheif. Both put tiles together and turn the picture as its
boxes say.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import BinaryIO

from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from pipeline.media.limits import MediaError, MediaLimits
from pipeline.status import ErrorCode

_HEAD_BYTES = 64 << 10  # within which the boxes of an AVIF lie that describe it
_SIGNATURES: Mapping[str, tuple[bytes, ...]] = {  # of Pillow's names of formats
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # a plus is a BigTIFF
}
_RAW = "raw"  # known, and not read
# Brands of the `ftyp` box (ISO/IEC 23008-12 and the AVIF specification). The brands hevc, hevx and
# msf1 are tracks of HEVC, which the video decoder reads.
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1")
_AVIF_BRANDS = {b"avif", b"avis"}
_KIND_TAGS = (258, 339, 262)  # of a TIFF: BitsPerSample, SampleFormat, PhotometricInterpretation
_NO_MEMORY = ("Out of memory", "Memory allocation error")
# How libheif and pillow-heif say that a file is whole, but not one that they read.
_UNSUPPORTED = ("Unsupported", "unsupported", "has not been built in", "not installed")
# What Pillow and its plug-ins raise for damaged files, besides OSError.
_DAMAGE = (
    *(ValueError, TypeError, SyntaxError, LookupError, EOFError, ArithmeticError, AttributeError),
    *(RuntimeError, AssertionError, BufferError, struct.error, zlib.error),
)


def picture_format(head: bytes) -> str | None:
    """Return Pillow's name of the format of a picture, or `raw`; None for any other file.

    `head` is the first kilobyte of the file, or all of it.
    """
    if _is_raw(head):
        return _RAW
    for name, signatures in _SIGNATURES.items():
        if head.startswith(signatures):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    brands = _brands(head)
    is_avif_track = brands[:1] == [b"msf1"] and b"avis" in brands
    if brands[:1] == [] or (brands[0] not in _PICTURE_BRANDS and not is_avif_track):
        return None
    return "AVIF" if _AVIF_BRANDS.intersection(brands) else "HEIF"


def _is_raw(head: bytes) -> bool:
    """Whether a file is of Canon's cameras, as a TIFF whose pages are previews, or as an MP4."""
    return (head[:4] == b"II*\0" and head[8:10] == b"CR") or _brands(head)[:1] == [b"crx "]


def _brands(head: bytes) -> list[bytes]:
    """The major brand of an ISO file, then the compatible ones; empty for any other file."""
    if head[4:8] != b"ftyp":
        return []
    end = min(struct.unpack(">I", head[:4])[0], len(head))
    return [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]


@contextmanager
def open_picture(source: bytes | BinaryIO, limits: MediaLimits) -> Iterator[ImageFile.ImageFile]:
    """Open a picture within the limits.

    Raises:
        MediaError: the picture cannot be used. Errors of Pillow and of its plug-ins inside the
            `with` block become a `MediaError` too.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    kind = "unknown"
    try:
        limits.check_num_bytes(file.seek(0, io.SEEK_END))
        file.seek(0)
        head = file.read(_HEAD_BYTES)
        kind = picture_format(head) or kind
        file.seek(0)
        with warnings.catch_warnings():
            # Pillow warns of damage and of large pictures; our own limits are stricter.
            warnings.simplefilter("ignore")
            with _opened(kind, file) as picture:
                limits.check_pixels(*picture.size)
                if kind == "AVIF":  # under the name that pillow-heif gives it
                    picture.info["nclx_profile"] = _nclx(head)
                yield picture
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(ErrorCode.MEDIA_TOO_LARGE, f"{error} (--max-pixels)") from error
    except UnidentifiedImageError as error:
        raise _unidentified(kind, file) from error
    except (OSError, *_DAMAGE) as error:
        raise _failure(kind, " ".join(str(error).split())) from error


def _opened(kind: str, file: BinaryIO) -> ImageFile.ImageFile:
    """Open a file as the format that its first bytes name; one thread decodes it."""
    if kind == _RAW:
        message = "the file is a camera's raw file, which is not read; convert it to JPEG"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    if kind == "AVIF":
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # many processes decode at the same time
        return AvifImagePlugin.AvifImageFile(file)  # `Image.open` would drop what it says
    if kind == "HEIF":
        # Imported here, because it loads libheif, which most runs do not need.
        import pillow_heif

        options = pillow_heif.options
        options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
        options.DECODE_THREADS = 1
        return pillow_heif.HeifImageFile(file)
    return Image.open(file, formats=[kind])


def _failure(kind: str, why: str) -> MediaError:
    """Make the error of a picture that cannot be read.

    Raises:
        MemoryError: memory was short; libavif and libheif say that in words only.
    """
    if kind in ("AVIF", "HEIF"):
        if any(words in why for words in _NO_MEMORY) and "Security limit" not in why:
            raise MemoryError(why)
        if any(words in why for words in _UNSUPPORTED):
            message = f"the picture is of a kind that is not read: {why}"
            return MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    return MediaError(ErrorCode.MEDIA_CORRUPT, f"the picture cannot be read: {why}")


def _unidentified(kind: str, file: BinaryIO) -> MediaError:
    """Say what Pillow does not read; its own message shows the address of an object instead."""
    if kind == "TIFF":
        with suppress(OSError, *_DAMAGE):
            file.seek(0)
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
            bits, sample_format, color = (tags.get(number) for number in _KIND_TAGS)
            if bits is not None and color is not None:
                what = f"samples of {bits} bits, sample format {sample_format}, colours {color}"
                message = f"a TIFF of a kind that is not read: {what}; convert it to PNG"
                return MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    return _failure(kind, f"it begins as {kind}, and the rest is damaged")


def _nclx(head: bytes) -> dict[str, int]:
    """The transfer function in the box of colours of an AVIF; empty without that box."""
    at = head.find(b"colrnclx")  # primaries, transfer and matrix follow, of 16 bits each
    if at < 0 or len(head) < at + 12:
        return {}
    return {"transfer_characteristics": struct.unpack_from(">H", head, at + 10)[0]}
