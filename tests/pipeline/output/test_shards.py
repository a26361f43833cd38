"""What shards of one output agree on, on disks and on object stores."""

from pathlib import Path

import pytest

from pipeline.filesystems import below
from pipeline.output import shards
from pipeline.output.recipe import Recipe, claim_output
from pipeline.output.shards import (
    InputIdentity,
    Shard,
    begun_shards,
    check_place,
    claim_shard,
    read_records,
    shard_store,
)

RECIPE = Recipe({"prompt": "What?"})
INPUT = InputIdentity.of([("a.parquet", 3), ("b.parquet", 4)])


@pytest.fixture(params=["directory", "s3"])
def output(request, tmp_path):
    if request.param == "directory":
        return str(tmp_path / "a" / "out")
    return request.getfixturevalue("bucket").uri("a/out")


def begin(output, shard, identity=INPUT, recipe=RECIPE, *, with_rows=True, **options):
    store = shard_store(output, shard)
    store.prepare()
    claim_shard(output, shard, identity, recipe, **{"new_recipe": False, **options})
    claim_output(store, recipe)
    if with_rows:
        store.write("part-000000-x.parquet", b"rows")


def test_shards_are_equal_parts_in_the_order_of_the_rows():
    assert [Shard(number, 3).rows(8) for number in (1, 2, 3)] == [
        range(2),
        range(2, 5),
        range(5, 8),
    ]
    assert [len(Shard(number, 4).rows(2)) for number in range(1, 5)] == [0, 1, 0, 1]


@pytest.mark.parametrize(("number", "of"), [(0, 3), (4, 3), (1, 0)])
def test_a_shard_that_is_none_is_refused(number, of):
    with pytest.raises(ValueError, match=f"--shard {number}/{of} names no shard"):
        Shard(number, of)


def test_a_folder_below_a_uri_keeps_its_settings():
    assert below("s3://bucket/out/?region=r", "shard-1-of-2") == (
        "s3://bucket/out/shard-1-of-2?region=r"
    )
    assert below("/out?", "x") == "/out?/x"


def test_shards_find_each_other_and_agree(output):
    assert begun_shards(output) == []
    begin(output, Shard(2, 12))
    begin(output, Shard(10, 12))
    begin(output, Shard(2, 12))

    assert begun_shards(output) == [Shard(2, 12), Shard(10, 12)]
    found = read_records(output, [Shard(10, 12), Shard(1, 12)])
    assert found == [(Shard(10, 12), INPUT, {"prompt": "What?"}), (Shard(1, 12), None, None)]
    with pytest.raises(ValueError, match="shard-2-of-12, so its input is cut into 12 shards"):
        check_place(output, None)
    with pytest.raises(ValueError, match="this run is to be cut into 3; give --shard I/12"):
        check_place(output, Shard(1, 3))


def test_folders_that_only_look_like_shards_are_none(tmp_path):
    for name in ("shard-1-of-2", "shard-0-of-2", "shard-3-of-2", "shard-x-of-2", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "shard-2-of-2").write_text("a file")

    assert begun_shards(str(tmp_path)) == []


@pytest.mark.parametrize("rival", [Shard(1, 3), Shard(1, 2)], ids=["another cut", "another input"])
def test_of_two_shards_that_begin_together_one_gives_way(tmp_path, monkeypatch, rival):
    output, write = str(tmp_path), shards.write_json

    def write_after_the_rival(*arguments):
        monkeypatch.setattr(shards, "write_json", write)
        begin(output, rival, InputIdentity.of([("a.parquet", 8)]), with_rows=False)
        write(*arguments)

    monkeypatch.setattr(shards, "write_json", write_after_the_rival)
    with pytest.raises(ValueError, match=r"shard-1-of-3, so|begun with an input of 8 rows"):
        begin(output, Shard(2, 2))

    assert begun_shards(output) == [rival]


def test_a_shard_without_rows_takes_a_new_input(tmp_path):
    other = InputIdentity.of([("a.parquet", 9)])
    begin(str(tmp_path), Shard(1, 2), with_rows=False)
    begin(str(tmp_path), Shard(1, 2), other)

    with pytest.raises(ValueError, match=r"an input of 9 rows in 1 files, and the input has 7"):
        begin(str(tmp_path), Shard(1, 2))


def test_a_damaged_record_is_named_with_the_remedy(tmp_path):
    begin(str(tmp_path), Shard(1, 2))
    (Path(tmp_path) / "shard-1-of-2" / "_shard.json").write_text('{"num_rows": 7}')

    with pytest.raises(ValueError, match=r"_shard.json of .*shard-1-of-2 is damaged.*delete it"):
        begin(str(tmp_path), Shard(1, 2))
    (Path(tmp_path) / "shard-1-of-2" / "_shard.json").unlink()
    begin(str(tmp_path), Shard(1, 2))
