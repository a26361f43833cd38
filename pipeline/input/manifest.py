"""Keeps the files of an input in the order in which runs of an output first met them.

With --make-ids-unique the first row with an id keeps it, and later ones are named by their place.
A file that is added between runs may sort before files whose rows are done; it must not take their
ids. So the output stores the list of the files, `_files.json`: known files come first, new ones
after them.
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
    """Reorder the files of an input, those that the output knows first, so that row ids stay.

    If the output has no part files, all files count as new.

    Raises:
        ValueError: a known file is gone or has another number of rows, so that other rows could
            get its ids; or the list is damaged.
    """
    if not _is_needed(source) or not parts:
        return source
    known, present = _known_files(store), {file.name: file for file in source.files}
    changes = list(_changes(known, present))
    if changes:
        more = [f"and {len(changes) - _MAX_NAMED} more"] if len(changes) > _MAX_NAMED else []
        raise ValueError(
            f"files of {store.uri} changed since its rows were named: "
            f"{'; '.join([*changes[:_MAX_NAMED], *more])}. With --make-ids-unique other rows could "
            "get their ids; put the files back as they were, or use another --output"
        )
    files = (
        *(present[name] for name in known),
        *(file for file in source.files if file.name not in known),
    )
    return replace(source, files=files, naming=replace(source.naming, files=files))


def note_files(source: Source, store: Store) -> None:
    """Store the list of the files of an input in known order; call it before a row is answered."""
    if not _is_needed(source):
        return
    content = json.dumps({file.name: file.num_rows for file in source.files}).encode()
    if store.read(FILES) != content:
        store.write(FILES, content)


def _is_needed(source: Source) -> bool:
    """Whether ids depend on the order of the files."""
    return source.naming.make_unique and source.naming.column is not None


def _known_files(store: Store) -> dict[str, int]:
    """Read the stored list: the number of rows of each file, in order."""
    content = store.read(FILES)
    try:
        return {str(name): int(rows) for name, rows in json.loads(content or b"{}").items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{FILES} of {store.uri} is damaged ({error}); use another --output"
        ) from error


def _changes(known: Mapping[str, int], present: Mapping[str, InputFile]) -> Iterator[str]:
    for name, num_rows in known.items():
        if name not in present:
            yield f"{name} is gone"
        elif present[name].num_rows != num_rows:
            yield f"{name} had {num_rows} rows and has {present[name].num_rows}"
