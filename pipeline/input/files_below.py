"""Finds the Parquet files below a folder, and tells what it leaves out and why."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

_SUFFIXES = (".parquet", ".parq", ".pq")  # in any case
HIDDEN = "hidden, with a name that begins with _ or ."
OTHER_SUFFIX = f"with another suffix than {', '.join(_SUFFIXES)}"
OTHER_CASE = "that the pattern matches but for the case of letters"
CIRCLE = "links to a folder above"
_MAX_NAMED = 3  # of each reason


@dataclass
class LeftOut:
    """Counts what lies below a folder and is not read; false if there is nothing."""

    counts: dict[str, int] = field(default_factory=dict)  # by the reason
    # The first names of each reason. There may be millions: media often lie beside their table.
    named: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, why: str, name: str) -> None:
        """Count one name."""
        self.counts[why] = self.counts.get(why, 0) + 1
        self.named[why] = tuple(sorted([*self.named.get(why, ()), name])[:_MAX_NAMED])

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return ", ".join(
            f"{count:,} {why} ({', '.join(self.named[why])}{', ...' * (count > _MAX_NAMED)})"
            for why, count in sorted(self.counts.items())
        )


@dataclass(frozen=True)
class Found:
    """The files below a folder."""

    files: tuple[tuple[str, str], ...] = ()  # (name below the folder, path), sorted by name
    left_out: LeftOut = field(default_factory=LeftOut)
    matches_folders: bool = False  # whether a pattern matches folders, and not the files in them


def files_below(filesystem: pafs.FileSystem, root: str, pattern: str) -> Found:
    """Find the Parquet files below a folder; with a pattern, those that it matches.

    A pattern also matches a folder with the name of a Parquet file, as Spark writes them, and so
    the Parquet files in it.

    Raises:
        ValueError: what would be read is a broken link, or no file.
        OSError: a folder cannot be listed.
    """
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    listed = _local_names(root) if is_local else _names(filesystem, root)
    files: list[tuple[str, str]] = []
    left_out = LeftOut()
    hidden_folders: set[str] = set()
    has_folders = False
    for name in listed:
        why = CIRCLE if name.endswith("/") else _why_not(name, pattern)
        if why == "":
            has_folders |= any(_matches(parent, pattern) for parent in _parents(name))
        elif hidden := _hidden_part(name):
            if hidden not in hidden_folders:
                left_out.add(HIDDEN, hidden)
            if hidden.endswith("/"):  # counts once, whatever it holds
                hidden_folders.add(hidden)
        elif why:
            left_out.add(why, name)
        else:
            path = f"{root.rstrip('/')}/{name}"
            if is_local:
                _check_is_file(path)
            files.append((name, path))
    return Found(tuple(sorted(files)), left_out, has_folders)


def _why_not(name: str, pattern: str) -> str | None:
    """Why a file is left out: a reason, "" if nobody asked for it, None if it is read."""
    if pattern and _matches(name, pattern):
        return None
    if not pattern or any(_matches(each, pattern) for each in _parents(name) if _is_parquet(each)):
        return None if _is_parquet(name) else OTHER_SUFFIX
    return OTHER_CASE if _matches(name.lower(), pattern.lower()) else ""


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _parents(name: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(name).parents][:-1]


def _hidden_part(name: str) -> str:
    """The file or folder that hides a name, a folder with a slash at its end; "" if none does."""
    parts = name.split("/")
    for number, part in enumerate(parts, 1):
        if part.startswith(("_", ".")):
            return "/".join(parts[:number]) + ("/" if number < len(parts) else "")
    return ""


def _names(filesystem: pafs.FileSystem, root: str) -> Iterator[str]:
    """Yield the name of each object below a root."""
    for info in filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
        if info.type == pafs.FileType.File:
            yield str(PurePosixPath(info.path).relative_to(root))


def _local_names(root: str) -> Iterator[str]:
    """Yield the same of a local folder. Links are followed, but to no folder that they lie in.

    Such a link, which is yielded with a slash, would name each file again and again.
    """
    real_folders = {root: frozenset([os.path.realpath(root)])}  # a folder and those above it

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        above = real_folders.pop(folder)
        prefix = f"{PurePosixPath(folder).relative_to(root)}/".removeprefix("./")
        yield from (f"{prefix}{name}" for name in files)
        for name in [*folders]:
            path = os.path.join(folder, name)  # noqa: PTH118  # the names of `os.walk`
            real = os.path.realpath(path)
            if real in above:
                folders.remove(name)
                yield f"{prefix}{name}/"
            else:
                real_folders[path] = above | {real}


def _check_is_file(path: str) -> None:
    if Path(path).is_file():
        return
    if Path(path).is_symlink():
        raise ValueError(
            f"{path} is a broken link: {Path(path).readlink()} does not exist; mend or remove it"
        )
    raise ValueError(f"{path} is a pipe, socket or device, and not a Parquet file; remove it")


def _matches(name: str, pattern: str) -> bool:
    """Whether a relative path matches a pattern; `*` stays in one directory, `**` does not."""
    first, _, rest = pattern.partition("/")
    head, _, tail = name.partition("/")
    if first == "**":
        return _matches(name, rest or "*") or bool(tail and _matches(tail, pattern))
    if not fnmatchcase(head, first):
        return False
    return _matches(tail, rest) if rest and tail else not rest and not tail
