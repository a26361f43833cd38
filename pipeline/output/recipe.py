"""The recipe of an output: everything that changes the captions, as one stored value.

A run that continues an output must have the recipe that the output was begun with, so captions that
were made in two ways are never mixed in one directory.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.output.ledger import committed_parts, is_part
from pipeline.output.lock import LOCK
from pipeline.output.store import Store

_FILE = "_recipe.json"
SHARD = "_shard.json"  # says which shard of which input an output is
_TAIL_BYTES = 1 << 20  # of a weights file, that are part of the fingerprint


@dataclass(frozen=True)
class Recipe:
    """Named values that JSON can hold, and their digest; nested mappings group the fields."""

    fields: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """The digest of the fields, independent of their order."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()

    @property
    def plain_fields(self) -> Any:
        """The fields as they come back from a file: lists in place of tuples."""
        return json.loads(json.dumps(self.fields))

    @property
    def parquet_metadata(self) -> dict[str, str]:
        """The metadata that every part file of the output carries."""
        return {
            "moonsweep.recipe": json.dumps(self.fields, sort_keys=True),
            "moonsweep.recipe_sha256": self.sha256,
        }


def claim_output(store: Store, recipe: Recipe, *, new_recipe: bool = False) -> None:
    """Store `recipe` in a new output, or check that the stored one is the same.

    `new_recipe` moves part files of another recipe into a folder that readers skip, and begins
    anew. If this is interrupted, the same call continues it.

    Raises:
        ValueError: the output was begun with another recipe, or has part files and no recipe (the
            message names each difference, old -> new), or it holds files that no job wrote.
    """
    _refuse_foreign_files(store)
    stored, fields = stored_fields(store), recipe.plain_fields
    parts = committed_parts(store)
    if parts and stored != fields:
        if not new_recipe:
            raise ValueError(_refusal(store, stored, fields))
        _set_aside(store, parts)
    if not parts or stored != fields:
        write_json(store, _FILE, fields)


def _refuse_foreign_files(store: Store) -> None:
    """Refuse files beside the parts, since readers of the whole folder would read them too."""
    foreign = [name for name in store.names() if not (name.startswith("_") or is_part(name))]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ValueError(
            f"{store.uri} holds files that no job wrote: {', '.join(foreign[:3])}{more}. Readers "
            "of the whole folder, such as pandas.read_parquet, would read them as rows or fail; "
            "move them away, or use another --output"
        )


def stored_fields(store: Store) -> Any:
    """Read the fields of the recipe that an output was begun with; None if it has none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = store.read(_FILE)
        return None if content is None else json.loads(content)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{_FILE} of {store.uri} cannot be read ({error}); use another --output"
        ) from error


def _refusal(store: Store, stored: Any, fields: Any) -> str:
    if stored is None:
        return f"{store.uri} holds parts and no {_FILE}; use another --output"
    return (
        f"{store.uri} was begun under another recipe: {'; '.join(differences(stored, fields))}. "
        "Use the old settings to continue it, another --output, or --new-recipe to set its rows "
        "aside and begin anew"
    )


def _set_aside(store: Store, parts: list[str]) -> None:
    """Move everything that was made under the old recipe into a folder below."""
    folder = f"_old-{time.strftime('%Y%m%d-%H%M%S')}"
    stays = (LOCK, SHARD)
    beside = [name for name in store.names() if name.startswith("_") and name not in stays]
    # The recipe goes last: as long as it is there, an interrupted move is recognized and continued.
    for name in (*parts, *sorted(beside, key=lambda name: name == _FILE)):
        store.move(name, folder)


def checkpoint_fingerprint(directory: Path) -> str:
    """Digest a checkpoint: its small files whole, and name, size and tail of its weights files.

    It reads at most 1 MiB of each weights file, so that even a large checkpoint takes a moment.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix == ".safetensors":
            digest.update(f"{path.name}:{path.stat().st_size}:".encode() + _tail(path))
        elif path.suffix in (".json", ".model", ".jinja"):
            digest.update(f"{path.name}:".encode() + path.read_bytes())
    return digest.hexdigest()


def write_json(store: Store, name: str, value: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, so that it is never half-written."""
    store.write(name, f"{json.dumps(value, indent=2)}\n".encode())


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read()


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Yield each field that differs, as `name: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _list_differences(old, new, name)
    elif old != new:
        yield f"{name}: {_short(old)} -> {_short(new)}"


def _list_differences(old: list[Any], new: list[Any], name: str) -> Iterator[str]:
    """Yield the differences of lists of plain values, or of mappings with names, as prompts are."""
    if any(isinstance(each, dict) for each in (*old, *new)):
        olds, news = ({each["name"]: each for each in values} for values in (old, new))
        yield from _list_differences(list(olds), list(news), name)
        for key in (key for key in olds if key in news):
            yield from differences(olds[key], news[key], f"{name}.{key}")
    elif set(old) != set(new):
        gone = [f"- {each}" for each in old if each not in new]
        yield f"{name}: {', '.join([*gone, *(f'+ {each}' for each in new if each not in old)])}"
    elif old != new:
        yield f"{name}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
