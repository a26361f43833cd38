"""What is left of the journal's file after a kill at any byte is what had begun and not ended."""

import asyncio
import json
import os
import random

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from pipeline.output import journal_file
from pipeline.output.in_flight import InFlightJournal, read_journal
from pipeline.output.journal_file import JOURNAL, STAGES, Change, JournalFile, replay
from pipeline.output.ledger import IdSet, hash_ids
from pipeline.output.store import LocalStore, ObjectStore

BEFORE = {7: 2, 2**64 - 1: 1, 8: 2}


@pytest.fixture(params=["disk", "objects"])
def store(request, tmp_path):
    if request.param == "disk":
        return LocalStore(tmp_path)
    (tmp_path / "bucket").mkdir()
    return ObjectStore(
        "s3://bucket", pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket"
    )


@pytest.fixture
def on_disk(tmp_path):
    return LocalStore(tmp_path)


def counted(in_flight, before=BEFORE):
    rows = set().union(*in_flight.values())
    return {row: before.get(row, 0) + (row in rows) for row in {*before, *rows}}


def write_some(file, generator, in_flight):
    """Write one change as a journal would; `in_flight` is the model of it."""
    changes = {}
    for stage in generator.sample(STAGES, generator.randint(1, 2)):
        started = {generator.choice([7, 8, *range(20, 30), 2**63]) for _ in range(3)}
        ended = {row for row in in_flight[stage] if generator.random() < 0.4} - started
        in_flight[stage] = (in_flight[stage] | started) - ended
        changes[stage] = Change(started=started, ended=ended)
    if file.can_append:
        file.append(changes)
    else:
        file.write(in_flight)


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_byte_leaves_what_was_synced(on_disk, monkeypatch, seed):
    monkeypatch.setattr(journal_file, "_MIN_APPENDED_BYTES", 700)
    generator = random.Random(seed)
    file, in_flight = JournalFile(on_disk, BEFORE), {stage: set() for stage in STAGES}
    num_synced, num_compactions, expected = 0, 0, {}
    for _ in range(30):
        if not file.can_append:
            num_synced, num_compactions = 0, num_compactions + 1
        write_some(file, generator, in_flight)
        content, before, expected = on_disk.read(JOURNAL), expected, counted(in_flight)
        for cut in range(num_synced, len(content)) if num_synced else ():
            assert replay(content[:cut]) == before
        assert replay(content) == expected
        num_synced = len(content)  # a file appears with its first line, whole
    assert num_compactions >= 3


def test_a_kill_within_a_compaction_leaves_the_old_file_or_the_new(on_disk, monkeypatch):
    file = JournalFile(on_disk, BEFORE)
    file.write({"prepare": {1, 7}})
    file.append({"prepare": Change(started={2}, ended={1}), "generate": Change(started={1})})
    expected = counted({"prepare": {2, 7}, "generate": {1}})
    for step in ("fsync", "rename"):
        with monkeypatch.context() as patch:
            target = os if step == "fsync" else type(on_disk.directory)
            patch.setattr(target, step, killed)
            with pytest.raises(OSError, match="killed"):
                JournalFile(on_disk, BEFORE).write({"prepare": {2, 7}, "generate": {1}})
        assert replay(on_disk.read(JOURNAL)) == expected
    JournalFile(on_disk, BEFORE).write({"prepare": {2, 7}, "generate": {1}})
    assert replay(on_disk.read(JOURNAL)) == expected


def killed(*_):
    raise OSError(5, "killed")


def test_a_driver_that_lives_on_does_not_write_into_the_next_ones_file(on_disk):
    old, new = JournalFile(on_disk, {}), JournalFile(on_disk, {})
    old.write({"prepare": {1}})
    new.write({"prepare": {1, 2}})
    old.append({"prepare": Change(ended={1}, started={9})})

    assert replay(on_disk.read(JOURNAL)) == {1: 1, 2: 1}


def test_a_random_run_is_read_back_from_disks_and_object_stores(store):
    generator = random.Random(1)
    ids = [str(number) for number in range(40)]
    model = {stage: set() for stage in STAGES}

    async def run():
        journal = InFlightJournal(store, {})
        for _ in range(60):
            stage = generator.choice(STAGES)
            if model[stage] and generator.random() < 0.4:
                ended = generator.sample(sorted(model[stage]), 1)
                await journal.end(pa.array(ended, pa.string()), stage)
                model[stage] -= set(ended)
            started = generator.sample(ids, 2)
            await journal.start(pa.array(started), stage)
            model[stage] |= set(started)
            rows = set().union(*model.values())
            hashes = hash_ids(pa.array(sorted(rows))).tolist()
            assert read_journal(store, IdSet()) == dict.fromkeys(hashes, 1)

    asyncio.run(run())


@pytest.mark.parametrize("num_in_flight", [0, 16_384])
def test_a_start_writes_as_much_whatever_is_in_flight(on_disk, monkeypatch, num_in_flight):
    written = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: written.append(len(data)) or write(fd, data))

    async def run():
        journal = InFlightJournal(on_disk, {})
        await journal.start(
            pa.array([f"old {n}" for n in range(num_in_flight)] or ["x"]), "prepare"
        )
        for number in range(20):
            await journal.start(pa.array([f"{number} {n}" for n in range(8)]), "prepare")
        return journal

    journal = asyncio.run(run())
    assert len(written) == 20
    assert max(written) < 200
    assert len(read_journal(on_disk, IdSet())) == (num_in_flight or 1) + 160
    asyncio.run(journal.close())


def test_compactions_at_most_double_what_is_written(on_disk, monkeypatch):
    monkeypatch.setattr(journal_file, "_MIN_APPENDED_BYTES", 1 << 12)
    whole = []
    write = LocalStore.write
    monkeypatch.setattr(
        LocalStore, "write", lambda *each: whole.append(len(each[2])) or write(*each)
    )
    file, appended = JournalFile(on_disk, {}), 0
    in_flight = {"prepare": set(range(1000))}
    file.write(in_flight)
    for number in range(1000):
        if file.can_append:
            before = len(on_disk.read(JOURNAL))
            file.append({"prepare": Change(started={number}, ended={number + 1})})
            appended += len(on_disk.read(JOURNAL)) - before
        else:
            file.write(in_flight)
    assert len(whole) > 3
    assert sum(whole[1:]) <= appended


def lines(store):
    file = JournalFile(store, BEFORE)
    file.write({"prepare": {1}})
    for row in (2, 3, 4):
        file.append({"generate": Change(started={row})})
    return store.read(JOURNAL).splitlines(keepends=True)


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("damage", [b"\0", b"", b"{"])
def test_a_damaged_line_before_the_last_is_refused(on_disk, damaged, damage):
    content, num_refused = lines(on_disk), 0
    for place in range(0, len(content[damaged]) - 1, 5):
        line = content[damaged]
        broken = line[:place] + damage + line[place + 1 :]
        if is_the_same(broken, line):
            continue
        parts = [*content[:damaged], broken, *content[damaged + 1 :]]
        on_disk.write(JOURNAL, b"".join(parts))
        with pytest.raises(ValueError, match=r"_starts.json of .* is damaged .*delete it"):
            read_journal(on_disk, IdSet())
        num_refused += 1
    assert num_refused > 10


def is_the_same(broken, line):
    """A blank that is lost between two values of JSON, or a byte that was so, changes nothing."""
    try:
        return json.loads(broken) == json.loads(line)
    except ValueError:
        return False


def test_pages_that_did_not_reach_the_disk_are_forgiven_at_the_end_only(on_disk):
    content = lines(on_disk)
    zeros = bytes(len(content[-1]) - 1) + b"\n"
    assert set(replay(b"".join([*content[:-1], zeros]))) == {*BEFORE, 1, 2, 3}
    with pytest.raises(ValueError, match="line 3"):
        replay(b"".join([*content[:2], zeros, content[-1]]))


def test_the_form_of_earlier_versions_is_read_and_replaced(store):
    store.write(JOURNAL, json.dumps({"5": 2, str(2**64 - 1): 1}).encode())
    before = read_journal(store, IdSet())
    assert before == {5: 2, 2**64 - 1: 1}

    JournalFile(store, before).write({"prepare": {5, 6}})

    assert read_journal(store, IdSet()) == {5: 3, 2**64 - 1: 1, 6: 1}
