"""Everything that changes the captions, as one value that is stored with the output.

A run that continues an output must have the recipe that the output was begun with: captions made in
two ways are never mixed in one directory.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = "_recipe.json"
_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """A JSON-able mapping and its digest; nested mappings group the fields."""

    fields: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """The digest of the fields, whatever their order."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()

    @property
    def parquet_metadata(self) -> dict[str, str]:
        """What every part of the output says of its origin."""
        return {
            "moonsweep.recipe": json.dumps(self.fields, sort_keys=True),
            "moonsweep.recipe_sha256": self.sha256,
        }


def claim_output(output: Path, recipe: Recipe, *, has_parts: bool) -> None:
    """Store `recipe` in a new output directory, or check that the stored one is the same.

    Raises:
        ValueError: the output was begun under another recipe, or has parts and no recipe; the
            message names each difference, old -> new.
    """
    path = output / _FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        stored = None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); use another --output") from error
    if stored is None and has_parts:
        raise ValueError(f"{output} holds parts and no {_FILE}; use another --output")
    if stored is None or not has_parts:
        write_json(path, dict(recipe.fields))
        return
    found = list(differences(stored, json.loads(json.dumps(recipe.fields))))
    if found:
        raise ValueError(
            f"{output} was begun under another recipe: {'; '.join(found)}. Use the old "
            "settings to continue it, or another --output"
        )


def checkpoint_fingerprint(directory: Path) -> str:
    """Digest of a checkpoint: its small files whole, of its weights the name, size and tail.

    Reads at most 1 MiB of each weights file, so that a checkpoint of any size takes a moment.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix == ".safetensors":
            digest.update(f"{path.name}:{path.stat().st_size}:".encode() + _tail(path))
        elif path.suffix in (".json", ".model", ".jinja"):
            digest.update(f"{path.name}:".encode() + path.read_bytes())
    return digest.hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file that is whole or absent, whenever the machine stops."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read()


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Each field that differs, as `name: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
