"""A row's media value -> bytes, or an open file that can be decoded.

A row may name local files below the input's own folder and below folders that the user allowed, and
remote objects below prefixes that the user allowed. Otherwise a dataset could make the workers read
from anywhere, with their credentials. Links are followed before a path is judged. A prefix, which
the user wrote, chooses the filesystem and all its settings; of the row's URI only the rest counts,
as a plain path. Text that holds the media themselves, in base64, is decoded.

Remote objects are copied to a temporary file, which is in memory while it is small, because
decoding reads them twice and in another process.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from pipeline.fetch.attempts import (
    OF_THE_MACHINE,
    Deadline,
    StatusError,
    is_temporary,
    opening_errors,
    reading_errors,
    with_attempts,
)
from pipeline.fetch.copying import copy_stream
from pipeline.fetch.http import download
from pipeline.fetch.inline_media import decode_inline, hint_for
from pipeline.fetch.location import (
    SCHEME,
    folder_of,
    is_crooked,
    is_http,
    normal_uri,
    shown,
    spellings,
)
from pipeline.filesystems import open_filesystem
from pipeline.media.limits import DEFAULT_LIMITS, MediaError, refuse
from pipeline.status import ErrorCode

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_MISSING_STATUSES = (404, 410)
_MAX_COPY_S = 1800.0  # for one object, from the connection to its last byte
_open_filesystem = lru_cache(maxsize=64)(open_filesystem)  # keeps the connections open


@dataclass(frozen=True, kw_only=True)
class MediaAccess:
    """Where media may come from; a malformed prefix or remote base is a ValueError."""

    # The folder, local or remote, that relative paths start from. All below it is allowed.
    base: str = "."
    allowed_folders: tuple[str, ...] = ()  # further local folders whose files a row may name
    # URIs of remote folders; a query chooses settings of the filesystem, such as
    # `s3://bucket/clips?region=eu-west-1`.
    allowed_prefixes: tuple[str, ...] = ()
    max_bytes: int = DEFAULT_LIMITS.max_bytes  # of one object

    def __post_init__(self) -> None:
        for prefix in self._prefixes:
            try:
                parts = urlsplit(folder_of(prefix))
            except ValueError as error:
                raise ValueError(f"{shown(prefix)!r} is not a prefix of URIs: {error}") from error
            if not SCHEME.match(prefix) or not parts.netloc or is_crooked(parts.path):
                raise ValueError(
                    f"{shown(prefix)!r} is not a prefix of URIs; give a scheme, a bucket or host, "
                    "and a folder, such as s3://bucket/clips"
                )

    def open(self, media: object) -> bytes | BinaryIO:
        """Open what a row holds: bytes, a path or URI, or a mapping of `bytes` and `path`.

        A text may also hold the media themselves, as a `data:` URI or in base64.

        Returns:
            The bytes, or a seekable file that the caller closes.

        Raises:
            MediaError: there are no media, or they cannot be read, are too large or not allowed.
            OSError: the disk or the memory of this machine is full, or too many files are open.
        """
        # Hugging Face datasets store media as such a mapping; if both are set, the bytes count.
        if isinstance(media, Mapping):
            content, path = media.get("bytes"), media.get("path")
            media = content if content is not None else path
        if media is None or (isinstance(media, str) and not media.strip()):
            raise MediaError(ErrorCode.MEDIA_NULL, "the row has no media")
        if isinstance(media, bytes):
            self._check_size("the row's media", len(media))
            return media
        if not isinstance(media, str):
            kind = type(media).__name__
            raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, f"media of type {kind} cannot be read")
        decoded = decode_inline(media, self.max_bytes)
        return self._open_text(media) if decoded is None else decoded

    @property
    def _is_remote(self) -> bool:
        return SCHEME.match(self.base) is not None

    @property
    def _prefixes(self) -> tuple[str, ...]:
        return (*self.allowed_prefixes, self.base) if self._is_remote else self.allowed_prefixes

    def _open_text(self, text: str) -> BinaryIO:
        """Open the first place that exists of those that a text may name; it is judged each time.

        If there is none, the error is that of the text as it is written.
        """
        as_written, *others = spellings(text)
        with _as_media_errors(text):
            try:
                return self._open_place(as_written)
            except (OSError, ValueError) as error:
                if not _is_missing(error):
                    raise
                for other in others:
                    if (opened := self._open_other(other)) is not None:
                        return opened
                raise

    def _open_other(self, place: str) -> BinaryIO | None:
        """Open another spelling of a place; None if there is no such place or it is not allowed."""
        try:
            return self._open_place(place)
        except MediaError as error:
            if error.code != ErrorCode.URI_NOT_ALLOWED:
                raise
        except OSError as error:
            if not _is_missing(error):
                raise
        except ValueError:  # no name can be spelled so
            pass
        return None

    def _open_place(self, place: str) -> BinaryIO:
        if place[:6].lower() == "file:/":
            return self._open_local(_path_of(place))
        if SCHEME.match(place):
            return self._open_remote(normal_uri(place))
        if self._is_remote and not place.startswith("/"):
            return self._open_remote(normal_uri(f"{folder_of(self.base)}/{place}"))
        return self._open_local(place)

    def _open_local(self, path: str) -> BinaryIO:
        """Open a regular file; refuse a device, pipe or socket, which could block or never end."""
        location = os.path.realpath(path if self._is_remote else Path(self.base, path))
        self._check_folder(location, path)
        _check_regular(os.stat(location), path)  # noqa: PTH116
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
        descriptor = os.open(location, flags)
        with ExitStack() as on_error:
            file = on_error.enter_context(os.fdopen(descriptor, "rb"))
            status = os.fstat(descriptor)  # the path may name another file since the check above
            _check_regular(status, path)
            self._check_size(path, status.st_size)
            on_error.pop_all()
        return file

    def _check_folder(self, location: str, path: str) -> None:
        """Refuse a file that, after its links are followed, is not below an allowed folder."""
        folders = self.allowed_folders if self._is_remote else (self.base, *self.allowed_folders)
        for folder in folders:
            real = os.path.realpath(folder)
            if os.path.commonpath([real, location]) == real:
                return
        what = path if path == location else f"{path:.200}, which is {location}"
        raise MediaError(
            ErrorCode.URI_NOT_ALLOWED,
            f"{what:.400}, lies below no allowed folder{hint_for(path)}; allow one, such as "
            f"--allow-folder {Path(location).parent!s:.200}",
        )

    def _open_remote(self, uri: str) -> BinaryIO:
        """Copy an object, in several attempts if need be; `uri` is in normal form."""
        prefix = self._prefix_of(uri)
        deadline = Deadline(_MAX_COPY_S)
        get = self._download if is_http(uri) else self._read_object
        try:
            return with_attempts(partial(get, uri, prefix, deadline), deadline)
        except (OSError, HTTPException) as error:
            if not is_temporary(error):
                raise
            message = f"{shown(uri)}: {_reason(error)}"
            raise MediaError(ErrorCode.FETCH_FAILED, message) from error

    def _download(self, uri: str, _: str, deadline: Deadline) -> BinaryIO:
        check_size = partial(self._check_size, uri)
        with download(uri, self._judge, deadline) as response:
            return copy_stream(cast(BinaryIO, response), response.length, check_size, deadline)

    def _read_object(self, uri: str, prefix: str, deadline: Deadline) -> BinaryIO:
        with opening_errors():
            filesystem, folder = _open_filesystem(normal_uri(prefix))
            path = folder.rstrip("/") + uri[len(folder_of(prefix)) :]
            info = filesystem.get_file_info(path)
            if info.type == pafs.FileType.NotFound:
                raise FileNotFoundError("no such object")
            if info.type != pafs.FileType.File:
                raise OSError("it is not a file")
            stream = filesystem.open_input_stream(path, compression=None)
        check_size = partial(self._check_size, uri)
        with stream, reading_errors():
            return copy_stream(cast(BinaryIO, stream), info.size, check_size, deadline)

    def _judge(self, url: str) -> str:
        """Return the normal form of a URL that a redirect names; a MediaError if not allowed."""
        normal = normal_uri(url)
        self._prefix_of(normal)
        return normal

    def _prefix_of(self, uri: str) -> str:
        """The allowed prefix that a URI in normal form lies below; a MediaError without one."""
        for prefix in self._prefixes:
            folder = folder_of(prefix)
            if uri.startswith(f"{folder}/") and not is_crooked(uri[len(folder) :]):
                return prefix
        uri = shown(uri)
        host = re.split(r"[/?#]", uri.partition("://")[2])[0]
        raise MediaError(
            ErrorCode.URI_NOT_ALLOWED,
            f"{uri} lies below no allowed prefix; allow one, such as "
            f"--allow-uri {uri.partition('://')[0]}://{host:.100}/folder",
        )

    def _check_size(self, name: str, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            what = f"{shown(name)} has {num_bytes} bytes or more"
            refuse(what, self.max_bytes, "--max-media-bytes")


def _path_of(file_uri: str) -> str:
    """The path in `file:///a/b`, `file://localhost/a/b` or `file:/a/b`, as Hadoop writes it."""
    rest = file_uri.partition(":")[2]
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest)
    if host.lower() not in ("", "localhost"):
        raise MediaError(
            ErrorCode.URI_NOT_ALLOWED,
            f"{file_uri:.200} names the machine {host[:100]!r}; a file of this machine has three "
            "slashes, such as file:///data/clip.mp4",
        )
    return unquote(slash + path)


def _check_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"{path:.200} is {kind}, not a file")


def _is_missing(error: Exception) -> bool:
    if isinstance(error, StatusError):
        return error.status in _MISSING_STATUSES
    is_named = isinstance(error, FileNotFoundError)
    return is_named or (isinstance(error, OSError) and error.errno in _MISSING)


def _reason(error: Exception) -> object:
    return (error.strerror or error) if isinstance(error, OSError) else error


@contextmanager
def _as_media_errors(text: str) -> Iterator[None]:
    """Turn what opening a path can raise into a `MediaError`, except errors of the machine."""
    try:
        yield
    except MediaError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # ArrowInvalid is a ValueError
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            raise
        is_missing = _is_missing(error)
        code = ErrorCode.MEDIA_MISSING if is_missing else ErrorCode.MEDIA_UNREADABLE
        hint = hint_for(text) if is_missing else ""
        raise MediaError(code, f"{shown(text)}: {_reason(error)}{hint}") from error
