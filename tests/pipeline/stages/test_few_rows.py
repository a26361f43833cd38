"""A run of a few rows, whose stages have one worker: what it answers, and what it survives."""

import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.fetch.media_access import MediaAccess
from pipeline.media.windows import TimeWindows
from pipeline.output.lock import lock_output
from pipeline.run import run
from pipeline.run_plan import check, plan_run
from pipeline.stages.few_rows import is_few
from tests.conftest import ON_RAY_SLOWLY
from tests.pipeline.runs import small_config, store_of
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture
def config(tmp_path, checkpoint):
    """Four rows of two row groups."""
    return replace(small_config(tmp_path, checkpoint), limit=4)


def rows_of(config):
    return pq.read_table(config.output).sort_by("n").to_pylist()


def plan_of(config):
    store = store_of(config)
    with lock_output(store):
        return plan_run(config, check(config), store)


def test_rows_are_few_if_one_worker_answers_them_soonest(config):
    plan = plan_of(config)
    assert is_few(plan)
    assert not is_few(replace(plan, rows=replace(plan.rows, quarantined=plan.rows.splits)))
    windows = replace(config.instructions, windows=TimeWindows(length_s=1.0))
    assert not is_few(replace(plan, config=replace(config, instructions=windows)))
    assert not is_few(plan_of(replace(config, limit=5)))


@pytest.mark.parametrize("carry_out", [ON_RAY_SLOWLY], indirect=True)
def test_captions_are_those_of_a_run_in_one_process(config, carry_out):
    apart = replace(config, output=f"{config.output}-inline")
    run(apart, connect=nullcontext, inline=True, show_progress=False)

    report = carry_out(config)

    assert report.usage.num_preparers == 1
    assert report.usage.costs.stages.keys() == {"read", "prepare", "generate"}
    for inline, on_ray in zip(rows_of(apart), rows_of(config), strict=True):
        for name in ("mean_logprob", "min_logprob"):  # their last bits follow the batch
            assert inline.pop(name) == pytest.approx(on_ray.pop(name), rel=1e-5)
        assert inline == on_ray


@pytest.mark.parametrize("carry_out", [ON_RAY_SLOWLY], indirect=True)
@pytest.mark.parametrize(("num_deaths", "error_codes"), [(1, {}), (99, {"poison_row": 1})])
def test_a_worker_that_dies_begins_again_and_gives_up_the_row_that_kills_it(
    config, carry_out, monkeypatch, tmp_path, num_deaths, error_codes
):
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    class Deadly(MediaAccess):
        def open(self, media):
            number = len(list(deaths.iterdir()))
            if media == "3.mp4" and number < num_deaths:
                Path(deaths / str(number)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return MediaAccess.open(self, media)

    monkeypatch.setattr("pipeline.config.MediaAccess", Deadly)

    report = carry_out(replace(config, rows_per_batch=1, rows_per_part=1))

    assert len(list(deaths.iterdir())) == (1 if num_deaths == 1 else 6)
    assert report.error_codes == error_codes
    assert [row["n"] for row in rows_of(config)] == [0, 1, 2, 3]
    assert [row["caption"] is not None for row in rows_of(config)[:3]] == [True] * 3
