"""Text of a row that holds the media itself: a `data:` URI (RFC 2397), or bare base64."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from pipeline.media.limits import MediaError, refuse
from pipeline.media.signatures import media_in_base64
from pipeline.status import ErrorCode

_DATA = re.compile(r"\s*data:(?P<type>[^,]{0,200}),", re.IGNORECASE)
# Shorter text, and text with a dot, may be a path.
_BASE64 = re.compile(r"\s*[A-Za-z0-9+/_-][A-Za-z0-9+/_\s-]{62,}={0,2}\s*")
_URL_SAFE = str.maketrans("-_", "+/")


def decode_inline(text: str, max_bytes: int) -> bytes | None:
    """Decode the media that a text holds; None if it is no such text, and so a path.

    Bare base64 is taken for media only if it decodes to the first bytes of a known format.

    Raises:
        MediaError: it is a `data:` URI that cannot be decoded, or there are more than `max_bytes`.
    """
    if uri := _DATA.match(text):
        payload = text[uri.end() :]
        if uri["type"].strip().lower().endswith(";base64"):
            return _decode_base64(unquote_to_bytes(payload).decode("latin-1"), max_bytes)
        _check_size(len(payload) - 2 * payload.count("%"), max_bytes)
        return unquote_to_bytes(payload)
    if media_in_base64(text) and _BASE64.fullmatch(text):
        return _decode_base64(text, max_bytes)
    return None


def hint_for(text: str) -> str:
    """Say what a text is that is no path of any file; empty if it looks like a path."""
    if re.match(r"b(['\"]).*(\1|\\)", text):
        return "; it is the text of Python bytes, so store the bytes themselves, in a binary column"
    if re.match(r"\s*[{\[]\s*['\"]", text):
        return "; it is the text of a structure, so store paths, or a struct of bytes and path"
    if re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        return "; it is a path of Windows, so name the file as it is called here"
    if len(text) >= 256 and _BASE64.fullmatch(text):
        return "; it looks like base64, but decodes to no media that are known"
    return ""


def _decode_base64(text: str, max_bytes: int) -> bytes:
    packed = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    _check_size(len(packed) * 3 // 4, max_bytes)
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        message = f"the row's base64 text cannot be decoded: {error}"
        raise MediaError(ErrorCode.MEDIA_CORRUPT, message) from error


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        refuse(f"the row's media have {num_bytes} bytes", max_bytes, "--max-media-bytes")
