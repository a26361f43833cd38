"""Opens filesystems by URI, and removes credentials from URIs."""

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

# Settings whose name contains one of these words may be credentials.
_SECRET = re.compile("key|secret|token|password|credential|sas|sig", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/]*@")
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/]*(?=@)")
# The text before `@` is a login in URIs of these schemes. In others it may be a container
# (`abfs://container@account...`) or a user name, which tells outputs apart, so that only the
# password is removed.
_SCHEMES_WITH_LOGIN = ("s3", "http", "https")


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Open the filesystem that a path or URI names, and return it with the path on it.

    A query at the end of a URI sets options of the filesystem, such as the region in
    `s3://bucket/clips?region=eu-west-1`.

    Raises:
        ValueError, OSError, ImportError: no known filesystem has such a URI, or its library is not
            installed.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), Path(uri).expanduser().absolute().as_posix()
    try:
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # pyarrow does not know the scheme
        filesystem, path = fsspec.core.url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def below(uri: str, name: str) -> str:
    """Return the path or URI of a folder below another one; settings of the filesystem stay."""
    place, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def without_secrets(uri: str) -> str:
    """Remove the credentials from the login and the settings of a URI; return a path as it is."""
    if "://" not in uri:
        return uri
    place, _, query = uri.partition("?")
    if place.partition("://")[0] in _SCHEMES_WITH_LOGIN:
        place = _LOGIN.sub("", place, count=1)
    else:
        place = _PASSWORD.sub(r"\1", place, count=1)
    known = [(name, value) for name, value in parse_qsl(query) if not _SECRET.search(name)]
    return place + (f"?{urlencode(known, safe=':/')}" if known else "")
