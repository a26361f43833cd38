"""Which rows are to do, and that the others cost nothing."""

import io
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pipeline.fetch.media_access import MediaAccess
from pipeline.input.plan import Plan, batched_splits, plan
from pipeline.input.reader import read_split
from pipeline.input.source import open_source
from pipeline.output.ledger import OutputIndex, hash_ids
from pipeline.schema import InputColumns

ALL = InputColumns()
BY_KEY = InputColumns(id="key")


def write(path, num_rows, *, first=0, row_group_size=4, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"video": [f"{number}.mp4" for number in range(first, first + num_rows)], **columns}
    pq.write_table(pa.table(table), path, row_group_size=row_group_size)
    return path


def ids(*values):
    index = OutputIndex.empty()
    index.done.add(pa.array(values, pa.string()))
    return index


def read(source, planned, max_rows=3):
    return [
        table
        for split in planned.splits
        for table in read_split(source.filesystem, source.row_schema, split, max_rows=max_rows)
    ]


def rows_of(tables):
    return {row["row_id"]: row["video"] for table in tables for row in table.to_pylist()}


def test_a_row_is_named_by_its_file_and_number(tmp_path):
    write(tmp_path / "in" / "b" / "y.parquet", 2, first=10)
    write(tmp_path / "in" / "a.parquet", 5)

    source = open_source(str(tmp_path / "in"), ALL)

    assert rows_of(read(source, plan(source, OutputIndex.empty()))) == {
        **{f"a.parquet#{n}": f"{n}.mp4" for n in range(5)},
        **{f"b/y.parquet#{n}": f"1{n}.mp4" for n in range(2)},
    }


def test_slices_have_at_most_the_asked_rows(tmp_path):
    source = open_source(str(write(tmp_path / "x.parquet", 10, row_group_size=8)), ALL)

    tables = read(source, plan(source, OutputIndex.empty()), max_rows=3)

    assert [table.num_rows for table in tables] == [3, 3, 2, 2]


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [
        pytest.param(1, [[4], [4], [2]], id="large row groups"),
        pytest.param(7, [[4], [4, 2]], id="as many as fit"),
        pytest.param(8, [[4, 4], [2]], id="to the row"),
        pytest.param(99, [[4, 4, 2]], id="all"),
    ],
)
def test_small_row_groups_are_read_together_in_their_order(tmp_path, num_rows, expected):
    source = open_source(str(write(tmp_path / "x.parquet", 10)), ALL)
    splits = plan(source, OutputIndex.empty()).splits

    batches = batched_splits(splits, num_rows)

    assert [[split.num_todo for split in batch] for batch in batches] == expected
    assert [split for batch in batches for split in batch] == list(splits)


def test_big_media_make_small_slices(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"video": [bytes([n]) * (3 << 20) for n in range(4)]})
    pq.write_table(table, path, use_dictionary=False, compression="none")
    source = open_source(str(path), ALL)

    assert [t.num_rows for t in read(source, plan(source, OutputIndex.empty()), max_rows=100)] == [
        2,
        2,
    ]
    (split,) = plan(source, OutputIndex.empty()).splits
    tables = read_split(
        source.filesystem, source.row_schema, split, max_rows=100, max_bytes=10 << 20
    )
    assert [table.num_rows for table in tables] == [3, 1]  # where batches are large


def test_done_rows_are_not_read(tmp_path):
    source = open_source(str(write(tmp_path / "x.parquet", 12)), ALL)
    done = ids(*(f"x.parquet#{n}" for n in (0, 1, 2, 3, 5, 7)))

    planned = plan(source, done)

    assert [(split.row_group, split.num_todo) for split in planned.splits] == [(1, 2), (2, 4)]
    assert (planned.num_rows, planned.num_done, planned.num_todo) == (12, 6, 6)
    assert sorted(rows_of(read(source, planned))) == [
        f"x.parquet#{n}" for n in sorted([4, 6, 8, 9, 10, 11], key=str)
    ]


class CountingFile(io.FileIO):
    """Counts the bytes that are read of a file."""

    num_bytes = 0

    def readinto(self, buffer):
        num = super().readinto(buffer)
        CountingFile.num_bytes += num
        return num

    def read(self, size: int | None = -1):
        data = super().read(size)
        CountingFile.num_bytes += len(data)
        return data


class CountingFileSystem(fsspec.AbstractFileSystem):
    """Local files whose reads are counted."""

    protocol = "counted"

    def _open(self, path, *_args, **_kwargs):  # pyright: ignore[reportIncompatibleMethodOverride]
        return CountingFile(path)

    def info(self, path, **_):
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}


def test_planning_and_resuming_read_no_media_of_done_rows(tmp_path):
    media_bytes = 200_000
    key = [f"k{n}" for n in range(12)]
    video = [key[n].encode() * (media_bytes // 2) for n in range(12)]
    path = tmp_path / "x.parquet"
    table = pa.table({"video": video, "key": key})
    pq.write_table(table, path, row_group_size=4, use_dictionary=False, compression="none")
    fsspec.register_implementation("counted", CountingFileSystem, clobber=True)

    CountingFile.num_bytes = 0
    source = open_source(f"counted://{path}", BY_KEY)
    planned = plan(source, ids(*key[:8]))
    assert isinstance(source.filesystem, pafs.PyFileSystem)
    assert 0 < CountingFile.num_bytes < media_bytes

    (table,) = read(source, planned, max_rows=10)
    assert table["row_id"].to_pylist() == key[8:]
    assert 4 * media_bytes < CountingFile.num_bytes < 6 * media_bytes  # one row group of three


def test_a_finished_input_has_nothing_to_do(tmp_path):
    source = open_source(str(write(tmp_path / "x.parquet", 3)), ALL)

    planned = plan(source, ids(*(f"x.parquet#{n}" for n in range(3))))

    assert planned.splits == ()
    assert planned.num_todo == 0


def test_the_limit_counts_rows_of_the_input(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", 6)
    source = open_source(str(tmp_path), ALL)

    planned = plan(source, ids("a.parquet#1", "b.parquet#5"), limit=8)

    assert (planned.num_rows, planned.num_done, planned.num_todo) == (8, 1, 7)
    assert sorted(rows_of(read(source, planned))) == [
        *(f"a.parquet#{n}" for n in (0, 2, 3, 4, 5)),
        "b.parquet#0",
        "b.parquet#1",
    ]


def test_an_output_of_another_input_is_refused(tmp_path):
    source = open_source(str(write(tmp_path / "x.parquet", 3)), ALL)

    with pytest.raises(ValueError, match="holds 2 rows that are not in this input"):
        plan(source, ids("x.parquet#0", "x.parquet#3", "y.parquet#0"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        pytest.param("in/*.parquet", ["a.parquet", "b.parquet"], id="one level"),
        pytest.param("in/[b-z].parquet", ["b.parquet"], id="a range"),
        pytest.param("in/**/*.parquet", ["a.parquet", "b.parquet", "d/c.parquet"], id="all levels"),
        pytest.param("in/*/*.parquet", ["d/c.parquet"], id="exactly one level down"),
        pytest.param("in", ["a.parquet", "b.parquet", "d/c.parquet"], id="a directory"),
        pytest.param("in/b.parquet", ["b.parquet"], id="a file"),
        pytest.param("file://ROOT/in/[ab].parquet", ["a.parquet", "b.parquet"], id="a URI pattern"),
        pytest.param("file://ROOT/in", ["a.parquet", "b.parquet", "d/c.parquet"], id="a URI"),
    ],
)
def test_inputs_are_named_in_many_ways(tmp_path, monkeypatch, pattern, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "d/c", "_left/out", ".hidden", "d/_out"):
        write(tmp_path / "in" / f"{name}.parquet", 1)
    (tmp_path / "in" / "_SUCCESS").touch()
    (tmp_path / "in" / "notes.txt").write_text("no Parquet")

    source = open_source(pattern.replace("ROOT", str(tmp_path)), ALL)

    assert [file.name for file in source.files] == expected


def test_a_file_with_a_bracket_in_its_name_is_that_file(tmp_path):
    write(tmp_path / "a[1].parquet", 1)

    assert open_source(str(tmp_path / "a[1].parquet"), ALL).num_rows == 1


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        pytest.param("in/a.parquet", "ROOT/in", id="a file"),
        pytest.param("in", "ROOT/in", id="a directory"),
        pytest.param("in/*.parquet", "ROOT/in", id="a pattern"),
        pytest.param("*/*.parquet", "ROOT", id="a pattern of directories"),
        pytest.param("file://ROOT/in/a.parquet", "ROOT/in", id="a URI of a file"),
        pytest.param("file://ROOT/in/*.parquet", "ROOT/in", id="a URI pattern"),
    ],
)
def test_relative_media_paths_belong_to_the_folder_of_the_input(tmp_path, monkeypatch, uri, folder):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in" / "a.parquet", 1)

    source = open_source(uri.replace("ROOT", str(tmp_path)), ALL)

    assert source.folder == folder.replace("ROOT", str(tmp_path))


def test_media_beside_an_input_named_by_a_file_uri_are_read(tmp_path):
    path = write(tmp_path / "a b" / "x.parquet", 1)
    (tmp_path / "a b" / "0.mp4").write_bytes(b"clip")

    media = MediaAccess(base=open_source(path.as_uri(), ALL).folder).open("0.mp4")

    assert not isinstance(media, bytes)
    with media:
        assert media.read() == b"clip"


def test_ids_come_from_the_id_column(tmp_path):
    write(tmp_path / "a.parquet", 3, key=[7, 8, 9])
    source = open_source(str(tmp_path), BY_KEY)

    assert rows_of(read(source, plan(source, ids("8")))) == {"7": "0.mp4", "9": "2.mp4"}


UUIDS = [uuid.UUID(int=1), uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param(
            pa.array([each.bytes for each in UUIDS], pa.uuid()), [*map(str, UUIDS)], id="UUIDs"
        ),
        pytest.param(
            pa.array([2**100, -1], pa.decimal128(38, 0)), [str(2**100), "-1"], id="snowflakes"
        ),
        pytest.param(
            pa.array([0, 86_400_000], pa.timestamp("ms", "UTC")),
            ["1970-01-01 00:00:00.000Z", "1970-01-02 00:00:00.000Z"],
            id="timestamps",
        ),
        pytest.param(pa.array([0, 1], pa.date32()), ["1970-01-01", "1970-01-02"], id="dates"),
    ],
)
def test_ids_of_any_type_with_one_text_are_taken(tmp_path, key, expected):
    source = open_source(str(write(tmp_path / "x.parquet", 2, key=key)), BY_KEY)

    assert rows_of(read(source, plan(source, ids(expected[1])))) == {expected[0]: "0.mp4"}


def test_an_id_has_one_text_whatever_type_its_file_gives_it(tmp_path):
    folder = tmp_path / "in"
    write(folder / "a.parquet", 1, key=pa.array([15], pa.decimal128(3, 1)))
    write(folder / "b.parquet", 1, key=pa.array([2], pa.int8()))
    source = open_source(str(folder), BY_KEY)

    assert sorted(rows_of(read(source, plan(source, OutputIndex.empty())))) == ["15.0", "2.0"]
    assert plan(source, ids("15.0", "2.0")).num_todo == 0


def test_names_of_columns_may_have_dots(tmp_path):
    """pyarrow reads a struct's member `id.x` along where the column `id` is asked for."""
    blob = pa.array([bytes([n]) * (3 << 20) for n in range(4)])
    names = {"id.x": ["p", "q", "r", "s"], "id": ["a", "b", "c", "d"], "the.clip": blob}
    pq.write_table(pa.table(names), tmp_path / "x.parquet", use_dictionary=False)
    columns = InputColumns(video="the.clip", id="id", fields=("id.x",))
    source = open_source(str(tmp_path / "x.parquet"), columns, carry=["id.x"])

    tables = read(source, plan(source, ids("a")), max_rows=100)

    assert [table["row_id"].to_pylist() for table in tables] == [["b"], ["c", "d"]]
    assert tables[0]["id.x"].to_pylist() == ["q"]


def test_an_id_column_may_be_called_row_id(tmp_path):
    write(tmp_path / "a.parquet", 2, row_id=["p", "q"])
    source = open_source(str(tmp_path), InputColumns(id="row_id"))

    assert rows_of(read(source, plan(source, OutputIndex.empty()))) == {
        "p": "0.mp4",
        "q": "1.mp4",
    }


def test_repeated_ids_are_refused_with_both_places(tmp_path):
    write(tmp_path / "a.parquet", 3, key=["p", "q", "r"])
    write(tmp_path / "b.parquet", 6, key=["s", "t", "u", "v", "w", "q"])
    source = open_source(str(tmp_path), BY_KEY)

    with pytest.raises(
        ValueError, match=r"'q' appears twice .*a.parquet, row 1, .*b.parquet, row 5"
    ):
        plan(source, OutputIndex.empty())


def test_null_ids_are_refused_with_their_place(tmp_path):
    write(tmp_path / "a.parquet", 6, key=["p", "q", "r", "s", "t", None])
    source = open_source(str(tmp_path), BY_KEY)

    with pytest.raises(ValueError, match=r"'key' is null in .*a.parquet, row 5"):
        plan(source, OutputIndex.empty())


def test_ids_that_are_no_text_are_refused_with_their_file(tmp_path):
    keys = pa.Array.from_buffers(pa.string(), 2, pa.array([b"p", b"caf\xe9"]).buffers())
    write(tmp_path / "a.parquet", 2, key=keys)
    source = open_source(str(tmp_path), BY_KEY)

    with pytest.raises(ValueError, match=r"ids of .*a.parquet cannot be read: .*UTF8"):
        plan(source, OutputIndex.empty())


def test_different_ids_with_one_hash_are_not_mistaken_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pipeline.output.ledger.hash_array", lambda values, **_: values.astype(str) > "q"
    )
    write(tmp_path / "a.parquet", 2, key=["p", "q"])
    source = open_source(str(tmp_path), BY_KEY)

    with pytest.raises(ValueError, match="has the same 64-bit hash as another id"):
        plan(source, OutputIndex.empty())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda _: None, "cannot open .*in does not exist", id="nothing there"),
        pytest.param(
            lambda path: write(path / "a.txt", 1), "names no Parquet file", id="no Parquet there"
        ),
        pytest.param(
            lambda path: [path.mkdir(), (path / "a.parquet").write_bytes(b"junk")],
            r"a.parquet is not a Parquet file",
            id="junk",
        ),
        pytest.param(
            lambda path: write(path / "a.parquet", 0, video=pa.array([], pa.string())),
            "has no rows",
            id="no rows",
        ),
        pytest.param(
            lambda path: [write(path / "a.parquet", 1), write(path / "b.parquet", 1, video=[b"x"])],
            r"'video' is binary in .*b.parquet and string in .*a.parquet",
            id="types differ between files",
        ),
        pytest.param(
            lambda path: [
                write(path / "a.parquet", 1),
                pq.write_table(pa.table({"n": [1]}), path / "b.parquet"),
            ],
            r"b.parquet has no column 'video', which .*a.parquet has",
            id="the media are missing in a file",
        ),
    ],
)
def test_a_bad_input_is_refused_by_name(tmp_path, make, message):
    make(tmp_path / "in")

    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "in"), ALL)


@pytest.mark.parametrize("uri", ["nowhere://x/y.parquet", "file://host.invalid/y.parquet"])
def test_a_uri_that_cannot_be_opened_is_refused(uri):
    with pytest.raises(ValueError, match=f"cannot open {uri}"):
        open_source(uri, ALL)


def test_unused_columns_may_differ_between_files(tmp_path):
    write(tmp_path / "a.parquet", 1, n=[1])
    write(tmp_path / "b.parquet", 1, m=["x"])

    assert open_source(str(tmp_path), ALL, carry=["video"]).num_rows == 2


def test_a_file_that_vanishes_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", 1)
    source = open_source(str(tmp_path), ALL)
    planned = plan(source, OutputIndex.empty())
    path.unlink()

    with pytest.raises(ValueError, match=r"a.parquet, row group 0 cannot be read"):
        read(source, planned)


def test_files_that_differ_a_little_are_read_as_one(tmp_path):
    write(tmp_path / "a.parquet", 1, n=pa.array([1], pa.int8()), d=["x"])
    write(
        tmp_path / "b.parquet",
        1,
        n=pa.array([1 << 40]),
        d=pa.array(["y"]).dictionary_encode(),
        extra=[{"k": [1.5]}],
    )
    source = open_source(str(tmp_path), ALL)

    rows = pa.concat_tables(read(source, plan(source, OutputIndex.empty()))).to_pylist()

    assert [row["n"] for row in rows] == [1, 1 << 40]
    assert [row["d"] for row in rows] == ["x", "y"]
    assert [row["extra"] for row in rows] == [None, {"k": [1.5]}]


def test_views_are_read_as_plain_columns(tmp_path):
    names = pa.array(["p", "q"], pa.string_view())
    videos = pa.array(["0.mp4", "1.mp4"], pa.string_view())
    write(tmp_path / "a.parquet", 2, key=names, video=videos, data=names.cast(pa.binary_view()))
    source = open_source(str(tmp_path), BY_KEY)

    rows = pa.concat_tables(read(source, plan(source, OutputIndex.empty())))
    carried = source.row_schema.carry(rows).take(pa.array([1]))  # views cannot
    assert rows["row_id"].to_pylist() == ["p", "q"]
    assert carried.to_pylist() == [{"video": "1.mp4", "key": "q", "data": b"q"}]


def test_media_bytes_are_wide(tmp_path):
    write(tmp_path / "a.parquet", 1, video=[b"x"])
    write(tmp_path / "b.parquet", 1, video=pa.array([b"y"], pa.large_binary()))
    source = open_source(str(tmp_path), ALL)

    rows = pa.concat_tables(read(source, plan(source, OutputIndex.empty())))

    assert rows.schema.field("video").type == pa.large_binary()
    assert rows["video"].to_pylist() == [b"x", b"y"]


def test_bad_ids_are_made_unique_on_request(tmp_path):
    write(tmp_path / "a.parquet", 5, key=["p", None, "p", "q", "p"])
    write(tmp_path / "b.parquet", 2, key=["q", None])
    source = open_source(str(tmp_path), BY_KEY, make_ids_unique=True)

    rows = rows_of(read(source, plan(source, OutputIndex.empty())))

    assert rows == {
        "p": "0.mp4",
        "a.parquet#1": "1.mp4",
        "p@a.parquet#2": "2.mp4",
        "q": "3.mp4",
        "p@a.parquet#4": "4.mp4",
        "q@b.parquet#0": "0.mp4",
        "b.parquet#1": "1.mp4",
    }
    assert plan(source, ids(*rows)).num_todo == 0
    rest = plan(source, ids(*[row_id for row_id in rows if row_id != "p@a.parquet#4"]))
    assert rows_of(read(source, rest)) == {"p@a.parquet#4": "4.mp4"}


def test_an_id_that_looks_like_a_made_up_one_is_refused(tmp_path):
    write(tmp_path / "a.parquet", 2, key=["a.parquet#1", None])
    source = open_source(str(tmp_path), BY_KEY, make_ids_unique=True)

    with pytest.raises(
        ValueError, match=r"the id 'a.parquet#1' .*(has the same 64-bit hash|appears twice)"
    ):
        plan(source, OutputIndex.empty())


def test_rows_to_be_tried_again_are_to_do(tmp_path):
    source = open_source(str(write(tmp_path / "x.parquet", 4)), ALL)
    index = ids("x.parquet#0", "x.parquet#1")
    index.failed = np.sort(hash_ids(pa.array(["x.parquet#2"])))
    index.failed_part = np.zeros(1, np.int32)

    planned = plan(source, index)

    assert (planned.num_rows, planned.num_done, planned.num_todo) == (4, 2, 2)


def test_rows_that_were_there_whenever_runs_were_killed_are_tried_alone_and_then_given_up(tmp_path):
    source = open_source(str(write(tmp_path / "x.parquet", 6)), ALL)
    hashes = hash_ids(pa.array([f"x.parquet#{n}" for n in range(6)])).tolist()

    counts = dict(zip(hashes, [0, 2, 3, 5, 6, 7], strict=True))
    planned = plan(source, ids("x.parquet#5"), in_flight_counts=counts)

    assert sorted(rows_of(read(source, planned))) == ["x.parquet#0", "x.parquet#1"]
    assert [rows_of(read(source, Plan((split,), 1, 0))) for split in planned.quarantined] == [
        {"x.parquet#2": "2.mp4"},
        {"x.parquet#3": "3.mp4"},
    ]
    (poisoned,) = planned.poisoned
    assert rows_of(read(source, Plan((poisoned,), 1, 0))) == {"x.parquet#4": "4.mp4"}
    assert (planned.num_done, planned.num_todo) == (1, 5)


def test_the_names_of_folders_give_columns(tmp_path):
    folder = tmp_path / "in"
    write(folder / "lang=de" / "day=1" / "a.parquet", 1)
    write(folder / "lang=zh%2Dcn" / "b.parquet", 1, first=1)
    write(folder / "lang=__HIVE_DEFAULT_PARTITION__" / "day=02" / "c.parquet", 1, first=2)
    columns = InputColumns(prompt="lang", fields=("day",))

    source = open_source(str(folder), columns)
    tables = read(source, plan(source, OutputIndex.empty()))

    assert source.row_schema.output.names[1:4] == ["video", "lang", "day"]
    assert {row["video"]: (row["lang"], row["day"]) for t in tables for row in t.to_pylist()} == {
        "0.mp4": ("de", "1"),
        "1.mp4": ("zh-cn", None),
        "2.mp4": (None, "02"),
    }
    assert source.row_schema.former is not None
    assert source.row_schema.former.output.names[1:3] == ["video", "caption"]
    chosen = open_source(str(folder), ALL, carry=["lang"])
    assert chosen.row_schema.carried.names == ["lang"]
    with pytest.raises(ValueError, match=r"has no column 'day'"):
        open_source(str(folder), InputColumns(id="day"))


def test_a_column_of_a_file_comes_before_one_of_a_folder(tmp_path):
    write(tmp_path / "in" / "lang=de" / "a.parquet", 1, lang=["fr"])
    write(tmp_path / "in" / "lang=it" / "b.parquet", 1)

    source = open_source(str(tmp_path / "in"), ALL)
    tables = read(source, plan(source, OutputIndex.empty()))

    assert [table["lang"].to_pylist() for table in tables] == [["fr"], [None]]


def test_a_file_that_changes_during_a_run_is_refused(tmp_path):
    path = write(tmp_path / "x.parquet", 6)
    source = open_source(str(path), ALL)
    planned = plan(source, OutputIndex.empty())
    write(path, 5)

    with pytest.raises(ValueError, match=r"x\.parquet, row group 1 .*changed since the run began"):
        read(source, planned)


def test_footers_of_any_length_are_read_and_tell_a_change(tmp_path):
    """The end of a file is read once, and a second time for a footer that is longer."""
    path = tmp_path / "x.parquet"

    def opened(first):
        names = {f"a long name of a column {number}": [number] for number in range(2000)}
        pq.write_table(pa.table({"video": ["0.mp4"], "first": [first], **names}), path)
        (file,) = open_source(str(path), ALL, carry=[]).files
        return file

    before = opened(0)
    assert int.from_bytes(path.read_bytes()[-8:-4], "little") > 64 << 10
    assert opened(7).digest != before.digest
    assert opened(0) == before
