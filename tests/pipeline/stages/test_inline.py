"""A run in one process: what it refuses, and what is left of it however it ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from model.engine.engine import Engine, own_turn
from pipeline.cluster.groups import load_engine
from pipeline.output.journal_file import replay
from pipeline.run import RunError, run
from pipeline.stages.inline import run_undisturbed
from tests.conftest import ON_RAY_SLOWLY, ROOT
from tests.pipeline.runs import answer_without_ray, small_config
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture
def config(tmp_path, checkpoint):
    return small_config(tmp_path, checkpoint)


def rows_of(config):
    return pq.read_table(config.output).sort_by("n").to_pylist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 2}, "one copy of the model in one process, got --groups 2"),
        ({"expert_parallel": 4}, "in one process, got --expert-parallel 4; leave out"),
    ],
)
def test_several_ranks_are_refused(config, carry_out, changes, message):
    with pytest.raises(RunError, match=message):
        carry_out(replace(config, **changes))

    assert not list(Path(config.output).glob("part-*"))


def test_one_rank_may_be_asked_for_by_name(config, carry_out):
    report = carry_out(replace(config, num_groups=1, expert_parallel=1, limit=1))

    assert report.rows_written == 1
    assert "--inline runs everything in this process" in report.usage.deployment


@pytest.mark.parametrize("carry_out", [ON_RAY_SLOWLY], indirect=True)
def test_captions_are_those_of_a_run_on_ray(config, carry_out):
    apart = replace(config, output=f"{config.output}-inline")
    carry_out(config)
    run(apart, connect=nullcontext, inline=True, show_progress=False)

    for inline, on_ray in zip(rows_of(apart), rows_of(config), strict=True):
        for name in ("mean_logprob", "min_logprob"):  # their last bits follow the batch
            assert inline.pop(name) == pytest.approx(on_ray.pop(name), rel=1e-5)
        assert inline == on_ray


def test_batch_and_cache_are_told_at_the_start_and_in_the_report(config, capsys):
    report = run(config, connect=nullcontext, inline=True)

    line = f"each rank: {report.usage.capacity}"
    told = capsys.readouterr().err.splitlines()
    assert line in told
    assert "batches of 32 sequences (the default on CPUs); cache of 0.0" in line
    assert "tokens (as asked); steps of 8192 tokens; vision calls of 16384 patches" in line
    stored = json.loads((Path(config.output) / "_report.json").read_text())["engine"]
    assert (stored["batch_size"], stored["why"]) == (32, str(report.usage.capacity))
    assert stored["out_of_memory"] == 0
    assert report.usage.num_sequences == 32


def test_captions_of_the_run_are_counted_in_the_report(config, carry_out):
    rows_before = carry_out(replace(config, limit=1)).captions.num_captions
    report = carry_out(config)
    captions = [row["caption"] for row in rows_of(config) if row["caption"] is not None]

    assert rows_before == 1
    assert report.captions.num_captions == len(captions) - 1  # not those of the run before
    assert sum(report.captions.finish_reasons.values()) == len(captions) - 1
    stored = json.loads((Path(config.output) / "_report.json").read_text())["captions"]
    assert stored["num_captions"] == len(captions) - 1


def test_a_row_that_the_memory_does_not_suffice_for_fails_alone(config, monkeypatch):
    class SmallEngine(Engine):
        def compute(self, chunks, turn=own_turn):
            if any(chunk.sequence.request_id == "2" for chunk in chunks):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
            return super().compute(chunks, turn)

    def small_engine(checkpoint, engine_config, exchange, rank_spec):
        return SmallEngine.from_checkpoint(checkpoint, engine_config)

    report = run(config, connect=nullcontext, inline=True, engine_factory=small_engine)
    assert report.error_codes == {"out_of_memory": 1}
    assert report.usage.num_out_of_memory > 0
    assert "ran out of memory" in str(report)
    (failed,) = (row for row in rows_of(config) if row["status"] == "error")
    assert "Tried to allocate 9 GiB.; use fewer or smaller frames, or lower" in failed["error"]
    assert len(rows_of(config)) == 6


def dying_engine(checkpoint, config, exchange, rank_spec):
    """An engine that breaks once it has answered two requests."""
    engine = load_engine(checkpoint, config, exchange, rank_spec)
    step, answered = engine.step, []

    def step_or_die():
        if len(answered) >= 2:
            raise OSError("the device fell off the bus")
        finished = step()
        answered.extend(finished)
        return finished

    engine.step = step_or_die
    return engine


def test_an_engine_that_dies_ends_the_run_and_the_same_command_continues(config, carry_out):
    config = replace(config, rows_per_part=1, rows_per_batch=1)
    config = replace(config, engine=replace(config.engine, max_batch_size=1))

    with pytest.raises(RunError, match=r"fell off the bus -- [12] rows .* same command continues"):
        carry_out(config, engine_factory=dying_engine)

    kept = rows_of(config)
    assert 1 <= len(kept) <= 2
    assert not (Path(config.output) / "_starts.json").exists()
    report = carry_out(config)
    assert report.rows_done_before == len(kept)
    rows = rows_of(config)
    assert [row["n"] for row in rows] == list(range(6))
    assert [row for row in rows if row["row_id"] in {each["row_id"] for each in kept}] == kept


# Answers the first three rows, says so, and then takes a second for each step.
PROGRAM = """
import signal, sys, time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from jobs.cli.ray_cluster import ended_by_signals
from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from pipeline.cluster.groups import load_engine
from pipeline.config import PipelineConfig
from pipeline.media.frame_sampling import FrameSampling
from pipeline.prompts.instructions import Instructions
from pipeline.run import run

folder, checkpoint = map(Path, sys.argv[1:])
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores

def stuck(checkpoint, config, exchange, rank_spec):
    engine = load_engine(checkpoint, config, exchange, rank_spec)
    step, answered = engine.step, []
    def step_until_stuck():
        if len(answered) >= 3:
            print("stuck", flush=True)
            time.sleep(1)
        finished = step()
        answered.extend(finished)
        return finished
    engine.step = step_until_stuck
    return engine

config = PipelineConfig(
    input=str(folder / "in"),
    output=str(folder / "out"),
    checkpoint=checkpoint,
    instructions=Instructions(frames=FrameSampling(num_frames=2), max_frame_tokens=4),
    sampling=SamplingParams(max_tokens=4),
    engine=EngineConfig(cache_gib=0.01, max_batch_size=1),
    rows_per_part=1,
    rows_per_batch=1,
)
run(config, connect=ended_by_signals, inline=True, engine_factory=stuck, show_progress=False)
"""


@pytest.mark.parametrize(
    ("end", "code", "was_counted"),
    [
        pytest.param(signal.SIGKILL, -9, True, id="killed"),
        pytest.param(signal.SIGTERM, 143, False, id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, False, id="Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_every_row_is_there_once_after_the_process_was_stopped(
    config, carry_out, tmp_path, checkpoint, end, code, was_counted
):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(checkpoint)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"stuck\n"
        while len(list(Path(config.output).glob("part-*"))) < 2:
            time.sleep(0.01)
        os.kill(job.pid, end)
        assert job.wait(30) == code

    kept = {row["row_id"]: row for row in rows_of(config)}
    journal = Path(config.output) / "_starts.json"
    assert journal.exists() == was_counted
    if was_counted:
        assert set(replay(journal.read_bytes()).values()) == {1}
    carry_out(replace(config, engine=replace(config.engine, max_batch_size=1)))

    rows = rows_of(config)
    assert [row["n"] for row in rows] == list(range(6))
    assert all(row == kept.get(row["row_id"], row) for row in rows)
    assert {row["attempts"] for row in rows} == ({1, 2} if was_counted else {1})
    assert not journal.exists()


@pytest.mark.parametrize("when", ["as it waits", "with its last step"])
def test_what_a_signal_raises_comes_after_the_event_loop(when):
    called = []

    async def other():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        called.append("other")

    async def wait():
        task = asyncio.create_task(other())
        await (asyncio.sleep(60) if when == "as it waits" else asyncio.sleep(0))
        called.append("last step")
        return task

    async def answer():
        await asyncio.sleep(0.01)
        return 2

    def stop(*_):
        raise SystemExit

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with asyncio.Runner() as runner:
            with pytest.raises(SystemExit):
                run_undisturbed(runner, wait())
            assert run_undisturbed(runner, answer()) == 2  # nothing of the first wait is left
        assert "other" in called
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_rows_that_an_earlier_run_left_are_not_read_again(config, carry_out):
    answer_without_ray(config, range(6))

    assert carry_out(config).rows_written == 0
