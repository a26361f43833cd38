"""What was being worked on when a run was killed is known to the next one."""

import pyarrow as pa
import pytest

from pipeline.ledger import IdSet, hash_ids
from pipeline.starts import STARTS, StartLog, read_starts, write_starts
from pipeline.storage import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def keys(*ids):
    return hash_ids(pa.array(ids)).tolist()


def test_a_killed_run_leaves_the_rows_that_it_had_started_and_not_committed(store):
    log = StartLog(store, {})
    log.start(pa.array(["a", "b"]))
    log.finish(hash_ids(pa.array(["a"])))
    log.start(pa.array(["c", "b"]))  # b again, by a task that Ray retried

    assert read_starts(store, IdSet()) == dict.fromkeys(keys("b", "c"), 1)


def test_counts_grow_from_run_to_run(store):
    for _ in range(3):
        StartLog(store, read_starts(store, IdSet())).start(pa.array(["a", "b"]))
    StartLog(store, read_starts(store, IdSet())).start(pa.array(["a"]))

    assert read_starts(store, IdSet()) == dict(zip(keys("a", "b"), [4, 3], strict=True))


def test_rows_that_were_committed_after_all_are_forgotten(store):
    StartLog(store, {}).start(pa.array(["a", "b"]))
    done = IdSet()
    done.add(pa.array(["a"]))

    assert read_starts(store, done) == dict.fromkeys(keys("b"), 1)


def test_no_counts_need_no_file(store, tmp_path):
    write_starts(store, {1: 2})
    assert (tmp_path / STARTS).exists()

    write_starts(store, {})

    assert not (tmp_path / STARTS).exists()
    assert read_starts(store, IdSet()) == {}


def test_a_damaged_file_is_refused_with_what_to_do(store):
    store.write(STARTS, b"[1")

    with pytest.raises(ValueError, match=r"_starts.json of .* is damaged .*delete it"):
        read_starts(store, IdSet())
