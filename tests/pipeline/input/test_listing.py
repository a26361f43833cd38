"""Which files an input has: not the parts of an output, wherever it lies, and what else not."""

import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.input.files_below import CIRCLE, HIDDEN, OTHER_CASE, OTHER_SUFFIX
from pipeline.input.listing import list_files
from pipeline.output.store import open_store

ROWS = pa.table({"video": ["0.mp4"]})
PART = "part-000000-r1.parquet"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two files, one in a folder below, and two outputs with a part each."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "deep/b", f"out/{PART[:-8]}", f"other/{PART[:-8]}"):
        path = tmp_path / "in" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(ROWS, path)
    (tmp_path / "link").symlink_to("in/out")
    return tmp_path


def names(uri, output):
    return [name for name, _ in list_files(str(uri), output=str(output)).files]


@pytest.mark.parametrize("uri", ["in", "./in/", "in/**/*.parquet", "file://ROOT/in"])
@pytest.mark.parametrize(
    "output", ["in/out", "in/out/", "in/deep/../out", "link", "ROOT/in/out", "file://ROOT/in/out"]
)
def test_the_parts_of_an_output_below_the_input_are_left_out(folder, uri, output):
    uri, output = (each.replace("ROOT", str(folder)) for each in (uri, output))

    assert names(uri, output) == ["a.parquet", "deep/b.parquet", f"other/{PART}"]


def test_parts_below_a_link_in_the_input_are_left_out_too(folder):
    (folder / "in" / "again").symlink_to(folder / "in" / "out")

    assert names("in", "in/out") == ["a.parquet", "deep/b.parquet", f"other/{PART}"]


def test_an_output_in_the_folder_of_the_input_hides_its_parts_alone(folder):
    pq.write_table(ROWS, folder / "in" / PART)
    pq.write_table(ROWS, folder / "in" / "party.parquet")

    for uri in ("in/*.parquet", "in/[ap]*.parquet"):
        assert names(uri, "in") == ["a.parquet", "party.parquet"]
    assert names("in/a.parquet", "in") == ["a.parquet"]
    assert names("in", folder / "nowhere") == [
        *("a.parquet", "deep/b.parquet", f"other/{PART}", f"out/{PART}", PART, "party.parquet")
    ]


@pytest.mark.parametrize("uri", ["in/out", "link", f"in/out/{PART}"])
def test_an_input_of_nothing_but_parts_is_refused_with_both_places(folder, uri):
    with pytest.raises(ValueError, match=rf"^{uri} names .* but the parts of the output in/out; "):
        names(uri, "in/out")


def test_an_output_on_another_filesystem_hides_nothing(folder, bucket):
    assert f"out/{PART}" in names("in", bucket.uri("in/out"))


def test_the_parts_of_an_output_on_an_object_store_are_left_out(bucket):
    for path in ("in/a.parquet", f"in/out/{PART}", f"in/outer/{PART}"):
        pq.write_table(ROWS, f"{bucket.name}/{path}", filesystem=bucket.filesystem)

    for uri in ("in", "in/", "in/**/*.parquet"):
        for output in ("in/out", "in/out/"):
            assert names(bucket.uri(uri), bucket.uri(output)) == ["a.parquet", f"outer/{PART}"]
    with pytest.raises(ValueError, match=rf"/in/out/{PART} of the input may be a part .* or not"):
        names(bucket.uri("in"), bucket.uri("in/out").replace("test:test@", "me:other@"))


def test_what_a_filesystem_fetched_by_itself_does_not_make_it_another(bucket, monkeypatch):
    for path in ("in/a.parquet", f"in/out/{PART}"):
        pq.write_table(ROWS, f"{bucket.name}/{path}", filesystem=bucket.filesystem)

    def with_newer_credentials(uri):
        return open_store(uri.replace("test:test@", "me:other@"))

    monkeypatch.setattr("pipeline.input.listing.open_store", with_newer_credentials)
    assert names(bucket.uri("in"), bucket.uri("in/out")) == ["a.parquet"]


def test_parts_are_left_out_on_the_filesystems_of_fsspec(folder):
    memory = fsspec.filesystem("memory")
    memory.pipe("/listed/a.parquet", b"")
    memory.pipe(f"/listed/out/{PART}", b"")
    try:
        assert names("memory://listed", "memory://listed/out") == ["a.parquet"]
    finally:
        memory.rm("/listed", recursive=True)


# What is found, and what is left out


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A folder with Parquet files of all names, and with other things."""
    monkeypatch.chdir(tmp_path)
    for name in (
        *("a.parquet", "b.PARQUET", "c.parq", "d.pq", "_e.parquet", ".f.parquet"),
        *("g.parquet/part-0.snappy.parquet", "g.parquet/_SUCCESS", "g.parquet/part-0.crc"),
        *("_old/h.parquet", "_old/deep/i.parquet", "lang=de/j.parquet"),
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(ROWS, tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no")
    return tmp_path


ALL = [
    *("a.parquet", "b.PARQUET", "c.parq", "d.pq", "g.parquet/part-0.snappy.parquet"),
    "lang=de/j.parquet",
]
LEFT = (
    "4 hidden, with a name that begins with _ or . (.f.parquet, _e.parquet, _old/, ...), "
    "2 with another suffix than .parquet, .parq, .pq (g.parquet/part-0.crc, notes.txt)"
)


@pytest.fixture
def places(mixed):
    """The same files on a disk and in the memory filesystem of fsspec."""
    memory = fsspec.filesystem("memory")
    for path in (mixed / "in").rglob("*"):
        if path.is_file():
            memory.pipe(f"/mixed/{path.relative_to(mixed / 'in')}", path.read_bytes())
    yield ["in", "memory://mixed"]
    memory.rm("/mixed", recursive=True)


def test_parquet_files_of_every_name_are_read_and_the_rest_is_told(places):
    for place in places:
        listing = list_files(place)
        assert [name for name, _ in listing.files] == ALL
        assert str(listing.left_out) == LEFT


@pytest.mark.parametrize(
    ("pattern", "found", "left_out"),
    [
        pytest.param(
            "*.parquet",
            ["a.parquet", "g.parquet/part-0.snappy.parquet"],
            {HIDDEN: 3, OTHER_SUFFIX: 1, OTHER_CASE: 1},
            id="a folder of Spark counts as a file",
        ),
        pytest.param("*.pq", ["d.pq"], {}, id="nothing is left out"),
        pytest.param("lang=*/*", ["lang=de/j.parquet"], {}, id="below folders"),
        pytest.param("**/*.PARQUET", ["b.PARQUET"], {OTHER_CASE: 3, HIDDEN: 3}, id="capitals"),
    ],
)
def test_a_pattern_leaves_out_only_what_it_names(pattern, found, left_out, places):
    for place in places:
        listing = list_files(f"{place}/{pattern}")
        assert [name for name, _ in listing.files] == found
        assert listing.left_out.counts == left_out


def test_the_parts_of_the_output_are_counted_too(folder):
    left_out = list_files("in", output="in/out").left_out
    assert str(left_out) == f"1 parts of the output (out/{PART})"
    assert not list_files("in/a.parquet", output="in/out").left_out


@pytest.mark.parametrize("uri", ["in", "in/*.parquet"])
def test_a_broken_link_is_refused_by_name(uri, folder):
    (folder / "in" / "z.parquet").symlink_to("gone/z.parquet")
    with pytest.raises(ValueError, match=r"in/z\.parquet is a broken link: gone/z\.parquet does"):
        list_files(uri)
    (folder / "in" / "z.parquet").unlink()
    os.mkfifo(folder / "in" / "z.parquet")
    with pytest.raises(ValueError, match=r"in/z\.parquet is a pipe, socket or device"):
        list_files(uri)


def test_links_in_a_circle_name_no_file_twice(folder):
    for name in ("in/up", "in/deep/up", "in/deep/top", "in/other/up"):
        (folder / name).symlink_to(folder if name.endswith("top") else folder / "in")
    (folder / "elsewhere").mkdir()
    pq.write_table(ROWS, folder / "elsewhere" / "e.parquet")
    (folder / "in" / "there").symlink_to(folder / "elsewhere")

    listing = list_files("in")

    names = [name for name, _ in listing.files]
    assert {"a.parquet", "deep/b.parquet", "there/e.parquet"} <= {*names}
    real = [os.path.realpath(path) for name, path in listing.files if "top/" not in name]
    assert len({*real}) == len(real)
    assert listing.left_out.named[CIRCLE] == ("deep/top/in/", "deep/up/", "other/up/")
    assert listing.left_out.counts[CIRCLE] > 3


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        pytest.param("in/_old/deep/*.csv", "names no Parquet file$", id="nothing"),
        pytest.param("in/*.Parquet", "for the case of letters .a.parquet, b.PARQUET", id="case"),
        pytest.param(
            "in/lang=*", r"it matches folders, .* 'in/lang=\*/\*\*/\*\.parquet'", id="folder"
        ),
        pytest.param("text", r"left out: 1 with another suffix than .* .a\.txt.", id="no Parquet"),
    ],
)
def test_an_input_without_files_tells_what_is_there(uri, told, mixed):
    (mixed / "text").mkdir()
    (mixed / "text" / "a.txt").touch()
    with pytest.raises(ValueError, match=told):
        list_files(uri)


def test_a_folder_that_cannot_be_listed_is_refused(folder, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", scandir)  # root may list everything
    with pytest.raises(ValueError, match=r"cannot open in: .* Permission denied"):
        list_files("in")
