"""Files of an output are whole or not there, on disks and on object stores."""

import pickle
import re

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pipeline.filesystems import open_filesystem, without_secrets
from pipeline.output.recipe import Recipe, claim_output
from pipeline.output.store import LocalStore, ObjectStore, open_store

MIB = 1 << 20


@pytest.fixture(params=["directory", "s3"])
def store(request, tmp_path):
    if request.param == "directory":
        store = open_store(str(tmp_path / "a" / "out"))
        assert isinstance(store, LocalStore)
    else:
        store = open_store(request.getfixturevalue("bucket").uri("a/out"))
        assert isinstance(store, ObjectStore)
    store.prepare()
    return store


@pytest.mark.parametrize("below", ["", "/out", "/deep/out"])
def test_a_file_in_the_place_of_a_directory_is_refused_by_name(below, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for form in ("{}", "file://{}"):
        uri = form.format(tmp_path / f"file{below}")
        with pytest.raises(ValueError, match=rf"^cannot write to the output {uri}: .*/file is a f"):
            open_store(uri)
        with pytest.raises(ValueError, match=r"/link is a broken link$"):
            open_store(form.format(tmp_path / f"link{below}"))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:SEC@RET@bucket/x?region=r&session_token=T", "s3://bucket/x?region=r"),
        ("s3://bucket/x?tls_verify_certificates=false", None),
        ("https://user:password@host/x", "https://host/x"),
        ("abfss://container:KEY@account.dfs.core.windows.net/x", None),
        ("gs://anonymous@bucket/x", None),
        ("hdfs://alice@host:8020/x?replication=2", None),
        ("/a/path@b?key=c", None),
    ],
)
def test_a_uri_without_its_secrets_leads_to_the_same_place(uri, shown):
    assert without_secrets(uri) == (shown or uri.replace(":KEY", ""))


def test_files_are_written_replaced_read_moved_and_deleted(store):
    assert store.names() == []
    assert store.read("x") is None
    store.write("x", b"one")
    store.write("x", pa.py_buffer(b"two!"))
    store.write("b", b"")
    assert store.names() == ["b", "x"]
    assert (store.read("x"), store.read("b")) == (b"two!", b"")

    store.move("x", "_old")
    store.delete("b")
    store.delete("b")

    assert store.names() == []


def test_parquet_is_read_where_it_was_written(store):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2]}), sink)
    store.write("part-0.parquet", sink.getvalue())

    filesystem, path = store.path_of("part-0.parquet")

    assert pq.read_table(path, filesystem=filesystem)["a"].to_pylist() == [1, 2]


def test_workers_get_a_store_by_pickle(store):
    store.write("x", b"one")

    assert pickle.loads(pickle.dumps(store)).read("x") == b"one"


def test_an_object_is_not_there_before_its_last_byte(bucket):
    store = open_store(bucket.uri("out"))
    store.write("part-0.parquet", b"old")
    filesystem, path = store.path_of("part-0.parquet")

    with filesystem.open_output_stream(path) as stream:  # as `write` does, stopped half-way
        stream.write(b"x" * (12 * MIB))
        assert store.read("part-0.parquet") == b"old"


def test_an_object_that_is_shorter_than_it_should_be_is_an_error(tmp_path, monkeypatch):
    store = ObjectStore("mock://out", pafs.LocalFileSystem(), str(tmp_path))
    (tmp_path / "x").write_bytes(b"on")

    class Lossy:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, _):
            return None

    class LossyFileSystem:
        def open_output_stream(self, *_, **__):
            return Lossy()

        def get_file_info(self, path):
            return pafs.LocalFileSystem().get_file_info(path)

    object.__setattr__(store, "filesystem", LossyFileSystem())

    with pytest.raises(OSError, match="x has 2 bytes after 3 were written"):
        store.write("x", b"one")


def test_a_uri_is_shown_without_its_secrets(bucket):
    assert open_store(bucket.uri("a/out")).uri == f"s3://{bucket.name}/a/out"


def test_a_bucket_that_does_not_exist_is_refused_before_any_work(bucket):
    from pipeline.output.lock import lock_output

    store = open_store(bucket.uri("out").replace(bucket.name, "no-such-bucket"))

    with (
        pytest.raises(ValueError, match=r"cannot write to the output s3://no-such-bucket/out: "),
        lock_output(store),
    ):
        pass


def test_an_object_in_the_place_of_an_output_is_refused_by_name(bucket):
    open_store(bucket.uri("")).write("out", b"somebody's object")

    with pytest.raises(ValueError, match=r"s3://.*/out: it is an object; name a prefix"):
        open_store(bucket.uri("out")).prepare()


@pytest.mark.parametrize("name", ["notes.txt", "captions.parquet", "partial.parquet", "part-1.csv"])
def test_an_output_with_a_foreign_file_is_refused_by_its_name(store, name):
    store.write(name, b"somebody's file")

    with pytest.raises(ValueError, match=rf"holds files that no job wrote: {re.escape(name)}\. "):
        claim_output(store, Recipe({"prompt": "a"}))


def test_files_that_readers_skip_do_not_stop_a_job(store):
    for name in ("_notes.txt", "_SUCCESS", ".DS_Store"):
        store.write(name, b"somebody's file")

    claim_output(store, Recipe({"prompt": "a"}))

    assert store.read("_recipe.json") is not None


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="cannot write to the output nowhere://x"):
        open_store("nowhere://x/y")


def test_a_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    filesystem, path = open_filesystem("a/b")

    assert isinstance(filesystem, pafs.LocalFileSystem)
    assert path == str(tmp_path / "a" / "b")
