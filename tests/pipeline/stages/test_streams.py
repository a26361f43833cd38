"""Several streams of Ray Data, and what the driver gets of each."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.input.plan import RowGroupSplit
from pipeline.monitor.stage_costs import Cost
from pipeline.run import RunError
from pipeline.stages import ray_backend
from pipeline.stages.streams import gathered, shares_of
from pipeline.stages.workers import Workers
from tests.conftest import ON_RAY_SLOWLY
from tests.pipeline.runs import small_config, store_of
from tests.tiny import tiny_checkpoint


def batch(*numbers):
    return pa.table({"n": pa.array(numbers, pa.int64())}), [Cost("read", num_rows=len(numbers))]


def numbers_of(tables):
    return [table["n"].to_pylist() for table, _ in tables]


def split(name, num_todo):
    return RowGroupSplit(name, name, 0, 0, num_todo, b"", num_todo)


def test_batches_that_come_at_once_are_one_table():
    (table, costs), *others = gathered(iter([batch(1, 2), batch(3), batch(4, 5)]))

    assert others == []
    assert table["n"].to_pylist() == [1, 2, 3, 4, 5]
    assert [cost.num_rows for cost in costs] == [2, 1, 2]


def test_a_table_is_full_with_so_many_rows():
    tables = gathered(iter([batch(1, 2), batch(3), batch(4, 5), batch(6)]), max_rows=3)
    assert numbers_of(tables) == [[1, 2, 3], [4, 5, 6]]


def test_a_row_does_not_wait_for_a_batch_that_comes_late():
    def batches():
        yield batch(1)
        time.sleep(0.5)
        yield batch(2)

    assert numbers_of(gathered(batches(), max_wait_s=0.01)) == [[1], [2]]


def test_a_failure_comes_after_the_rows_before_it():
    def batches():
        yield batch(1)
        raise ValueError("the stages failed")

    tables = gathered(batches())
    assert next(tables)[0]["n"].to_pylist() == [1]
    with pytest.raises(ValueError, match="the stages failed"):
        next(tables)


def test_no_batches_make_no_table():
    assert list(gathered(iter([]))) == []


def test_each_split_is_in_one_share_and_shares_are_level():
    splits = [split(f"file {number}", 1 + number % 7) for number in range(100)]

    shares = shares_of(splits, 4)

    assert Counter(each for share in shares for each in share) == Counter(splits)
    rows = [sum(each.num_todo for each in share) for share in shares]
    assert max(rows) - min(rows) <= 7


def test_nobody_gets_an_empty_share():
    splits = [split("a", 1), split("b", 1)]
    assert shares_of(splits, 4) == [[splits[0]], [splits[1]]]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A small run that has two streams."""
    choose_sizing = ray_backend.choose_sizing

    def choose_fleet(*arguments, **options):
        return replace(choose_sizing(*arguments, **options), num_streams=2)

    monkeypatch.setattr(ray_backend, "choose_sizing", choose_fleet)
    tiny_checkpoint(tmp_path / "checkpoint")
    return small_config(tmp_path, tmp_path / "checkpoint")


@pytest.mark.parametrize("carry_out", [ON_RAY_SLOWLY], indirect=True)
def test_a_run_says_why_a_stage_of_a_stream_failed(config, monkeypatch, carry_out):
    def prepare(spec, journal):
        def work(rows, costs):
            raise ValueError("node-7 has no checkpoint")

        return work

    monkeypatch.setattr(ray_backend, "Workers", lambda: Workers(prepare=prepare))

    with pytest.raises(RunError, match=r"^node-7 has no checkpoint .*-- 0 rows"):
        carry_out(config)


@pytest.mark.parametrize("carry_out", [ON_RAY_SLOWLY], indirect=True)
def test_a_fleet_answers_each_row_once(config, carry_out):
    (Path(config.input) / "4.mp4").unlink()

    report = carry_out(config)

    rows = pq.read_table(config.output)
    assert sorted(rows["row_id"].to_pylist()) == [f"clips.parquet#{n}" for n in range(6)]
    assert report.error_codes == {"media_missing": 1}
    assert report.rows_written == 6
    assert not [name for name in store_of(config).names() if name.startswith("_starts")]
