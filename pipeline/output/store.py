"""The `Store` of an output: one flat folder in which every file is whole.

Both kinds of store replace a file in one step, so readers never see half a file, and a file that is
written survives a crash. `LocalStore` writes a hidden file, syncs it and renames it; it alone can
append to a file, as the in-flight journal does, whose readers know a torn end. `ObjectStore`
(S3, GCS and others that pyarrow or fsspec knows) relies on PUT, which shows an object only when it
is complete.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.filesystems import open_filesystem, without_secrets


@dataclass(frozen=True)
class LocalStore:
    """An output in a directory, which may lie on a mounted filesystem."""

    directory: Path

    @property
    def uri(self) -> str:
        """The name of the output in messages."""
        return str(self.directory)

    def prepare(self) -> None:
        """Make the directory and those above it."""
        _make_directory(self.directory)

    def clean(self) -> None:
        """Remove half-written files of a killed driver; only the owner of the lock may call it."""
        for path in self.directory.glob(".*.new"):
            path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """List the names of the files, sorted, without hidden ones."""
        try:
            found = list(os.scandir(self.directory))
        except FileNotFoundError:
            return []
        return sorted(e.name for e in found if e.is_file() and not e.name.startswith("."))

    def path_of(self, name: str) -> tuple[pafs.FileSystem, str]:
        """Return the filesystem and the path of a file, as pyarrow's readers take them."""
        return pafs.LocalFileSystem(), str(self.directory / name)

    def read(self, name: str) -> bytes | None:
        """Read a file; None if it does not exist."""
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a hidden file beside, sync it, rename it and sync the directory."""
        # The random name is needed since an actor of a killed driver may still write for a moment.
        new = self.directory / f".{name}.{secrets.token_hex(4)}.new"
        try:
            with new.open("wb") as file:
                file.write(memoryview(content))
                file.flush()
                os.fsync(file.fileno())
            new.rename(self.directory / name)
        except OSError as error:
            new.unlink(missing_ok=True)  # frees the space on a full disk
            raise _named(error, self.directory / name) from error
        _sync_directory(self.directory)

    def open_end(self, name: str) -> int:
        """Open a file to append to it; who has the descriptor writes, syncs and closes it."""
        return os.open(self.directory / name, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def move(self, name: str, folder: str) -> None:
        """Rename a file into a folder below, which readers of the output skip."""
        target = self.directory / folder
        target.mkdir(exist_ok=True)
        (self.directory / name).rename(target / name)
        _sync_directory(target)
        _sync_directory(self.directory)

    def delete(self, name: str) -> None:
        """Remove a file if it exists."""
        (self.directory / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class ObjectStore:
    """An output below a prefix of an object store."""

    uri: str  # the name of the output in messages, without credentials
    filesystem: pafs.FileSystem
    prefix: str  # on the filesystem, without a last slash

    def prepare(self) -> None:
        """Refuse a key that has an object; there are no folders to make.

        Raises:
            ValueError: an object has the name of the output.
        """
        if self.filesystem.get_file_info(self.prefix).type == pafs.FileType.File:
            raise ValueError(f"cannot write below {self.uri}: it is an object; name a prefix")

    def clean(self) -> None:
        """Do nothing, since an unfinished PUT leaves no object."""

    def names(self) -> list[str]:
        """List the names of the objects, sorted, without hidden ones."""
        selector = pafs.FileSelector(self.prefix, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(
            info.base_name
            for info in infos
            if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        )

    def path_of(self, name: str) -> tuple[pafs.FileSystem, str]:
        """Return the filesystem and the bucket and key of an object."""
        return self.filesystem, f"{self.prefix}/{name}"

    def read(self, name: str) -> bytes | None:
        """Read an object; None if it does not exist."""
        path = f"{self.prefix}/{name}"
        if self.filesystem.get_file_info(path).type != pafs.FileType.File:
            return None
        with self.filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read()

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write an object by one PUT, or by a multipart upload that appears at its end.

        Raises:
            OSError: the object cannot be written, or has another size afterwards.
        """
        path, num_bytes = f"{self.prefix}/{name}", len(memoryview(content))
        with self.filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(content)
        size = self.filesystem.get_file_info(path).size
        if size != num_bytes:
            raise OSError(f"{path} has {size} bytes after {num_bytes} were written")

    def move(self, name: str, folder: str) -> None:
        """Copy an object to a key below a folder, then delete it."""
        source, target = f"{self.prefix}/{name}", f"{self.prefix}/{folder}/{name}"
        self.filesystem.copy_file(source, target)
        self.filesystem.delete_file(source)

    def delete(self, name: str) -> None:
        """Delete an object if it exists."""
        path = f"{self.prefix}/{name}"
        if self.filesystem.get_file_info(path).type == pafs.FileType.File:
            self.filesystem.delete_file(path)


Store = LocalStore | ObjectStore


def open_store(uri: str) -> Store:
    """Open the store of an output.

    Raises:
        ValueError: no known filesystem has such a URI, or a local file stands in its place.
    """
    try:
        filesystem, path = open_filesystem(uri)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot write to the output {uri}: {error}") from error
    if isinstance(filesystem, pafs.LocalFileSystem):
        _check_directory(Path(path), uri)
        return LocalStore(Path(path))
    return ObjectStore(without_secrets(uri).partition("?")[0], filesystem, path.rstrip("/"))


def _check_directory(path: Path, uri: str) -> None:
    for each in (path, *path.parents):
        if each.is_symlink() and not each.exists():
            raise ValueError(f"cannot write to the output {uri}: {each} is a broken link")
        if each.exists():
            if not each.is_dir():
                raise ValueError(
                    f"cannot write to the output {uri}: {each} is a file; name a directory"
                )
            return


def _named(error: OSError, path: Path) -> OSError:
    """Copy an error and add the path, which errors of `write` and `fsync` do not have."""
    return type(error)(error.errno, error.strerror, str(path))


def _make_directory(path: Path) -> None:
    """Make a directory and those above it, and sync each entry, so that all survive a crash."""
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
