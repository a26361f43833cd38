"""`TrySession`: a few rows of an input, and an engine in this process that answers about them.

The stages are those of a job, without its ledger: what is shown here is what the job would write.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa

from jobs.checks.sampled_rows import drawn
from model.inputs.processor import Processor
from parallel.ranks.worker import Rank
from pipeline.cluster.groups import load_engine
from pipeline.config import PipelineConfig
from pipeline.input.reader import read_split
from pipeline.input.source import Source
from pipeline.media.frames import Frames
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import TimeWindows, Window, Windows
from pipeline.prompts.frame_loader import FrameLoader
from pipeline.prompts.frame_view import FrameView
from pipeline.prompts.input_row import InputRow
from pipeline.prompts.prepare import Prepare
from pipeline.stages.batching import Room
from pipeline.stages.generate import Generate
from pipeline.stages.inline import InlineGroup, inline_deployment, run_undisturbed
from pipeline.stages.merge import Merger


@dataclass(frozen=True)
class KeptFrames:
    """Loads the frames of a row once, so that the next prompt about them need not wait for that."""

    loader: FrameLoader
    _frames: dict[object, Mapping[FrameView, Sequence[Frames]]] = field(default_factory=dict)
    _windows: dict[object, Sequence[Window]] = field(default_factory=dict)

    def frames(
        self, row: InputRow, views: Sequence[FrameView]
    ) -> Mapping[FrameView, Sequence[Frames]]:
        """Load or repeat the frames of a row; see `FrameLoader.frames`."""
        key = (row.row_id, tuple(views))
        if key not in self._frames:
            self._frames[key] = self.loader.frames(row, views)
        return self._frames[key]

    def windows(self, row: InputRow, view: FrameView, windows: Windows) -> Sequence[Window]:
        """Load or repeat the windows of a row; see `FrameLoader.windows`."""
        key = (row.row_id, view, windows)
        if key not in self._windows:
            self._windows[key] = self.loader.windows(row, view, windows)
        return self._windows[key]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the job would write for one row, and what it took here."""

    row: Mapping[str, Any]  # the columns of the output
    own_prompt: str | None  # from the row's prompt column, if there is one
    prepare_s: float  # to fetch, decode and make a prompt
    answer_s: float  # from the prompt to the text


class TrySession:
    """Answers prompts about the same rows, one prompt after the other."""

    def __init__(
        self, config: PipelineConfig, source: Source, num_rows: int, runner: asyncio.Runner
    ) -> None:
        """Begin to load the model, and read `num_rows` random rows, each time the same ones."""
        self._runner = runner
        engine = inline_deployment(config).engine_of(config.engine)
        factory = partial(load_engine, config.checkpoint, engine, config.exchange, None)
        self._rank = Rank(factory)
        self._group = InlineGroup(self._rank, runner, Room(num_rows))
        self._schema = source.row_schema
        self._rows = _read(source, num_rows, config.sampling.seed)
        self._processor = Processor.from_checkpoint(config.checkpoint)
        self._decoder = SandboxedDecoder(config.instructions.limits)
        self._media = config.media_access(source.folder)
        limits, color = config.instructions.limits, config.instructions.background_color
        self._loader = KeptFrames(
            FrameLoader(self._processor, self._media.open, self._decoder, limits, color)
        )

    def ask(self, config: PipelineConfig, prompt: str | None = None) -> Iterator[Answer]:
        """Answer each row as a job with this `config` would, in order, each as soon as it is there.

        `prompt` replaces all prompts of the configuration, also those of a column. Frames, limits
        and checkpoint are those with which the session began.

        Raises:
            GroupError: the engine is dead.
        """
        schema = self._schema
        if prompt is not None:
            schema = replace(schema, columns=replace(schema.columns, prompt=None))
            instructions = replace(config.instructions, prompt=prompt, named_prompts=())
            config = replace(config, instructions=instructions)
        prepare = Prepare(
            self._processor,
            schema,
            config.instructions,
            self._media.open,
            config.sampling.seed,
            self._decoder,
            self._loader,
        )
        answers = self._answers(prepare, self._stage(config), schema.columns.prompt)
        try:
            while (answer := run_undisturbed(self._runner, _next(answers))) is not None:
                yield answer
        finally:
            self._runner.run(answers.aclose())

    def close(self) -> None:
        """End the engine and the decoding process."""
        self._group.close()
        self._decoder.close()

    def _stage(self, config: PipelineConfig) -> Generate:
        windows, merger = config.instructions.windows, None
        if isinstance(windows, TimeWindows) and windows.merge is not None:
            merger = Merger(self._processor, windows.merge, config.sampling)
        prompts = config.instructions.named_prompts
        return Generate(self._group, config.sampling, prompts, windows, merger)

    async def _answers(
        self, prepare: Prepare, generate: Generate, prompt_column: str | None
    ) -> AsyncGenerator[Answer, None]:
        """Prepare row after row in a thread, while those before are answered."""
        tasks: deque[asyncio.Task[Answer]] = deque()
        try:
            for index in range(self._rows.num_rows):
                row = self._rows.slice(index, 1)
                started = time.perf_counter()
                prepared = await asyncio.to_thread(prepare, row)
                prepare_s = time.perf_counter() - started
                own = None if prompt_column is None else row[prompt_column][0].as_py()
                await self._rank.ready()
                tasks.append(asyncio.create_task(_answer(generate, prepared, own, prepare_s)))
                while tasks and tasks[0].done():
                    yield await tasks.popleft()
            while tasks:
                yield await tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()


@contextmanager
def open_session(
    config: PipelineConfig, source: Source, num_rows: int
) -> Generator[TrySession, None, None]:
    """Open a session and close it at the end."""
    with asyncio.Runner() as runner:
        session = TrySession(config, source, num_rows, runner)
        try:
            yield session
        finally:
            session.close()


async def _answer(
    generate: Generate, prepared: pa.Table, own_prompt: str | None, prepare_s: float
) -> Answer:
    started = time.perf_counter()
    (rows,) = [rows async for rows in generate(prepared)]
    (row,) = rows.to_pylist()
    answer_s = time.perf_counter() - started
    return Answer(row=row, own_prompt=own_prompt, prepare_s=prepare_s, answer_s=answer_s)


async def _next(answers: AsyncGenerator[Answer, None]) -> Answer | None:
    return await anext(answers, None)


def _read(source: Source, num_rows: int, seed: int) -> pa.Table:
    splits = drawn(source, num_rows, seed)
    tables = [
        table
        for split in splits
        for table in read_split(source.filesystem, source.row_schema, split, max_rows=num_rows)
    ]
    return pa.concat_tables(tables)
