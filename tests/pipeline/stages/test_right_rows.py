"""A row's caption is of that row, whatever fails, comes late, is tried again or is put elsewhere.

Each clip shows the number of its row in its pixels, and the engine reads the number from the
pixels. So a caption that stands at another row is seen, whichever stage has moved it.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.engine.sequence import SamplingParams
from parallel.groups.errors import DeadGroupError, GroupError
from parallel.ranks.admission import ADMIT_AT_ONCE
from pipeline.cluster.expert_load import LoadPicture
from pipeline.config import PipelineConfig
from pipeline.driver import drive
from pipeline.media.frame_sampling import FrameSampling
from pipeline.output.lock import lock_output
from pipeline.output.store import open_store
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import NamedPrompt, value_columns
from pipeline.run import run
from pipeline.run_plan import check, plan_run
from pipeline.schema import ErrorCode, InputColumns
from pipeline.stages.inline import InlineBackend
from pipeline.stages.workers import GenerateWorker, PrepareWorker, StageSpec, read_splits
from tests.pipeline.numbers import (
    NumberEngine,
    lucky_engine,
    numbered_media,
    unlucky_engine,
)
from tests.tiny import tiny_checkpoint

NUM_ROWS = 40
BROKEN = {7, 22, 31}  # rows whose media cannot be read
NAMED = (
    NamedPrompt(name="first", text="Row {n}?", sampling=SamplingParams(max_tokens=5)),
    NamedPrompt(name="second", text="And?", sampling=SamplingParams(max_tokens=6)),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def media():
    return [b"broken" if n in BROKEN else numbered_media(n) for n in range(NUM_ROWS)]


@pytest.fixture
def config(tmp_path, checkpoint, media):
    half = NUM_ROWS // 2
    write_input(tmp_path / "in", media, list(range(half)), list(range(half, NUM_ROWS)))
    return PipelineConfig(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        checkpoint=checkpoint,
        instructions=Instructions(
            frames=FrameSampling(num_frames=2), timestamps="none", max_frame_tokens=4
        ),
        sampling=SamplingParams(max_tokens=5),
        rows_per_part=7,
    )


def write_input(folder, media, *files):
    """Write files of small row groups, with the rows of these numbers in this order."""
    folder.mkdir(exist_ok=True)
    for name, own in zip("ab", files, strict=True):
        table = pa.table({"video": [media[n] for n in own], "n": own})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=9)


def check_rows(config):
    """Whatever is in the output is right; returns its statuses by the number of the row."""
    rows = pq.read_table(config.output).to_pylist()
    names = [prompt.name for prompt in config.instructions.named_prompts]
    for row in rows:
        if row["status"] == "ok" and names:
            assert [row[name] for name in names] == [f"{row['n']}/5", f"{row['n']}/6"]
        elif row["status"] == "ok":
            assert row["caption"] == f"{row['n']}/5"
        if row["n"] in BROKEN:
            assert row["error_code"].startswith("media_")
        else:
            assert row["error_code"] in (None, "out_of_memory")
    assert len({row["row_id"] for row in rows}) == len(rows)
    statuses = {row["n"]: row["status"] for row in rows}
    assert len(statuses) == len(rows)
    return statuses


class Unlucky:
    """Groups that die at times, before they answer or after."""

    def __init__(self, groups, rng):
        self._groups = groups
        self._rng = rng

    @asynccontextmanager
    async def lease(self, num_tokens, *, exclusive=False):
        async with self._groups.lease(num_tokens, exclusive=exclusive) as lease:
            yield _UnluckyLease(lease, self._rng)

    def __getattr__(self, name):
        return getattr(self._groups, name)


class _UnluckyLease:
    def __init__(self, lease, rng):
        self._lease = lease
        self._rng = rng

    async def generate(self, sets: Sequence):
        await asyncio.sleep(self._rng.random() * 0.02)
        answers = await self._lease.generate(sets)
        return [
            [DeadGroupError("bad luck")] * len(each) if self._rng.random() < 0.1 else each
            for each in answers
        ]


class Disorder:
    """Several preparers in threads, whose batches come in any order and some of them twice."""

    def __init__(self, inline, plan, runner, rng, *, is_unlucky):
        self._inline, self._plan, self._runner = inline, plan, runner
        self._rng, self._is_unlucky = rng, is_unlucky

    def __getattr__(self, name):
        return getattr(self._inline, name)

    def start_groups(self):
        groups = self._inline.start_groups()
        return Unlucky(groups, self._rng) if self._is_unlucky else groups

    def results(self, splits, groups, journal, *, one_by_one=False):
        spec = StageSpec.of(self._plan, self.sizing, one_by_one=one_by_one)
        generate = replace_backoff(GenerateWorker(spec, groups, journal))
        tables = list(read_splits(spec, self._rng.sample(splits, len(splits))))
        tables += self._rng.sample(tables, len(tables) // 8)  # as where Ray runs a task again
        finished, failures = [], []

        async def answer_all():
            workers = [PrepareWorker(spec, journal) for _ in range(2)]
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(len(workers)) as pool:
                shares = [tables[number :: len(workers)] for number in range(len(workers))]
                made = [
                    loop.run_in_executor(pool, prepare, worker, share, random.Random(number))
                    for number, (worker, share) in enumerate(zip(workers, shares, strict=True))
                ]
                batches = [batch for each in await asyncio.gather(*made) for batch in each]
            self._rng.shuffle(batches)
            tasks = [asyncio.create_task(generate(*batch)) for batch in batches]
            for task in asyncio.as_completed(tasks):
                try:
                    finished.append(await task)
                except GroupError as error:
                    failures.append(error)

        self._runner.run(answer_all())
        yield from finished
        if failures:
            raise failures[0]


def prepare(worker, tables, rng):
    try:
        batches = []
        for table in tables:
            time.sleep(rng.random() * 0.01)
            batches += list(worker(*table))
        return batches
    finally:
        worker.close()


def replace_backoff(worker):
    worker._generate = replace(worker._generate, backoff_s=0.0)
    return worker


def run_in_disorder(config, rng, engine, *, is_unlucky):
    """A run as `pipeline.run.run` drives it, on `Disorder`."""
    checked, store = check(config), open_store(config.output)
    with lock_output(store) as lock, asyncio.Runner() as runner:
        plan = plan_run(config, checked, store)
        writer = plan.open_writer(lock.check)
        if plan.rows.num_todo:
            inline = InlineBackend(plan, lambda *_: engine, runner)
            inline.sizing = replace(inline.sizing, admission=ADMIT_AT_ONCE)
            backend: Any = Disorder(inline, plan, runner, rng, is_unlucky=is_unlucky)
            drive(plan, writer, backend, LoadPicture(), show_progress=False)
    return writer


@pytest.mark.parametrize(
    ("seed", "prompts"),
    [
        pytest.param(1, NAMED, id="several prompts"),
        pytest.param(2, (), id="one prompt", marks=pytest.mark.slow),
        *(pytest.param(seed, (), marks=pytest.mark.slow) for seed in range(3, 9)),
        *(pytest.param(seed, NAMED, marks=pytest.mark.slow) for seed in range(9, 15)),
    ],
)
def test_no_caption_is_of_another_row(config, media, tmp_path, seed, prompts):
    rng = random.Random(seed)
    instructions = replace(config.instructions, named_prompts=prompts)
    config = replace(
        config,
        instructions=instructions,
        columns=InputColumns(fields=value_columns(prompts)),
        rows_per_batch=rng.randint(1, 5),
    )
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    for number in range(2):
        (deaths / str(number)).touch()
    tried_again = replace(config, retry_failed=(ErrorCode.OUT_OF_MEMORY,))
    num_stopped = 0
    for attempt in range(3):  # what fails is tried again, and a stopped run is continued
        engine = NumberEngine(seed + attempt, failing=0.2, dying=0.05, deaths=deaths)
        try:
            run_in_disorder(tried_again if attempt else config, rng, engine, is_unlucky=True)
        except GroupError:
            num_stopped += 1
        check_rows(config)
    run_in_disorder(tried_again, rng, NumberEngine(seed), is_unlucky=False)

    assert len(list(deaths.iterdir())) == 2 - num_stopped
    statuses = check_rows(config)
    assert statuses == {n: "error" if n in BROKEN else "ok" for n in range(NUM_ROWS)}
    # The rows of each file stand in another order now, and new ones are between them.
    numbers = [*range(NUM_ROWS), *(n + 100 for n in range(5))]
    more = {n: numbered_media(n) for n in numbers[NUM_ROWS:]} | dict(enumerate(media))
    half = NUM_ROWS // 2
    a, b = rng.sample(numbers[:half], half), rng.sample(numbers[half:], half + 5)
    write_input(Path(config.input), more, a, b)
    config = replace(config, new_rows=True)
    run_in_disorder(config, rng, NumberEngine(seed), is_unlucky=True)
    statuses = check_rows(config)
    assert sorted(statuses) == numbers
    assert all(statuses[n] == "ok" for n in numbers[NUM_ROWS:])


@pytest.mark.ray
@pytest.mark.slow
def test_no_caption_is_of_another_row_on_ray(config, tmp_path, ray_local):
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    for number in range(3):
        (deaths / str(number)).touch()
    config = replace(config, num_groups=2, rows_per_batch=3)
    for factory in (partial(unlucky_engine, deaths), lucky_engine):
        again = replace(config, retry_failed=(ErrorCode.OUT_OF_MEMORY,))
        run(again, connect=nullcontext, engine_factory=factory, show_progress=False)
        check_rows(config)

    statuses = check_rows(config)
    assert statuses == {n: "error" if n in BROKEN else "ok" for n in range(NUM_ROWS)}
    assert len(list(deaths.iterdir())) < 3  # so some died
