"""The files of an input in the order in which an output met them, where names depend on it.

With --make-ids-unique the first row of an id keeps it and later ones are named by their place. A
file that is added may sort before those whose rows are done, and must not take their ids. So the
output keeps the list of its files, `_files.json`: known ones come first, new ones after them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pipeline.input.row_ids import InputFile
from pipeline.input.source import Source
from pipeline.output.store import Store

FILES = "_files.json"
_MAX_NAMED = 3  # in an error message


def in_known_order(source: Source, store: Store, parts: Sequence[str]) -> Source:
    """The same input with the files first that an output knows, so that its names stay.

    Args:
        source: the input.
        store: the output.
        parts: of the output; without any, all files are new.

    Raises:
        ValueError: a known file is gone or has another number of rows, so that ids could pass to
            other rows; or the list is damaged.
    """
    if not _is_needed(source) or not parts:
        return source
    known, there = _known_files(store), {file.name: file for file in source.files}
    changes = list(_changes(known, there))
    if changes:
        more = [f"and {len(changes) - _MAX_NAMED} more"] if len(changes) > _MAX_NAMED else []
        raise ValueError(
            f"files of {store.uri} changed since its rows were named: "
            f"{'; '.join([*changes[:_MAX_NAMED], *more])}. With --make-ids-unique other rows could "
            "get their ids; put the files back as they were, or use another --output"
        )
    files = (
        *(there[name] for name in known),
        *(file for file in source.files if file.name not in known),
    )
    return replace(source, files=files, naming=replace(source.naming, files=files))


def note_files(source: Source, store: Store) -> None:
    """Write the list of an input in known order, before any of its rows is answered."""
    if not _is_needed(source):
        return
    content = json.dumps({file.name: _num_rows(file) for file in source.files}).encode()
    if store.read(FILES) != content:
        store.write(FILES, content)


def _is_needed(source: Source) -> bool:
    return source.naming.make_unique and source.naming.column is not None


def _known_files(store: Store) -> dict[str, int]:
    """The number of rows of each file, in the order of the list."""
    content = store.read(FILES)
    try:
        return {str(name): int(rows) for name, rows in json.loads(content or b"{}").items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{FILES} of {store.uri} is damaged ({error}); use another --output"
        ) from error


def _changes(known: Mapping[str, int], there: Mapping[str, InputFile]) -> Iterator[str]:
    for name, num_rows in known.items():
        if name not in there:
            yield f"{name} is gone"
        elif _num_rows(there[name]) != num_rows:
            yield f"{name} had {num_rows} rows and has {_num_rows(there[name])}"


def _num_rows(file: InputFile) -> int:
    return sum(file.row_group_rows)
