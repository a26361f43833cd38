"""The `Store` of an output: one flat folder of files that are whole or not there.

`LocalStore` writes a hidden file, syncs it and renames it; `ObjectStore` (S3, GCS and what else
pyarrow or fsspec knows) relies on a PUT, which shows an object when it is complete. So both replace
a file in one step, and readers never meet half of one.
"""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.filesystems import open_filesystem, without_secrets


class Store(Protocol):
    """A flat folder of files."""

    @property
    def uri(self) -> str:
        """For people."""
        ...

    def prepare(self) -> None:
        """Make the folder if need be."""
        ...

    def clean(self) -> None:
        """Remove what a killed writer left; only for who holds the lock."""
        ...

    def names(self) -> Sequence[str]:
        """The files, sorted; hidden ones left out."""
        ...

    def path_of(self, name: str) -> tuple[pafs.FileSystem, str]:
        """Where a reader of Parquet finds a file."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none."""
        ...

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write or replace a file in one step; it outlives a crash when this returns."""
        ...

    def move(self, name: str, folder: str) -> None:
        """Move a file into a folder below, where readers of the output do not look."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file; none is no error."""
        ...


def open_store(uri: str) -> Store:
    """The store of an output.

    Raises:
        ValueError: no filesystem has such a URI.
    """
    try:
        filesystem, path = open_filesystem(uri)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot write to the output {uri}: {error}") from error
    if isinstance(filesystem, pafs.LocalFileSystem):
        return LocalStore(Path(path))
    return ObjectStore(without_secrets(uri).partition("?")[0], filesystem, path.rstrip("/"))


@dataclass(frozen=True)
class LocalStore:
    """A directory; a mounted filesystem counts as one."""

    directory: Path

    @property
    def uri(self) -> str:
        """The path."""
        return str(self.directory)

    def prepare(self) -> None:
        """Make the directory, and those above it."""
        _make_directory(self.directory)

    def clean(self) -> None:
        """Remove half-written files."""
        for path in self.directory.glob(".*.new"):
            path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The files, sorted."""
        try:
            found = list(os.scandir(self.directory))
        except FileNotFoundError:
            return []
        return sorted(e.name for e in found if e.is_file() and not e.name.startswith("."))

    def path_of(self, name: str) -> tuple[pafs.FileSystem, str]:
        """A path on the local filesystem."""
        return pafs.LocalFileSystem(), str(self.directory / name)

    def read(self, name: str) -> bytes | None:
        """The bytes of a file."""
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write beside, sync, rename, sync the directory."""
        # A name of its own, since what belongs to a killed driver may still write for a moment.
        new = self.directory / f".{name}.{secrets.token_hex(4)}.new"
        try:
            with new.open("wb") as file:
                file.write(memoryview(content))
                file.flush()
                os.fsync(file.fileno())
            new.rename(self.directory / name)
        except OSError as error:
            new.unlink(missing_ok=True)  # a full disk needs the room
            raise _named(error, self.directory / name) from error
        _sync_directory(self.directory)

    def move(self, name: str, folder: str) -> None:
        """One rename."""
        target = self.directory / folder
        target.mkdir(exist_ok=True)
        (self.directory / name).rename(target / name)
        _sync_directory(target)
        _sync_directory(self.directory)

    def delete(self, name: str) -> None:
        """Unlink."""
        (self.directory / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class ObjectStore:
    """A prefix of an object store."""

    uri: str
    filesystem: pafs.FileSystem
    prefix: str  # on the filesystem, without a last slash

    def prepare(self) -> None:
        """Nothing: there are no folders."""

    def clean(self) -> None:
        """Nothing: an unfinished PUT shows nothing."""

    def names(self) -> list[str]:
        """One listing."""
        selector = pafs.FileSelector(self.prefix, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(
            info.base_name
            for info in infos
            if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        )

    def path_of(self, name: str) -> tuple[pafs.FileSystem, str]:
        """Bucket and key."""
        return self.filesystem, f"{self.prefix}/{name}"

    def read(self, name: str) -> bytes | None:
        """One GET."""
        path = f"{self.prefix}/{name}"
        if self.filesystem.get_file_info(path).type != pafs.FileType.File:
            return None
        with self.filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read()

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """One PUT, or one upload in pieces that appears at its end; looked at afterwards."""
        path = f"{self.prefix}/{name}"
        with self.filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(content)
        size = self.filesystem.get_file_info(path).size
        if size != len(memoryview(content)):
            raise OSError(f"{path} has {size} bytes after {len(memoryview(content))} were written")

    def move(self, name: str, folder: str) -> None:
        """Copy, then delete."""
        source, target = f"{self.prefix}/{name}", f"{self.prefix}/{folder}/{name}"
        self.filesystem.copy_file(source, target)
        self.filesystem.delete_file(source)

    def delete(self, name: str) -> None:
        """One DELETE, where there is something."""
        path = f"{self.prefix}/{name}"
        if self.filesystem.get_file_info(path).type == pafs.FileType.File:
            self.filesystem.delete_file(path)


def _named(error: OSError, path: Path) -> OSError:
    """The same error with the file that it is about, which `write` and `fsync` do not tell."""
    return type(error)(error.errno, error.strerror, str(path))


def _make_directory(path: Path) -> None:
    """Make a directory and those above it, each one synced into the one that holds it."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
