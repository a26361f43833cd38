"""Measure several questions about one clip, whose frames are encoded and prefilled once for all."""

from collections.abc import Sequence
from statistics import mean

import pyarrow as pa

from jobs.bench.cases.clips import answers
from jobs.bench.cases.workbench import Workbench
from jobs.bench.measure.shapes import add_all, engine_for, run_until_done
from jobs.bench.measure.turns import take_turns, timed
from jobs.demo.evaluate import Clip, make_clips
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.inputs.processor import Processor
from model.inputs.prompt import Prompt
from pipeline.media.frame_sampling import FrameSampling
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.prompts.prepare import Prepare
from pipeline.prompts.prompt_columns import decode_prompt
from pipeline.schema import InputColumns, check_input

_QUESTION_LEN = 32
_CACHE_GIB = 1.0
_NUM_CLIPS = 16  # of the demo
_TEXTS = (
    "Describe this video in detail.",
    "What moves in this video?",
    "Which colours are there?",
    "How many shapes are there?",
    "What shape is it?",
    "In which direction does it move?",
    "Describe the motion.",
    "Write a caption of this video.",
)


def measure_questions(bench: Workbench) -> dict[str, object]:
    """Measure the time until all questions have a first token, by that of one question."""
    alone = [_first_tokens(bench, 1)]
    together = _first_tokens(bench, bench.sizes.num_questions)
    alone.append(_first_tokens(bench, 1))
    return {
        "questions": bench.sizes.num_questions,
        "one_question_s": round(mean(alone), 3),
        "questions_cost": round(together / mean(alone), 3),
        **_on_demo(bench),
    }


def _on_demo(bench: Workbench) -> dict[str, object]:
    """Measure all questions by the first one alone, on the demo checkpoint, from H.264 on."""
    sizes = bench.sizes
    processor = Processor.from_checkpoint(bench.checkpoint)
    config = EngineConfig(cache_gib=0.5, num_threads=bench.num_threads)
    engine = Engine.from_checkpoint(bench.checkpoint, config)
    clips = make_clips("validation", min(_NUM_CLIPS, sizes.num_clips))
    stages = {
        name: _stage(processor, texts, sizes.num_frames)
        for name, texts in (("one", _TEXTS[:1]), ("all", _TEXTS[: sizes.num_questions]))
    }
    turns = take_turns(
        {
            name: lambda stage=stage: timed(
                lambda: [answers(engine, _prompts_about(stage, clip)) for clip in clips]
            )
            for name, stage in stages.items()
        },
        sizes.num_rounds,
    )
    for stage in stages.values():
        stage.close()
    return {
        "demo_one_question_s": round(turns.typical("one") / len(clips), 3),
        "demo_questions_cost": round(turns.quotient("all", "one"), 3),
    }


def _stage(processor: Processor, texts: Sequence[str], num_frames: int) -> Prepare:
    prompts = tuple(NamedPrompt(name=f"q{n}", text=text) for n, text in enumerate(texts))
    instructions = Instructions(frames=FrameSampling(num_frames=num_frames), named_prompts=prompts)
    row_schema = check_input(pa.schema([("video", pa.large_binary())]), InputColumns(), carry=())
    return Prepare(processor, row_schema, instructions, _as_it_is)


def _as_it_is(media: object) -> bytes:
    assert isinstance(media, bytes)
    return media


def _prompts_about(stage: Prepare, clip: Clip) -> list[Prompt]:
    """Return the prompts about a clip, as the prepare stage hands them to the generate stage."""
    videos = pa.array([clip.video], pa.large_binary())
    table = stage(pa.table({"row_id": ["0"], "video": videos}))
    prompts: list[Prompt] = []
    for row in range(table.num_rows):
        prompt = decode_prompt(table, row, prompts[-1] if prompts else None)
        assert prompt is not None
        prompts.append(prompt)
    return prompts


def _first_tokens(bench: Workbench, num_questions: int) -> float:
    """Return the seconds of a new engine, about a clip that it has never seen."""
    sizes = bench.sizes
    engine = engine_for(bench.model, num_questions, bench.num_threads, _CACHE_GIB)
    grids = [sizes.frame] * sizes.num_frames
    prompts = bench.prompts.about(grids, num_questions, _QUESTION_LEN)

    def ask() -> None:
        add_all(engine, prompts, max_tokens=1)
        run_until_done(engine)

    return timed(ask)
