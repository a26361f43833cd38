"""What a run says before it begins."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.output.lock import lock_output
from pipeline.run_plan import check, plan_run
from tests.pipeline.runs import answer_without_ray, small_config, store_of
from tests.tiny import tiny_checkpoint


@pytest.fixture
def config(tmp_path):
    """A run whose input has a column `id`, which is not used."""
    tiny_checkpoint(tmp_path / "checkpoint")
    config = small_config(tmp_path, tmp_path / "checkpoint")
    (file,) = Path(config.input).glob("*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.append_column("id", table["n"]), file, row_group_size=2)
    return config


def remark(config):
    store = store_of(config)
    with lock_output(store):
        return plan_run(config, check(config), store).remark


def test_an_id_column_that_is_not_used_is_told_until_the_output_is_begun(config):
    assert "--id-column id names them by it" in (remark(config) or "")

    answer_without_ray(config, [0])
    assert "--id-column" not in (remark(config) or "")


def test_nothing_is_said_where_the_id_column_is_used(config):
    assert remark(replace(config, columns=replace(config.columns, id="id"))) is None
