"""What was being worked on when a run was killed is known to the next one."""

import asyncio
import os
import time

import pyarrow as pa
import pytest

from pipeline.output.in_flight import InFlightJournal, read_journal, write_journal
from pipeline.output.journal_file import (
    JOURNAL,
    JournalFile,
    stream_journal,
    stream_journals,
)
from pipeline.output.ledger import IdSet, hash_ids
from pipeline.output.store import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def keys(*ids):
    return hash_ids(pa.array(ids)).tolist()


def test_a_killed_run_leaves_the_rows_that_it_was_working_on(store):
    async def run():
        journal = InFlightJournal(store, {})
        await journal.start(pa.array(["a", "b"]), "prepare")
        await journal.end(pa.array(["a"]), "prepare")
        await journal.start(
            pa.array(["c", "b", "c"]), "prepare"
        )  # b again, by a task that Ray retried

    asyncio.run(run())
    assert read_journal(store, IdSet()) == dict.fromkeys(keys("b", "c"), 1)


def test_processes_that_died_with_a_row_are_counted_within_the_run(store):
    async def run():
        journal = InFlightJournal(store, {})
        deaths = [await journal.start(pa.array(["a", "b"]), "prepare") for _ in range(3)]
        await journal.end(pa.array(["a", "b"]), "prepare")
        deaths += [
            await journal.start(pa.array(ids), "prepare")
            for ids in (["a"], ["a", "c"], ["b"], ["c"])
        ]
        deaths.append(await journal.start(pa.array(["a"]), "generate"))  # the next stage has it too
        return [*deaths, await journal.start(pa.array([], pa.string()), "prepare")]

    assert asyncio.run(run()) == [0, 1, 2, *(2, 3, 2, 1), 0, 0]
    assert set(read_journal(store, IdSet()).values()) == {1}  # the run itself was killed once


def test_counts_grow_from_run_to_run_and_stay_for_rows_that_wait(store):
    async def run(*ids):
        journal = InFlightJournal(store, read_journal(store, IdSet()))
        await journal.start(pa.array(ids), "prepare")
        await journal.end(
            pa.array(["a"]), "prepare"
        )  # now it waits, for the next stage or its commit
        await journal.start(pa.array(["z"]), "prepare")

    for _ in range(2):
        asyncio.run(run("a", "b"))

    assert read_journal(store, IdSet()) == dict(zip(keys("b", "z"), [2, 2], strict=True))
    write_journal(store, dict(zip(keys("a"), [2], strict=True)))
    asyncio.run(run("a", "b"))
    assert read_journal(store, IdSet()) == dict(zip(keys("a", "b", "z"), [2, 1, 1], strict=True))


def test_rows_that_were_committed_after_all_are_forgotten(store):
    asyncio.run(InFlightJournal(store, {}).start(pa.array(["a", "b"]), "prepare"))
    done = IdSet()
    done.add(pa.array(["a"]))

    assert read_journal(store, done) == dict.fromkeys(keys("b"), 1)


def test_starts_at_the_same_time_share_their_writes(store, monkeypatch):
    written = []

    def slow(method):
        def write(*arguments):
            time.sleep(0.05)
            method(*arguments)
            written.append(arguments)

        return write

    for name in ("write", "append"):
        monkeypatch.setattr(JournalFile, name, slow(getattr(JournalFile, name)))

    async def run():
        journal = InFlightJournal(store, {})
        await asyncio.gather(
            *(journal.start(pa.array([str(number)]), "prepare") for number in range(20))
        )
        return set(read_journal(store, IdSet()))

    assert asyncio.run(run()) == set(keys(*map(str, range(20))))
    assert 1 < len(written) <= 3


def test_a_count_that_cannot_be_written_is_tried_again_with_the_next(store, monkeypatch):
    async def run():
        journal = InFlightJournal(store, {})
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "write", full)
            with pytest.raises(OSError, match="full"):
                await journal.start(pa.array(["a"]), "prepare")
        await journal.start(pa.array(["b"]), "prepare")

    def full(*_):
        raise OSError(28, "full")

    asyncio.run(run())
    assert read_journal(store, IdSet()) == dict.fromkeys(keys("a", "b"), 1)


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_after_a_failed_append_everything_is_written_anew(store, monkeypatch, failing):
    write = os.write

    def full(descriptor, *content):
        if content:
            write(descriptor, content[0][: len(content[0]) // 2])  # a torn line
        raise OSError(28, "full")

    async def run():
        journal = InFlightJournal(store, {})
        await journal.start(pa.array(["a"]), "prepare")
        with monkeypatch.context() as patch:
            patch.setattr(os, failing, full)
            with pytest.raises(OSError, match="full"):
                await journal.start(pa.array(["b"]), "prepare")
        await journal.start(pa.array(["c"]), "prepare")

    asyncio.run(run())
    assert read_journal(store, IdSet()) == dict.fromkeys(keys("a", "b", "c"), 1)
    assert len(store.read(JOURNAL).splitlines()) == 1


def test_a_start_that_is_cancelled_ends_its_write_first(store, monkeypatch):
    log = []

    def slow_append(self, changes):
        log.append("begins")
        time.sleep(0.1)
        append(self, changes)
        log.append("ends")

    append = JournalFile.append
    monkeypatch.setattr(JournalFile, "append", slow_append)

    async def run():
        journal = InFlightJournal(store, {})
        await journal.start(pa.array(["a"]), "prepare")
        task = asyncio.create_task(journal.start(pa.array(["b"]), "prepare"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(
            journal.start(pa.array(["c"]), "prepare"), task, return_exceptions=True
        )
        await journal.close()

    asyncio.run(run())
    assert log == ["begins", "ends"] * 2
    assert read_journal(store, IdSet()) == dict.fromkeys(keys("a", "b", "c"), 1)


def test_alone_means_that_no_other_row_is_worked_on(store):
    async def run():
        journal = InFlightJournal(store, {})
        await journal.start(pa.array(["lost"]), "prepare")  # its task died
        await journal.begin_quarantine()
        await journal.start(pa.array(["a"]), "prepare")
        waits = asyncio.create_task(journal.start(pa.array(["b"]), "prepare"))
        await asyncio.sleep(0.05)
        assert not waits.done()
        await journal.start(pa.array(["a"]), "prepare")  # its task died and is tried again
        await journal.end(pa.array(["a"]), "prepare")
        await waits

    asyncio.run(run())
    assert read_journal(store, IdSet()) == dict.fromkeys(keys("b"), 1)


def test_nothing_is_written_after_the_end(store):
    async def run():
        journal = InFlightJournal(store, {})
        await journal.close()
        with pytest.raises(RuntimeError, match="has ended"):
            await journal.start(pa.array(["a"]), "prepare")

    asyncio.run(run())
    assert read_journal(store, IdSet()) == {}


def test_no_counts_need_no_file(store, tmp_path):
    write_journal(store, {1: 2})
    assert (tmp_path / JOURNAL).exists()

    write_journal(store, {})

    assert not (tmp_path / JOURNAL).exists()
    assert read_journal(store, IdSet()) == {}


def test_rows_of_a_killed_fleet_are_found_in_the_files_of_its_streams(store):
    async def run():
        for number, row in enumerate(("a", "b", "a done row")):
            journal = InFlightJournal(store, {}, stream_journal(number))
            await journal.start(pa.array([row]), "generate")

    (a, b, done) = keys("a", "b", "a done row")
    write_journal(store, {a: 2})  # as a fleet does at its start
    asyncio.run(run())
    finished = IdSet()
    finished.add(pa.array(["a done row"]))

    counts = read_journal(store, finished)

    assert counts == {a: 3, b: 1}
    assert done not in counts
    write_journal(store, counts)  # at the start of the next run
    assert read_journal(store, finished) == counts
    assert stream_journals(store) == []


def test_a_damaged_file_of_a_stream_is_refused_by_its_name(store):
    store.write(stream_journal(12), b"[1")

    with pytest.raises(ValueError, match=r"_starts-012.json of .* is damaged .*delete it"):
        read_journal(store, IdSet())


def test_a_damaged_file_is_refused_with_what_to_do(store):
    store.write(JOURNAL, b"[1")

    with pytest.raises(ValueError, match=r"_starts.json of .* is damaged .*delete it"):
        read_journal(store, IdSet())
