"""Which Parquet files an input names, on any filesystem that pyarrow or fsspec knows."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.storage import open_filesystem

_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class Listing:
    """The files of an input, sorted by name."""

    filesystem: pafs.FileSystem
    folder: str  # what relative paths in the input are relative to; absolute, or a URI
    files: tuple[tuple[str, str], ...]  # (name below the folder, path on the filesystem)


def list_files(uri: str) -> Listing:
    """Find the files of an input.

    Args:
        uri: a file, a directory whose Parquet files are meant, or a glob pattern (`**` crosses
            directories); names that begin with `_` or `.` are left out of the latter two. A path,
            or a URI, which may end in a query for the filesystem's settings.

    Raises:
        ValueError: there is nothing, or it cannot be listed.
    """
    place, _, query = uri.partition("?") if "://" in uri else (uri, "", "")
    settings = f"?{query}" if query else ""
    head, pattern = _split_pattern(place)
    try:
        if "://" not in uri and Path(place).expanduser().is_file():
            head, pattern = place, ""  # a name with brackets, not a pattern
        filesystem, root = open_filesystem(f"{head}{settings}")
        kind = filesystem.get_file_info(root).type
        if kind == pafs.FileType.NotFound:
            raise FileNotFoundError(f"{root} does not exist")
        if not pattern and kind == pafs.FileType.File:
            folder, name = str(PurePosixPath(root).parent), PurePosixPath(root).name
            head = head.rpartition("/")[0]
            found = [(name, root)]
        else:
            folder, found = root, _below(filesystem, root, pattern)
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise ValueError(f"cannot open {uri}: {error}") from error
    if not found:
        raise ValueError(f"{uri} names no Parquet file")
    is_remote = "://" in uri and not uri.startswith("file://")
    return Listing(
        filesystem,
        f"{head}{settings}" if is_remote else folder,
        tuple(sorted(found)),
    )


def _split_pattern(path: str) -> tuple[str, str]:
    """Split before the first component with a wildcard: `a/b/*.pq` -> `a/b`, `*.pq`."""
    marks = "*[" if "://" in path else "*[?"
    first = min((path.find(mark) for mark in marks if mark in path), default=-1)
    if first < 0:
        return path, ""
    head, slash, _ = path[:first].rpartition("/")
    return (head or slash or "."), path[len(head) + len(slash) :]


def _below(filesystem: pafs.FileSystem, root: str, pattern: str) -> list[tuple[str, str]]:
    found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    names = [
        (str(PurePosixPath(info.path).relative_to(root)), info.path)
        for info in found
        if info.type == pafs.FileType.File
    ]
    return [
        (name, path)
        for name, path in names
        if not any(part.startswith(("_", ".")) for part in name.split("/"))
        and (_matches(name, pattern) if pattern else name.endswith(_SUFFIXES))
    ]


def _matches(name: str, pattern: str) -> bool:
    """Whether a relative path fits a pattern; `*` stays in one directory, `**` does not."""
    first, _, rest = pattern.partition("/")
    head, _, tail = name.partition("/")
    if first == "**":
        return _matches(name, rest or "*") or bool(tail and _matches(tail, pattern))
    if not fnmatchcase(head, first):
        return False
    return _matches(tail, rest) if rest and tail else not rest and not tail
