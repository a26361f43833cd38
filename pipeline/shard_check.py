"""`ShardCheck`: whether the shards of an output have together each row of the input once.

It reads the listing and the ids of the input, and the ids of the part files, and writes nothing. A
row is 16 bytes, 8 of the input and 8 of the output; where that would be too much, the ids are read
several times, and each time those are compared whose hashes leave the same remainder.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.input.id_blocks import ids_of_rows, sorted_hashes
from pipeline.input.source import Source
from pipeline.output.ledger import committed_parts, hash_ids, ids_of_part, num_rows_of_part
from pipeline.output.recipe import differences
from pipeline.output.shards import Shard, begun_shards, read_records, shard_store
from pipeline.output.store import open_store
from pipeline.preflight import open_input

_ROWS_AT_ONCE = 1 << 27  # of the input, whose ids are compared at a time
_NUM_READERS = 16  # threads
_MAX_NAMED = 3  # rows of a kind, and shards, in the text
_KINDS = ("missing", "twice", "unknown")

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """What the shards of an output have, and what they should have."""

    output: str  # its URI, without credentials
    identity: str  # of the input
    counts: Mapping[Shard, tuple[int, int]]  # rows that a shard has, and should have
    problems: tuple[str, ...]  # what makes a comparison of rows useless, and other recipes
    wrong: Mapping[str, int] | None  # rows by what is wrong with them; None: not looked at
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # a few of them

    @property
    def unfinished(self) -> tuple[Shard, ...]:
        """The shards that have fewer rows than they should have."""
        return tuple(shard for shard, (has, should) in self.counts.items() if has < should)

    @property
    def is_whole(self) -> bool:
        """Whether each row of the input was found once, and nothing else."""
        return self.wrong is not None and not any(self.wrong.values()) and not self.problems

    @property
    def is_waiting(self) -> bool:
        """Whether nothing is wrong but that other shards are unfinished."""
        return self.wrong is None and bool(self.unfinished) and not self.problems

    def __str__(self) -> str:
        has = sum(has for has, _ in self.counts.values())
        num_done = len(self.counts) - len(self.unfinished)
        lines = [
            f"input     {self.identity}",
            f"output    {self.output}: {has} rows; {num_done} of {len(self.counts)} shards are "
            "finished",
        ]
        for shard in self.unfinished[:_MAX_NAMED]:
            has, should = self.counts[shard]
            lines.append(f"shard     {shard} has {has} of {should} rows")
        if len(self.unfinished) > _MAX_NAMED:
            lines.append(f"shard     and {len(self.unfinished) - _MAX_NAMED} more are unfinished")
        lines += [f"PROBLEM   {problem}" for problem in self.problems]
        for kind, number in (self.wrong or {}).items():
            if number:
                names = "; ".join(self.named.get(kind, ()))
                lines.append(f"{kind.upper():<9} {number} rows, such as {names}")
        if self.is_whole:
            lines.append("every row of the input is in the output once")
        return "\n".join(lines)


def check_shards(config: PipelineConfig, *, if_finished: bool = False) -> ShardCheck:
    """Compare the rows of all shards of an output with the input.

    With `if_finished` the ids are not read as long as a shard has fewer rows than it should have.

    Raises:
        ValueError: the output has no shards, or the input or a part file cannot be read.
    """
    source, output = open_input(config), open_store(config.output).uri
    begun = begun_shards(config.output)
    if not begun:
        raise ValueError(f"{output} holds no shards; a run with --shard I/N begins one")
    shards = [Shard(number + 1, begun[0].of) for number in range(begun[0].of)]
    counts = {
        shard: (has, len(shard.rows(source.num_rows)))
        for shard, has in zip(shards, _num_rows(config.output, shards), strict=True)
    }
    problems = list(_problems(config, source, begun))
    wrong, named = None, {}
    is_finished = all(has >= should for has, should in counts.values())
    if not problems and (is_finished or not if_finished):
        try:
            wrong, named = _compare(source, config.output, shards)
        except ValueError as error:  # such as an id that two shards have
            problems.append(str(error))
    return ShardCheck(
        output=output,
        identity=f"{source.identity} of {config.input}",
        counts=counts,
        problems=tuple(problems),
        wrong=wrong,
        named=named,
    )


def _problems(config: PipelineConfig, source: Source, begun: Sequence[Shard]) -> Iterator[str]:
    """Yield in what the shards differ from each other, and from the input and its columns."""
    if len(numbers := sorted({each.of for each in begun})) > 1:
        yield f"there are shards of {' and of '.join(map(str, numbers))} in one output"
        return
    first = None
    for shard, identity, recipe in read_records(config.output, begun):
        if identity is not None and identity != source.identity:
            yield f"{shard.folder} was begun with an input of {identity}, by other names or numbers"
        if recipe is None:
            continue
        asked = {"id": config.columns.id, "make_ids_unique": config.make_ids_unique}
        columns = recipe["columns"]
        assert isinstance(columns, dict)
        made = {"id": columns["id"], "make_ids_unique": recipe["make_ids_unique"]}
        if made != asked:
            yield f"{shard.folder} has other names of rows: {'; '.join(differences(made, asked))}"
        if first is None:
            first = shard, recipe
        elif recipe != first[1]:
            changes = "; ".join(differences(first[1], recipe))
            yield f"{shard.folder} has another recipe than {first[0].folder}: {changes}"


def _num_rows(output: str, shards: Sequence[Shard]) -> list[int]:
    """Return the number of rows of each shard, from the footers of its part files."""

    def of_shard(shard: Shard) -> int:
        store = shard_store(output, shard)
        return sum(num_rows_of_part(store, part) for part in committed_parts(store))

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return list(pool.map(of_shard, shards))


def _compare(
    source: Source, output: str, shards: Sequence[Shard]
) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """Return how many rows are wrong, by kind, and the names of a few."""
    wrong: dict[str, int] = dict.fromkeys(_KINDS, 0)
    some = {kind: np.empty(0, np.uint64) for kind in _KINDS}
    num_passes = -(-source.num_rows // _ROWS_AT_ONCE)
    for number in range(num_passes):

        def is_of_pass(hashes: Hashes, number: int = number) -> NDArray[np.bool_]:
            return hashes % np.uint64(num_passes) == number

        wanted = sorted_hashes(source, is_of_pass)
        parts = _hashes_of_parts(output, shards)
        found = np.concatenate([hashes[is_of_pass(hashes)] for hashes in parts] or [wanted[:0]])
        found.sort()
        twice = found[1:][found[1:] == found[:-1]]
        for kind, rows in zip(
            _KINDS, (_not_in(wanted, found), twice, _not_in(found, wanted)), strict=True
        ):
            wrong[kind] += len(rows)
            some[kind] = np.concatenate([some[kind], np.unique(rows[:_MAX_NAMED])])[:_MAX_NAMED]
    return wrong, _names(source, output, shards, some)


def _hashes_of_parts(output: str, shards: Sequence[Shard]) -> Iterator[Hashes]:
    """Yield the hashes of the ids of each part file of all shards."""
    stores = [shard_store(output, shard) for shard in shards]
    parts = ((store, part) for store in stores for part in committed_parts(store))
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        while some := list(itertools.islice(parts, 4 * _NUM_READERS)):
            yield from pool.map(
                lambda item: np.concatenate(
                    [np.empty(0, np.uint64), *(hash_ids(ids) for ids in ids_of_part(*item))]
                ),
                some,
            )


def _not_in(some: Hashes, others: Hashes) -> Hashes:
    """Return those of `some` that are not among `others`; both are sorted."""
    if not len(others):
        return some
    lost = [some[:0]]
    for first in range(0, len(some), 1 << 20):
        here = some[first : first + (1 << 20)]
        place = np.minimum(np.searchsorted(others, here), len(others) - 1)
        lost.append(here[others[place] != here])
    return np.concatenate(lost)


def _names(
    source: Source, output: str, shards: Sequence[Shard], some: Mapping[str, Hashes]
) -> dict[str, tuple[str, ...]]:
    """Find the ids of rows by their hashes; those that are in the output with their part files."""
    named: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    num_left = len(some["missing"])
    for ids in ids_of_rows(source) if num_left else ():
        for place in np.flatnonzero(np.isin(hash_ids(ids.fill_null("")), some["missing"])):
            named["missing"].append(repr(ids[int(place)].as_py()))
            num_left -= 1
        if not num_left:
            break
    in_output = {kind: some[kind] for kind in _KINDS[1:]}
    for shard in shards if any(map(len, in_output.values())) else ():
        store = shard_store(output, shard)
        for part in committed_parts(store):
            for ids in ids_of_part(store, part):
                hashes = hash_ids(ids)
                for kind, rows in in_output.items():
                    for place in np.flatnonzero(np.isin(hashes, rows)):
                        name = f"{ids[int(place)].as_py()!r} in {shard.folder}/{part}"
                        named[kind].append(name)
    return {kind: tuple(names[: 2 * _MAX_NAMED]) for kind, names in named.items()}
