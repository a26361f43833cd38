"""What an output holds."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.ledger import IdSet, committed_parts, hash_ids, read_index
from pipeline.output.store import LocalStore
from pipeline.schema import ErrorCode

SCHEMA = pa.schema([("row_id", pa.string()), ("error_code", pa.string())])


def write_part(path, ids, codes=None):
    pq.write_table(pa.table([ids, codes or [None] * len(ids)], SCHEMA), path)


def held_in(path, schema=SCHEMA, **options):
    store = LocalStore(path)
    return read_index(store, committed_parts(store), schema, **options)


def test_an_id_is_new_once():
    ids = IdSet()

    assert ids.add(pa.array(["a", "b", "a"])).tolist() == [True, True, False]
    assert ids.add(pa.array(["c", "b"])).tolist() == [True, False]
    assert ids.add(pa.array([], pa.string())).tolist() == []
    assert ids.contains_hashes(hash_ids(pa.array(["a", "c", "d"]))).tolist() == [True, True, False]
    assert len(ids) == 3


def test_many_small_additions_give_the_same_set_as_a_plain_one():
    generator = np.random.default_rng(0)
    ids, plain = IdSet(), set()
    for _ in range(200):
        some = [str(number) for number in generator.integers(0, 3000, 40)]
        expected = []
        for one in some:
            expected.append(one not in plain)
            plain.add(one)
        assert ids.add(pa.array(some)).tolist() == expected

    assert len(ids) == len(plain)


def test_hashes_do_not_depend_on_the_process():
    # A stored constant: a resumed run must find the ids of a run on another machine.
    assert hash_ids(pa.array(["clips.parquet#0"])).tolist() == [9584332528754501815]


def test_only_whole_parts_count_as_committed(tmp_path):
    write_part(tmp_path / "part-r-00000.parquet", ["a", "b"])
    write_part(tmp_path / "part-r-00001.parquet", ["c"])
    write_part(tmp_path / ".part-r-00002.parquet.new", ["d"])
    (tmp_path / "_old-1").mkdir()
    write_part(tmp_path / "_old-1" / "part-r-00003.parquet", ["e"])

    index = held_in(tmp_path)

    assert index.parts == ("part-r-00000.parquet", "part-r-00001.parquet")
    is_done = index.done.contains_hashes(hash_ids(pa.array(list("abcde"))))
    assert is_done.tolist() == [True] * 3 + [False] * 2


def test_rows_to_be_tried_again_are_known_by_their_part(tmp_path):
    write_part(tmp_path / "part-0.parquet", list("ab"), [None, "media_missing"])
    write_part(tmp_path / "part-1.parquet", list("cde"), ["no_frames", "media_missing", None])

    index = held_in(tmp_path, retry=[ErrorCode.MEDIA_MISSING])

    hashes = hash_ids(pa.array(list("abcdex")))
    assert index.part_of(hashes).tolist() == [-1, 0, -1, 1, -1, -1]
    assert index.done.contains_hashes(hashes).tolist() == [True, False, True, False, True, False]
    assert index.num_rows == 5

    index.note_replaced(hashes[1:2])

    assert index.part_of(hashes).tolist() == [-1, -1, -1, 1, -1, -1]
    assert index.num_rows == 5


def test_parts_with_other_columns_are_refused(tmp_path):
    write_part(tmp_path / "part-r-00000.parquet", ["a"])

    with pytest.raises(ValueError, match=r"part-r-00000.parquet has other columns .*--columns"):
        held_in(tmp_path, SCHEMA.append(pa.field("n", pa.int8())))


def test_a_damaged_part_is_refused_by_name(tmp_path):
    (tmp_path / "part-r-00000.parquet").write_bytes(b"PAR1 no more")

    with pytest.raises(ValueError, match=r"part-r-00000.parquet cannot be read .*delete it"):
        held_in(tmp_path)
