"""Lists the Parquet files of an input, on any filesystem that pyarrow or fsspec knows."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.filesystems import open_filesystem
from pipeline.input.files_below import Found, LeftOut, files_below
from pipeline.output.ledger import is_part
from pipeline.output.shards import is_shard_folder
from pipeline.output.store import open_store

_PARTS = "parts of the output"


@dataclass(frozen=True)
class Listing:
    """The files of an input, sorted by name."""

    filesystem: pafs.FileSystem
    folder: str  # base of relative media paths; absolute, or a URI
    files: tuple[tuple[str, str], ...]  # (name below the folder, path on the filesystem)
    left_out: LeftOut = field(default_factory=LeftOut)  # what lies beside them and is not read


def list_files(uri: str, *, output: str | None = None) -> Listing:
    """Find the files of an input.

    `uri` is a path, or a URI that may end in a query with options of the filesystem. It names a
    file, a directory of Parquet files, or is a glob pattern in which `**` crosses directories. In
    directories and patterns, names that begin with `_` or `.` are skipped. The results go to
    `output`, which may be the same directory or one below. Its part files, and those of its shards,
    are left out, since each run would otherwise answer the rows of the run before.
    `Listing.left_out` has all of these.

    Raises:
        ValueError: there is no such file, it cannot be listed, or it is unclear whether a file is
            a part file of the output.
    """
    listing = _find(uri)
    if output is None:
        return listing
    files = _without_parts(listing.filesystem, listing.files, uri, output)
    if not files:
        raise ValueError(
            f"{uri} names no Parquet file but the parts of the output {output}; name the files to "
            "caption, or another --output"
        )
    for name, _ in {*listing.files} - {*files}:
        listing.left_out.add(_PARTS, name)
    return replace(listing, files=files)


def _find(uri: str) -> Listing:
    """Find the files that a path, pattern or URI names.

    Raises:
        ValueError: it cannot be listed, or names no file.
    """
    place, _, query = uri.partition("?") if "://" in uri else (uri, "", "")
    settings = f"?{query}" if query else ""
    head, pattern = _split_pattern(place)
    try:
        if "://" not in uri and Path(place).expanduser().is_file():
            head, pattern = place, ""  # the name of a file that has brackets
        filesystem, root = open_filesystem(f"{head}{settings}")
        kind = filesystem.get_file_info(root).type
        if kind == pafs.FileType.NotFound:
            raise FileNotFoundError(f"{root} does not exist")
        if not pattern and kind == pafs.FileType.File:
            folder, name = str(PurePosixPath(root).parent), PurePosixPath(root).name
            head = head.rpartition("/")[0]
            found = Found(((name, root),))
        else:
            folder, found = root, files_below(filesystem, root, pattern)
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise ValueError(f"cannot open {uri}: {error}") from error
    if not found.files:
        raise ValueError(f"{uri} names no Parquet file{_why_none(found, uri)}")
    is_remote = "://" in uri and not uri.startswith("file://")
    base = f"{head}{settings}" if is_remote else folder
    return Listing(filesystem, base, found.files, found.left_out)


def _why_none(found: Found, uri: str) -> str:
    """What is there in place of Parquet files."""
    left_out = f"; left out: {found.left_out}" if found.left_out else ""
    if not found.matches_folders:
        return left_out
    files = f"{uri.rstrip('/')}/**/*.parquet"
    return f"{left_out}; it matches folders, whose files are {files!r}"


def _split_pattern(path: str) -> tuple[str, str]:
    """Split before the first component with a wildcard: `a/b/*.pq` -> `a/b`, `*.pq`."""
    marks = "*[" if "://" in path else "*[?"  # in a URI, `?` begins the query
    first = min((path.find(mark) for mark in marks if mark in path), default=-1)
    if first < 0:
        return path, ""
    head, slash, _ = path[:first].rpartition("/")
    return (head or slash or "."), path[len(head) + len(slash) :]


def _without_parts(
    filesystem: pafs.FileSystem, found: tuple[tuple[str, str], ...], uri: str, output: str
) -> tuple[tuple[str, str], ...]:
    """Leave out files in the output or in a shard of it that have the name of a part file.

    Raises:
        ValueError: the output cannot be opened, or two stores may have it under one name.
    """
    other, part = open_store(output).path_of("part")
    if filesystem.type_name != other.type_name:
        return found
    folder = _folder(other, part)
    own = {
        path
        for _, path in found
        if is_part(PurePosixPath(path).name) and _is_output(_folder(filesystem, path), folder)
    }
    # Two servers may have buckets of one name, so equal paths prove nothing if settings differ. Two
    # filesystems of equal settings can still compare unequal, such as by their credentials.
    if own and _settings(uri) != _settings(output) and not filesystem.equals(other):
        raise ValueError(
            f"{min(own)} of the input may be a part of the output {output} or not, since the two "
            "have different settings; give both the same ones, or use another --output"
        )
    return tuple((name, path) for name, path in found if path not in own)


def _is_output(folder: str, output: str) -> bool:
    """Whether a folder is the output or one of its shards."""
    above, _, name = folder.rpartition("/")
    return folder == output or (above == output and is_shard_folder(name))


def _settings(uri: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Return the scheme, login and settings of a URI, which choose the filesystem."""
    place, _, query = uri.partition("?")
    scheme, _, rest = place.partition("://")
    return scheme, rest.partition("/")[0].rpartition("@")[0], sorted(parse_qsl(query))


def _folder(filesystem: pafs.FileSystem, path: str) -> str:
    """Return the folder of a file; on local disks with symbolic links resolved."""
    folder = path.rpartition("/")[0]
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    return os.path.realpath(folder) if is_local else folder.strip("/")
