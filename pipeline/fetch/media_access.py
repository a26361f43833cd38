"""A row's media value -> bytes, or an open file that can be decoded.

A row may name local files below the input's own folder and below folders that the user allowed, and
remote objects below prefixes that the user allowed. Otherwise a dataset could make the workers read
from anywhere, with their credentials. Links are followed before a path is judged. A prefix, which
the user wrote, chooses the filesystem and all its settings; of the row's URI only the rest counts,
as a plain path.

Remote objects are copied to a temporary file, which is in memory while it is small, because
decoding reads them twice and in another process.
"""

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, cast
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs
from huggingface_hub.errors import HTTPError as HubError

from pipeline.fetch.http import Deadline, download
from pipeline.filesystems import open_filesystem, without_secrets
from pipeline.media.limits import DEFAULT_LIMITS, MediaError, refuse
from pipeline.status import ErrorCode

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CROOKED = re.compile(r"[/\\]\.\.?([/\\;?#]|$)|[\x00-\x1f\x7f]")
_HTTP = ("http://", "https://")
_SPOOL_BYTES = 64 << 20  # a larger object, or one of unknown size, is copied to disk
_CHUNK_BYTES = 4 << 20
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
# Errors of this machine, with which every other row would fail too: its disk or memory is full, or
# too many files are open.
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
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
            parts = urlsplit(prefix)
            if not _SCHEME.match(prefix) or not parts.netloc or _is_crooked(parts.path):
                raise ValueError(
                    f"{prefix!r} is not a prefix of URIs; give a scheme, a bucket or host, and a "
                    "folder, such as s3://bucket/clips"
                )

    def open(self, media: object) -> bytes | BinaryIO:
        """Open what a row holds: bytes, a path or URI, or a mapping of `bytes` and `path`.

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
        if media is None or media == "":
            raise MediaError(ErrorCode.MEDIA_NULL, "the row has no media")
        if isinstance(media, bytes):
            self._check_size(len(media), "the row's media")
            return media
        if not isinstance(media, str):
            kind = type(media).__name__
            raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, f"media of type {kind} cannot be read")
        with _as_media_errors(media):
            return self._open_path(media)

    @property
    def _is_remote(self) -> bool:
        return _SCHEME.match(self.base) is not None

    @property
    def _prefixes(self) -> tuple[str, ...]:
        return (*self.allowed_prefixes, self.base) if self._is_remote else self.allowed_prefixes

    def _open_path(self, path: str) -> BinaryIO:
        if path.startswith("file://"):
            return self._open_local(unquote(urlsplit(path).path))
        if _SCHEME.match(path):
            return self._open_remote(path)
        if self._is_remote and not path.startswith("/"):
            return self._open_remote(f"{_folder(self.base)}/{path}")
        return self._open_local(path)

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
            self._check_size(status.st_size, path)
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
            f"{what:.400}, lies below no allowed folder; allow one, such as "
            f"--allow-folder {Path(location).parent!s:.200}",
        )

    def _open_remote(self, uri: str) -> BinaryIO:
        prefix = self._prefix_of(uri)
        deadline = Deadline(_MAX_COPY_S)
        if uri.startswith(_HTTP):
            with download(uri, self._prefix_of, deadline) as response:
                return self._copy(cast(BinaryIO, response), response.length, uri, deadline)
        filesystem, folder = _open_filesystem(prefix)
        path = folder.rstrip("/") + uri[len(_folder(prefix)) :]
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError("no such object")
        if info.type != pafs.FileType.File:
            raise OSError("it is not a file")
        with filesystem.open_input_stream(path, compression=None) as stream:
            return self._copy(cast(BinaryIO, stream), info.size, uri, deadline)

    def _prefix_of(self, uri: str) -> str:
        """The allowed prefix that a URI lies below; a MediaError if there is none."""
        for prefix in self._prefixes:
            folder = _folder(prefix)
            if uri.startswith(f"{folder}/") and not _is_crooked(uri[len(folder) :]):
                return prefix
        uri = self._without_secrets(uri)
        host = re.split(r"[/?#]", uri.partition("://")[2])[0]
        raise MediaError(
            ErrorCode.URI_NOT_ALLOWED,
            f"{uri:.200} lies below no allowed prefix; allow one, such as "
            f"--allow-uri {uri.partition('://')[0]}://{host:.100}/folder",
        )

    def _without_secrets(self, name: str) -> str:
        """A name for an error message, without the credentials that the base may contain."""
        folder = _folder(self.base)
        is_below = self._is_remote and name.startswith(folder)
        return without_secrets(folder) + name[len(folder) :] if is_below else name

    def _copy(
        self, stream: BinaryIO, num_bytes: int | None, name: str, deadline: Deadline
    ) -> BinaryIO:
        """Copy a stream to a temporary file; `num_bytes` is None if its length is not known."""
        self._check_size(num_bytes or 0, name)
        is_small = num_bytes is not None and num_bytes <= _SPOOL_BYTES
        make_file = _in_memory if is_small else tempfile.TemporaryFile
        with ExitStack() as on_error:
            file = on_error.enter_context(make_file())
            while chunk := stream.read(_CHUNK_BYTES):
                file.write(chunk)
                self._check_size(file.tell(), name)
                deadline.left_s()  # raises if the time is over
            if num_bytes is not None and file.tell() < num_bytes:
                raise OSError(f"it ends after {file.tell()} of {num_bytes} bytes")
            file.seek(0)
            on_error.pop_all()
        return cast(BinaryIO, file)

    def _check_size(self, num_bytes: int, name: str) -> None:
        if num_bytes > self.max_bytes:
            what = f"{self._without_secrets(name):.200} has {num_bytes} bytes or more"
            refuse(what, self.max_bytes, "--max-media-bytes")


def _in_memory() -> BinaryIO:
    """Make a file in memory; it has a descriptor, which the decoding process needs."""
    return cast(BinaryIO, os.fdopen(os.memfd_create("media"), "w+b"))


def _folder(prefix: str) -> str:
    """A prefix without its settings and its last slash."""
    return prefix.partition("?")[0].rstrip("/")


def _is_crooked(path: str) -> bool:
    """Whether a filesystem or server could understand a path as one outside of its folder."""
    decoded = unquote(path)  # a server may decode once or twice
    return any(_CROOKED.search(each) for each in (path, decoded, unquote(decoded)))


def _check_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"{path:.200} is {kind}, not a file")


@contextmanager
def _as_media_errors(path: str) -> Iterator[None]:
    """Turn what opening a path can raise into a `MediaError`, except errors of the machine."""
    try:
        yield
    except MediaError:
        raise
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        is_missing = error.errno in _MISSING or isinstance(error, FileNotFoundError)
        if isinstance(error, HTTPError):
            error.close()
            is_missing = error.code in (404, 410)
        code = ErrorCode.MEDIA_MISSING if is_missing else ErrorCode.MEDIA_UNREADABLE
        raise MediaError(code, f"{path:.200}: {error.strerror or error}") from error
    except (ValueError, HTTPException, HubError) as error:  # ArrowInvalid is a ValueError
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"{path:.200}: {error}") from error
