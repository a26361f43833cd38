"""Rows that are named by their places keep their captions whatever happens to their files."""

import random
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.input import new_rows as module
from pipeline.input.manifest import FILES, in_known_order, note_files
from pipeline.input.plan import plan
from pipeline.input.reader import read_split
from pipeline.input.source import open_source
from pipeline.output import ledger
from pipeline.output.store import LocalStore
from pipeline.output.writer import PartWriter
from pipeline.schema import InputColumns

REFUSED = r"changed since its rows were named: {}.*named by their places.*--new-rows"


def write(path, *rows, row_group_size=3):
    """Write rows as titles, each with a video of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video = pa.array([f"video of {row}".encode() for row in rows], pa.binary())
    table = pa.table({"title": pa.array(rows, pa.string()), "video": video})
    pq.write_table(table, path, row_group_size=row_group_size)


class Job:
    """Runs over one folder, each of which answers a row with its video."""

    def __init__(self, tmp_path):
        self.folder = tmp_path / "in"
        self.store = LocalStore(tmp_path / "out")
        self.store.prepare()

    def run(self, *, limit=None, **options):
        """Answer what is to do; the titles of the rows that were answered, in order."""
        source = open_source(str(self.folder), InputColumns(), has_digests=True)
        parts = ledger.committed_parts(self.store)
        source = in_known_order(source, self.store, parts, **options)
        note_files(source, self.store)
        schema = source.row_schema.output
        index = ledger.read_index(self.store, parts, schema)
        writer = PartWriter(self.store, "r", schema, index, rows_per_part=4, max_part_age_s=9)
        planned = plan(source, index, limit=limit)
        answered = []
        for split in planned.splits:
            for rows in read_split(source.filesystem, source.row_schema, split, max_rows=2):
                captions = pa.array([each.decode() for each in rows["video"].to_pylist()])
                results = source.row_schema.carry(rows).append_column("caption", captions)
                full = pa.table(
                    [
                        results[field.name].cast(field.type)
                        if field.name in results.column_names
                        else rows["row_id"]
                        if field.name == "row_id"
                        else pa.array(["ok"] * rows.num_rows)
                        if field.name == "status"
                        else pa.nulls(rows.num_rows, field.type)
                        for field in schema
                    ],
                    schema=schema,
                )
                writer.add(full)
                answered += rows["title"].to_pylist()
        writer.commit()
        return answered

    def captions(self):
        """The captions of the output by row id, each of which stands at its row."""
        rows = pq.read_table(self.store.directory).to_pylist()
        assert all(row["caption"] == f"video of {row['title']}" for row in rows)
        assert len({row["row_id"] for row in rows}) == len(rows)
        return {row["row_id"]: row["title"] for row in rows}


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_a_row_that_is_put_in_front_is_refused_or_answered_alone(job):
    write(job.folder / "clips.parquet", "a", "b", "c")
    job.run()
    write(job.folder / "clips.parquet", "new", "a", "b", "c")

    with pytest.raises(ValueError, match=REFUSED.format("clips.parquet had 3 rows and has 4")):
        job.run()
    assert job.run(new_rows=True) == ["new"]

    assert job.captions() == {f"clips.parquet#{n}": row for n, row in enumerate("abc")} | {
        "clips.parquet#3": "new"
    }
    assert job.run() == []  # what was accepted once is known


@pytest.mark.parametrize(
    ("rows", "answered"),
    [
        pytest.param("abcde", [], id="the same rows, written in another way"),
        pytest.param("edcba", [], id="another order"),
        pytest.param("abXde", ["X"], id="another value"),
        pytest.param("abcdefg", ["f", "g"], id="more rows"),
        pytest.param("ace", [], id="fewer rows"),
        pytest.param("aabbcde", ["a", "b"], id="rows twice"),
        pytest.param("XYZ", ["X", "Y", "Z"], id="other rows"),
    ],
)
def test_whatever_changes_is_noticed_and_only_new_rows_are_answered(job, rows, answered):
    write(job.folder / "x.parquet", *"abcde")
    assert job.run() == [*"abcde"]
    write(job.folder / "x.parquet", *rows, row_group_size=2)

    with pytest.raises(ValueError, match=REFUSED.format(r"x\.parquet ")):
        job.run()
    assert job.run(new_rows=True) == answered

    assert Counter(job.captions().values()) == Counter([*"abcde", *answered])
    assert job.run() == []


def test_a_copy_is_not_a_change(job, tmp_path):
    write(job.folder / "x.parquet", "a", "b")
    job.run(limit=1)
    shutil.copy(job.folder / "x.parquet", tmp_path / "copy")
    (job.folder / "x.parquet").unlink()
    shutil.move(tmp_path / "copy", job.folder / "x.parquet")

    assert job.run() == ["b"]


def test_rows_that_were_not_answered_yet_are_answered_once(job):
    write(job.folder / "x.parquet", *"abcd")
    assert job.run(limit=2) == ["a", "b"]
    write(job.folder / "x.parquet", *"dXcba")

    assert sorted(job.run(new_rows=True)) == ["X", "c", "d"]
    assert sorted(job.captions().values()) == sorted("abcdX")


def test_added_files_are_new_rows_and_files_that_are_gone_are_named(job):
    for name in "ab":
        write(job.folder / f"{name}.parquet", f"{name}0", f"{name}1")
    job.run()
    write(job.folder / "Z.parquet", "z0")
    assert job.run() == ["z0"]
    (job.folder / "a.parquet").unlink()

    with pytest.raises(ValueError, match=REFUSED.format(r"a\.parquet is gone")):
        job.run()
    assert job.run(new_rows=True) == []
    assert job.run() == []
    write(job.folder / "a.parquet", "a2", "a1")
    with pytest.raises(ValueError, match=REFUSED.format(r"a\.parquet was gone and is there again")):
        job.run()
    assert job.run(new_rows=True) == ["a2"]

    assert job.captions() == {
        **{f"{name}.parquet#{n}": f"{name}{n}" for name in "ab" for n in (0, 1)},
        "Z.parquet#0": "z0",
        "a.parquet#2": "a2",
    }


def test_a_file_that_moved_is_not_answered_again(job):
    write(job.folder / "a.parquet", "a0", "a1")
    job.run()
    (job.folder / "a.parquet").rename(job.folder / "b.parquet")

    with pytest.raises(ValueError, match=r"a\.parquet is gone \(its content is in b\.parquet\)"):
        job.run()
    with pytest.raises(ValueError, match=r"b\.parquet has rows that were in a\.parquet when they"):
        job.run(new_rows=True)


def test_rows_that_moved_to_another_file_are_not_answered_again(job):
    write(job.folder / "a.parquet", "a0", "a1")
    write(job.folder / "b.parquet", "b0", "b1")
    job.run()
    write(job.folder / "a.parquet", "a0", "b0")
    write(job.folder / "b.parquet", "a1", "b1", "new")

    with pytest.raises(ValueError, match=r"a\.parquet has rows that were in b\.parquet when they"):
        job.run(new_rows=True)


def test_names_of_files_may_look_like_names_of_rows(job):
    for name in ("x", "x#1", "x#1#0"):
        write(job.folder / name / "y.parquet", f"{name}a", f"{name}b")
    job.run()
    write(job.folder / "x#1" / "y.parquet", "new", "x#1a", "x#1b")

    assert job.run(new_rows=True) == ["new"]
    assert job.captions()["x#1/y.parquet#2"] == "new"


def test_rows_left_over_by_another_input_are_still_refused(job):
    write(job.folder / "x.parquet", *"abc")
    job.run()
    write(job.folder / "x.parquet", *"ab")
    job.run(new_rows=True)
    job.store.delete(FILES)

    with pytest.raises(ValueError, match="holds 1 rows that are not in this input"):
        job.run()


def test_an_output_without_digests_is_not_guessed_at(job):
    write(job.folder / "x.parquet", "a")
    job.run()
    write(job.folder / "x.parquet", "b")
    source = open_source(str(job.folder), InputColumns())

    with pytest.raises(ValueError, match=r"--new-rows cannot tell .*stored no digests of rows"):
        in_known_order(source, job.store, ledger.committed_parts(job.store), new_rows=True)


def test_an_order_without_any_neighbours_is_refused_where_it_is_long(job, monkeypatch):
    monkeypatch.setattr(module, "_MAX_RUNS", 3)
    write(job.folder / "x.parquet", *"abcdef")
    job.run()
    write(job.folder / "x.parquet", *"fedcba")

    with pytest.raises(ValueError, match="an order that has nothing to do with the old one"):
        job.run(new_rows=True)


def changed(rng, files, fresh):
    """Change one of the files at random."""
    name = rng.choice([*files, f"{fresh}.parquet"])
    rows = files.setdefault(name, [])
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("insert", "append", "delete", "shuffle", "repeat"))
        if kind == "insert":
            rows.insert(rng.randint(0, len(rows)), f"r{rng.random()}")
        elif kind == "append" or not rows:
            rows += [f"r{rng.random()}" for _ in range(rng.randint(1, 4))]
        elif kind == "delete":
            del rows[rng.randrange(len(rows))]
        elif kind == "shuffle":
            rng.shuffle(rows)
        else:
            rows.append(rng.choice(rows))
    if not rows and len(files) > 1:
        del files[name]


@pytest.mark.parametrize("seed", range(6))
def test_every_row_is_answered_once_through_any_changes(job, seed):
    rng = random.Random(seed)
    files = {"m.parquet": ["first"]}
    ever: dict[str, Counter] = {}  # by file: rows that were answered, as often as they were
    for step in range(8):
        shutil.rmtree(job.folder, ignore_errors=True)
        for name, rows in files.items():
            if rows:
                write(job.folder / name, *rows, row_group_size=rng.randint(1, 4))
        if not any(files.values()):
            break
        before = job.captions() if step else {}
        answered = Counter(job.run(new_rows=True))

        expected = Counter()
        for name, rows in files.items():
            known = ever.setdefault(name, Counter())
            expected += Counter(rows) - known
            known |= Counter(rows)
        assert answered == expected
        after = job.captions()
        assert before.items() <= after.items()
        assert len(after) == len(before) + sum(expected.values())
        assert job.run() == []
        changed(rng, files, f"f{step}")
