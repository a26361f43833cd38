"""How a run is cut into tasks of Ray Data."""

from pipeline.input.plan import RowGroupSplit, batched_splits
from pipeline.stages.ray_data import rows_per_read


def splits(num_groups, rows):
    group = RowGroupSplit("a.parquet", "/in/a.parquet", 0, 0, rows, b"", rows)
    return [group] * num_groups


def test_tasks_are_bounded_however_many_rows_there_are():
    small, large = splits(10, 256), splits(100_000, 1000)

    assert rows_per_read(small, read_rows=8) == 256
    assert rows_per_read(small, read_rows=64) == 1024
    reads = batched_splits(large, rows_per_read(large, read_rows=8))
    assert len(reads) <= 2 * 4096
    assert sum(map(len, reads)) == 100_000
