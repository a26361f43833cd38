"""Filesystems by URI, and URIs without their credentials."""

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

_SECRET = re.compile("key|secret|token|password|credential|sas|sig", re.IGNORECASE)  # a setting
_LOGIN = re.compile(r"(?<=://)[^/]*@")
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/]*(?=@)")
_SCHEMES_WITH_LOGIN = ("s3", "http", "https")  # elsewhere it may be a container, or who one is


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem that a path or URI chooses, and the path there.

    Args:
        uri: a path, or a URI, which may end in a query with settings of the filesystem, such as
            `s3://bucket/clips?region=eu-west-1`.

    Raises:
        ValueError, OSError, ImportError: it is no URI of a known filesystem.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), Path(uri).expanduser().absolute().as_posix()
    try:
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        filesystem, path = fsspec.core.url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def without_secrets(uri: str) -> str:
    """A URI without its credentials, in the login and the settings; a path as it is."""
    if "://" not in uri:
        return uri
    place, _, query = uri.partition("?")
    if place.partition("://")[0] in _SCHEMES_WITH_LOGIN:
        place = _LOGIN.sub("", place, count=1)
    else:
        place = _PASSWORD.sub(r"\1", place, count=1)
    known = [(name, value) for name, value in parse_qsl(query) if not _SECRET.search(name)]
    return place + (f"?{urlencode(known, safe=':/')}" if known else "")
