"""The shards of an output: one input is answered by N jobs, each in a folder of its own below it.

    OUTPUT/shard-1-of-4/part-*.parquet, _recipe.json, _lock, ...
    OUTPUT/shard-2-of-4/...

A shard is a run of neighbouring rows of the input, so its number, the number of shards and the
input say which rows it has. What all shards must agree on, the number of shards, the input and the
recipe, is stored by each in its own folder and compared with that of the others. So no file is
shared, and each shard is an output of its own: locked, resumed and refused like any other.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import pyarrow.fs as pafs

from pipeline.filesystems import below, open_filesystem
from pipeline.output.ledger import committed_parts
from pipeline.output.recipe import SHARD, Recipe, differences, stored_fields, write_json
from pipeline.output.store import Store, open_store

_FOLDER = re.compile(r"shard-([1-9][0-9]*)-of-([1-9][0-9]*)")
_NUM_READERS = 16  # threads


@dataclass(frozen=True, order=True)
class Shard:
    """One of the parts in which an input is answered; the first has the number 1.

    Raises:
        ValueError: there is no such shard.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ValueError(
                f"--shard {self} names no shard; give I/N with I from 1 to N, such as 1/{self.of}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def folder(self) -> str:
        """The folder of the shard below the output."""
        return f"shard-{self.number}-of-{self.of}"

    def rows(self, num_rows: int) -> range:
        """Return the rows of the shard, by their numbers in an input of so many rows.

        Together the shards have each row once, and the numbers of their rows differ by one at most.
        """
        return range((self.number - 1) * num_rows // self.of, self.number * num_rows // self.of)


@dataclass(frozen=True)
class InputIdentity:
    """What tells one input from another by its listing: rows of a shard are found by number."""

    num_rows: int
    num_files: int
    files_sha256: str  # of names and numbers of rows

    @classmethod
    def of(cls, files: Iterable[tuple[str, int]]) -> "InputIdentity":
        """Describe an input by the names and the numbers of rows of its files, in their order."""
        found = list(files)
        digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
        return cls(sum(rows for _, rows in found), len(found), digest)

    def __str__(self) -> str:
        return f"{self.num_rows} rows in {self.num_files} files"


def is_shard_folder(name: str) -> bool:
    """Whether a folder has the name of a shard."""
    return _FOLDER.fullmatch(name) is not None


def shard_store(output: str, shard: Shard | None) -> Store:
    """Open the store that a run writes to: that of its shard, or the output itself.

    Raises:
        ValueError: no known filesystem has such a URI.
    """
    return open_store(output if shard is None else below(output, shard.folder))


def begun_shards(output: str) -> list[Shard]:
    """List the shards of an output that have been begun, in order.

    Raises:
        ValueError: the output cannot be listed.
    """
    try:
        filesystem, root = open_filesystem(output)
        infos = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot list the output {open_store(output).uri}: {error}") from error
    found = [_FOLDER.fullmatch(each.base_name) for each in infos if not each.is_file]
    shards = [(int(each[1]), int(each[2])) for each in found if each is not None]
    named = [Shard(number, of) for number, of in sorted(shards) if number <= of]
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        is_begun = pool.map(lambda each: shard_store(output, each).read(SHARD) is not None, named)
        return [shard for shard, begun in zip(named, is_begun, strict=True) if begun]


def check_place(output: str, shard: Shard | None) -> None:
    """Make sure that an output is not cut in another way; nothing is written.

    Raises:
        ValueError: it has shards and the run has none, or the other way round, or another number.
    """
    others = [each for each in begun_shards(output) if shard is None or each.of != shard.of]
    uri = open_store(output).uri
    if others:
        asked = "is not to be cut" if shard is None else f"is to be cut into {shard.of}"
        raise ValueError(
            f"{uri} holds {others[0].folder}, so its input is cut into {others[0].of} shards, and "
            f"this run {asked}; give --shard I/{others[0].of}, or use another --output"
        )
    if shard is not None and stored_fields(open_store(output)) is not None:
        raise ValueError(
            f"{uri} was begun by a run without --shard; continue it so, or use another --output"
        )


def claim_shard(
    output: str, shard: Shard, identity: InputIdentity, recipe: Recipe, *, new_recipe: bool
) -> None:
    """Store what a shard is of, once its lock is held, or check that it is as it was.

    Raises:
        ValueError: as `check_shard`.
    """
    check_shard(output, shard, identity, recipe, new_recipe=new_recipe)
    store = shard_store(output, shard)
    if _record(store) == identity:
        return
    write_json(store, SHARD, {"shard": str(shard), **asdict(identity)})
    try:  # once more: of two shards that begin together, at least one sees what the other wrote
        check_shard(output, shard, identity, recipe, new_recipe=new_recipe)
    except ValueError:
        store.delete(SHARD)
        raise


def check_shard(
    output: str, shard: Shard, identity: InputIdentity, recipe: Recipe, *, new_recipe: bool
) -> None:
    """Make sure that a shard and the others of an output are of one input and one recipe.

    With `new_recipe` others may still have another recipe, until they are run with it too. Nothing
    is written.

    Raises:
        ValueError: the input has changed since this shard or another one was begun, another shard
            has another recipe, or the output is cut in another way.
    """
    check_place(output, shard)
    store = shard_store(output, shard)
    stored = _record(store)
    if stored is not None and stored != identity and committed_parts(store):
        raise ValueError(_changed(store, stored, identity))
    _check_others(output, shard, identity, recipe, new_recipe=new_recipe)


def _check_others(
    output: str, shard: Shard, identity: InputIdentity, recipe: Recipe, *, new_recipe: bool
) -> None:
    others = [each for each in begun_shards(output) if each != shard]
    for other, record, fields in read_records(output, others):
        store = shard_store(output, other)
        if record is not None and record != identity:
            raise ValueError(_changed(store, record, identity))
        if new_recipe or fields is None or fields == recipe.plain_fields:
            continue
        if committed_parts(store):
            changes = "; ".join(differences(fields, recipe.plain_fields))
            raise ValueError(
                f"{store.uri} was begun under another recipe: {changes}. All shards need the same "
                "settings; use those, another --output, or run every shard with --new-recipe"
            )


def read_records(
    output: str, shards: Sequence[Shard]
) -> list[tuple[Shard, InputIdentity | None, Mapping[str, object] | None]]:
    """Read of each shard which input it is of, and its recipe; None if it has none yet.

    Raises:
        ValueError: a file is damaged.
    """
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        stores = [shard_store(output, each) for each in shards]
        found = zip(shards, pool.map(_record, stores), pool.map(stored_fields, stores), strict=True)
        return list(found)


def _record(store: Store) -> InputIdentity | None:
    content = store.read(SHARD)
    if content is None:
        return None
    try:
        fields = json.loads(content)
        return InputIdentity(
            int(fields["num_rows"]), int(fields["num_files"]), str(fields["files_sha256"])
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{SHARD} of {store.uri} is damaged ({error}); delete it, and the same command writes "
            "it again"
        ) from error


def _changed(store: Store, was: InputIdentity, now: InputIdentity) -> str:
    return (
        f"{store.uri} was begun with an input of {was}, and the input has {now} now, by other "
        "names or numbers of rows, so shards would have other rows; put the files back as they "
        "were, or use another --output"
    )
