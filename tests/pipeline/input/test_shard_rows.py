"""Shards have together each row of an input once, whatever the files and row groups are."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.input import id_blocks
from pipeline.input.plan import Plan, plan
from pipeline.input.reader import read_split
from pipeline.input.source import Source, open_source
from pipeline.output.ledger import OutputIndex, hash_ids
from pipeline.output.shards import Shard
from pipeline.schema import InputColumns

BY_KEY = InputColumns(id="key")


def write(folder, sizes, row_group_size, keys=None):
    folder.mkdir(exist_ok=True)
    first = 0
    for number, size in enumerate(sizes):
        texts = [f"{n}" for n in range(first, first + size)]
        names = texts if keys is None else keys[first : first + size]
        table = pa.table({"video": texts, "key": pa.array(names, pa.string())})
        pq.write_table(table, folder / f"{number:02}.parquet", row_group_size=row_group_size)
        first += size
    return str(folder)


def planned(source: Source, shard: Shard, done=(), **options) -> Plan:
    index = OutputIndex.empty()
    if done:
        index.done.add(pa.array(done, pa.string()))
    return plan(source, index, rows=shard.rows(source.num_rows), **options)


def videos(source: Source, found: Plan) -> list[str]:
    return [
        video
        for split in found.splits
        for table in read_split(source.filesystem, source.row_schema, split, max_rows=5)
        for video in table["video"].to_pylist()
    ]


@pytest.fixture(params=[1 << 20, 3], ids=["one block", "small blocks"])
def _block_sizes(request, monkeypatch):
    monkeypatch.setattr(id_blocks, "_ROWS_PER_BLOCK", request.param)


@pytest.mark.usefixtures("_block_sizes")
@pytest.mark.parametrize("columns", [InputColumns(), BY_KEY], ids=["numbered", "by key"])
@pytest.mark.parametrize("seed", range(12))
def test_shards_have_together_each_row_once(tmp_path, columns, seed):
    draw = random.Random(seed)
    sizes = [draw.choice((0, 1, 2, 7, 30)) for _ in range(draw.randint(1, 5))] + [1]
    uri = write(tmp_path / "in", sizes, draw.choice((1, 3, 100)))
    source, of = open_source(uri, columns), draw.choice((1, 2, 3, 5, 50))

    plans = [planned(source, Shard(number, of)) for number in range(1, of + 1)]

    found = [videos(source, each) for each in plans]
    assert [video for shard in found for video in shard] == [f"{n}" for n in range(sum(sizes))]
    counts = [each.num_todo for each in plans]
    assert counts == [len(each) for each in found]
    assert max(counts) - min(counts) <= 1
    again = open_source(uri, columns)
    assert [planned(again, Shard(n, of)).splits for n in range(1, of + 1)] == [
        each.splits for each in plans
    ]


def test_done_rows_and_a_limit_count_within_the_shard(tmp_path):
    source = open_source(write(tmp_path / "in", [10, 10], 4), BY_KEY)

    found = planned(source, Shard(2, 2), done=["11", "13"], limit=5)

    assert videos(source, found) == ["10", "12", "14"]
    assert (found.num_rows, found.num_done, found.num_todo) == (5, 2, 3)


def test_rows_of_another_shard_are_not_of_this_input(tmp_path):
    source = open_source(write(tmp_path / "in", [10], 4), BY_KEY)

    with pytest.raises(ValueError, match="holds 1 rows that are not in this input"):
        planned(source, Shard(1, 2), done=["0", "7"])


def test_ids_of_other_shards_are_not_read(tmp_path):
    uri = write(tmp_path / "in", [4, 4], 4)
    source = open_source(uri, BY_KEY)
    (tmp_path / "in" / "01.parquet").unlink()

    assert videos(source, planned(source, Shard(1, 2))) == ["0", "1", "2", "3"]


def test_a_repeated_id_is_refused_by_the_shard_that_has_both(tmp_path):
    source = open_source(write(tmp_path / "in", [8], 2, keys=list("abcdefgf")), BY_KEY)

    assert planned(source, Shard(1, 2)).num_todo == 4
    with pytest.raises(ValueError, match=r"'f' appears twice in column 'key'.*row 5, and.*row 7"):
        planned(source, Shard(2, 2))


@pytest.mark.usefixtures("_block_sizes")
def test_renamed_ids_are_those_of_the_whole_input(tmp_path):
    keys = ["a", None, "b", "a", "c", "b", None, "d", "a"]
    uri = write(tmp_path / "in", [5, 4], 2, keys=keys)
    source = open_source(uri, BY_KEY, make_ids_unique=True)

    def names(found):
        tables = [
            table
            for split in found.splits
            for table in read_split(source.filesystem, source.row_schema, split, max_rows=5)
        ]
        return [name for table in tables for name in table["row_id"].to_pylist()]

    whole = names(plan(source, OutputIndex.empty()))
    shards = [names(planned(source, Shard(number, 4))) for number in range(1, 5)]
    assert [name for each in shards for name in each] == whole
    assert whole[3] == "a@00.parquet#3"


def test_hashes_of_the_whole_input_are_sorted_and_chosen(tmp_path):
    source = open_source(write(tmp_path / "in", [5, 4], 2), BY_KEY)

    found = id_blocks.sorted_hashes(source, lambda hashes: hashes % np.uint64(2) == 0)

    every = hash_ids(pa.array([f"{n}" for n in range(9)]))
    assert found.tolist() == sorted(every[every % np.uint64(2) == 0].tolist())
