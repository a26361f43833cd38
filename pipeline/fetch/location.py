"""The text of a row -> the places that it may name, in a normal form in which they are judged.

What is judged is, character for character, what is asked for. So no spelling of a URL leads past
the prefixes that the user allowed.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote

from urllib3.util import parse_url

from pipeline.filesystems import without_secrets

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
HTTP = ("http://", "https://")
_BREAKS = "\t\n\v\f\r"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CROOKED = re.compile(r"[/\\]\.\.?([/\\;?#]|$)|[\x00-\x1f\x7f]")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SECRET = re.compile(
    r"([?&][^=&#]*(?:key|secret|token|password|credential|sas|sig)[^=&#]*=)[^&#]*", re.IGNORECASE
)
_LOGIN = re.compile(r"(?<=://)[^/?#]*@")


def spellings(text: str) -> Iterator[str]:
    """Yield a path or URI as it is written, then other spellings of it, each once.

    The others are for a place that does not exist as written: without the white space around it,
    with accents composed (NFC) or decomposed (NFD, as macOS stores names), and with its percent
    signs decoded. White space around a URI, or before an absolute path, is never a part of it; nor
    are tabs and line breaks around any name.
    """
    stripped = text.strip()
    as_written = text.strip(_BREAKS)
    if SCHEME.match(stripped):
        as_written = stripped
    elif stripped.startswith("/"):
        as_written = as_written.lstrip()
    forms = [as_written, stripped]
    forms += [unicodedata.normalize(form, stripped) for form in ("NFC", "NFD")]
    if not is_http(stripped):  # a server decodes by itself, and may mean `%2F` as it is
        forms.append(unquote(stripped))
    yield from dict.fromkeys(form for form in forms if form)


def is_http(uri: str) -> bool:
    """Whether a URI is one of HTTP, in any case."""
    return uri[: len(HTTP[1])].lower().startswith(HTTP)


@lru_cache(maxsize=256)  # the prefixes that the user allowed come again with each row
def normal_uri(uri: str) -> str:
    """Return a URI in normal form, which is a URI of the same place.

    The scheme is in lower case. A URL of HTTP also has its host in lower case and ASCII (IDNA), no
    default port and no fragment, no `.` and `..` in its path, and what may not stand in a URL as
    `%XX` of its UTF-8. Escapes that are there stay, since signatures cover them.

    Raises:
        ValueError: it is a URL of HTTP without a host, or with a host or port that none can have.
    """
    scheme, separator, rest = uri.partition("://")
    uri = f"{scheme.lower()}{separator}{rest}"
    if not is_http(uri):
        return uri
    url = parse_url(_STRAY_PERCENT.sub("%25", uri))
    if not url.host:
        raise ValueError("the URL names no host")
    if url.port == _DEFAULT_PORTS[url.scheme or ""]:
        url = url._replace(port=None)
    return url._replace(fragment=None).url


def folder_of(prefix: str) -> str:
    """Return a prefix in normal form, without its settings and its last slash."""
    return normal_uri(prefix.partition("?")[0]).rstrip("/")


def is_crooked(path: str) -> bool:
    """Whether a filesystem or server could understand a path as one outside of its folder."""
    decoded = unquote(path)  # a server may decode once or twice
    return any(_CROOKED.search(each) for each in (path, decoded, unquote(decoded)))


def shown(text: str) -> str:
    """Return a path or URI for an error message: short, without credentials and signatures."""
    if not SCHEME.match(text.strip()):
        return text[:200]
    uri = _SECRET.sub(r"\1...", text.strip())
    uri = _LOGIN.sub("", uri, count=1) if is_http(uri) else uri
    place, question, query = uri.partition("?")
    return f"{without_secrets(place)}{question}{query}"[:200]
