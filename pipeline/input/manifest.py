"""Binds the names of rows to the files that they were given for.

Rows without an id column are named by their places, and --make-ids-unique lets the first row with
an id keep it. Such names mean something else once a file changes. So the output stores what its
input was: `_files.json` has the name, the number of rows and the digest of each file. A file that
changed is refused, or its rows are recognized with `--new-rows`. A file that is added between runs
comes after the known ones, so that it takes no id of a row that is done.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.input.new_rows import recognize_rows
from pipeline.input.row_ids import InputFile
from pipeline.input.source import Source
from pipeline.output.store import Store

FILES = "_files.json"
_MAX_NAMED = 3  # in an error message
_PLACES = (
    "Without --id-column rows are named by their places, so captions would stand at other rows; "
    "give --new-rows to answer the rows that are new and keep the others, put the files back as "
    "they were, or use another --output"
)
_UNIQUE = (
    "With --make-ids-unique other rows could get their ids; put the files back as they were, or "
    "use another --output"
)


def in_known_order(
    source: Source, store: Store, parts: Sequence[str], *, new_rows: bool = False
) -> Source:
    """Give the rows of an input the names that the output knows them by.

    If repeated ids are renamed, files that the output knows come first. With `new_rows`, rows of
    files that changed keep their names if the output has them, and others get new ones; rows that
    the input does not have any more stay in the output. If the output has no part files, all files
    count as new.

    Raises:
        ValueError: a known file is gone or changed, and other rows could get the names of its rows;
            or the list is damaged.
    """
    if not is_needed(source) or not parts:
        return source
    known, present = _known_files(store), {file.name: file for file in source.files}
    changes = list(_changes(known, present))
    if changes and (not new_rows or source.naming.is_renaming):
        more = [f"and {len(changes) - _MAX_NAMED} more"] if len(changes) > _MAX_NAMED else []
        raise ValueError(
            f"files of {store.uri} changed since its rows were named: "
            f"{'; '.join([*changes[:_MAX_NAMED], *more])}. "
            f"{_UNIQUE if source.naming.is_renaming else _PLACES}"
        )
    files = tuple(_named_as(file, known.get(file.name)) for file in source.files)
    if source.naming.is_renaming:
        order = {name: place for place, name in enumerate(known)}
        files = tuple(sorted(files, key=lambda file: order.get(file.name, len(order))))
    gone = tuple(file for file in known.values() if file.name not in present)
    source = source.with_files(files, gone)
    if changes:
        source = recognize_rows(source, store, parts, set(_changed_names(known, present)))
    return source


def note_files(source: Source, store: Store) -> None:
    """Store what the files of an input are; call it before a row is answered."""
    if not is_needed(source):
        return
    files = [_as_json(file) for file in source.files]
    gone = [{**_as_json(file), "gone": True} for file in source.gone]
    content = json.dumps({"files": [*files, *gone]}).encode()
    if store.read(FILES) != content:
        store.write(FILES, content)


def is_needed(source: Source) -> bool:
    """Whether names of rows depend on the files that they are in."""
    return source.naming.is_renaming or source.naming.column is None


def knows_files(store: Store) -> bool:
    """Whether an output knows what its input was; those of former versions may not."""
    return store.read(FILES) is not None


def _named_as(file: InputFile, known: InputFile | None) -> InputFile:
    """Name the rows of a file as the output knows them, if it does."""
    if known is None:
        return file
    next_number = known.num_rows if known.next_number is None else known.next_number
    return replace(file, numbers=known.numbers, next_number=next_number, num_gone=known.num_gone)


def _known_files(store: Store) -> dict[str, InputFile]:
    """Read the stored list, by name and in its order; of files that are gone, `path` is empty."""
    content = store.read(FILES)
    try:
        value = json.loads(content or b"{}")
        if not isinstance(value.get("files"), list):  # of a former version: the number of rows
            return {name: InputFile(name, name, (int(rows),)) for name, rows in value.items()}
        return {each["name"]: _of_json(**each) for each in value["files"]}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{FILES} of {store.uri} is damaged ({error}); use another --output"
        ) from error


def _as_json(file: InputFile) -> dict[str, Any]:
    fields = {"name": file.name, "rows": file.num_rows, "digest": file.digest}
    rare = {
        "numbers": file.numbers or None,
        "next": None if file.next_number == file.num_rows else file.next_number,
        "num_gone": file.num_gone or None,
    }
    return {**fields, **{name: value for name, value in rare.items() if value is not None}}


def _of_json(
    name: str,
    rows: int,
    digest: str,
    numbers: Sequence[tuple[int, int]] = (),
    next: int | None = None,  # noqa: A002, a key of the file
    num_gone: int = 0,
    *,
    gone: bool = False,
) -> InputFile:
    runs = tuple((int(first), int(number)) for first, number in numbers)
    path = "" if gone else name
    return InputFile(
        name, path, (int(rows),), digest, numbers=runs, next_number=next, num_gone=num_gone
    )


def _changes(known: Mapping[str, InputFile], present: Mapping[str, InputFile]) -> Iterator[str]:
    """Yield a sentence for each change after which rows could be mistaken for others."""
    for name in _changed_names(known, present):
        old, new = known[name], present.get(name)
        if new is None:
            twins = [each for each in present.values() if each.digest == old.digest]
            yield f"{name} is gone" + (f" (its content is in {twins[0].name})" if twins else "")
        elif not old.path:
            yield f"{name} was gone and is there again"
        elif old.num_rows != new.num_rows:
            yield f"{name} had {old.num_rows} rows and has {new.num_rows}"
        else:
            yield f"{name} has other content"


def _changed_names(
    known: Mapping[str, InputFile], present: Mapping[str, InputFile]
) -> Iterator[str]:
    for name, old in known.items():
        new = present.get(name)
        if new is None:
            if old.path:  # else a run has accepted that it is gone
                yield name
        elif (
            not old.path
            or old.num_rows != new.num_rows
            or (old.digest and old.digest != new.digest)
        ):
            yield name
