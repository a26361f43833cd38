"""The parts of an output are no input of the next run, wherever the output lies."""

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
