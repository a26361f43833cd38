"""Measure a demo checkpoint on clips that it was not trained on.

    python -m jobs.demo.evaluate --clips 256

Clips of the held-out split are written to Parquet and captioned by the pipeline, as in a job: one
run for each number of frames, with questions in the prompt column. The last line is one JSON object
with all measurements.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cli.checkpoint import find_checkpoint
from jobs.cli.ray_cluster import connect
from jobs.demo.clips import SIZES, encode, with_timestamps
from jobs.demo.judge import Accuracy, judge_caption
from jobs.demo.language import VIDEO_PROMPT, Question, caption, questions
from jobs.demo.scenes import Scene, Split, draw, first_seed, frame_times, random_scene
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from model.inputs.prompt import PromptError
from pipeline.config import PipelineConfig
from pipeline.media.decode import decode_media
from pipeline.media.display import FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.frames import Frames
from pipeline.prompts.instructions import Instructions, Timestamps
from pipeline.run import run
from pipeline.schema import InputColumns

RATE = 10
NUM_FRAMES = (1, 2, 4, 8, 16)
ASKED_FRAMES = 8  # number of frames for the questions and for the main numbers
_MAX_TOKENS = 96
_ENGINE = EngineConfig(max_model_len=1024, cache_gib=0.5)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A scene and its encoded video."""

    scene: Scene
    video: bytes

    def frames(self, num_frames: int) -> Frames:
        """Decode the frames that a job would sample."""
        request = FrameRequest(sampling=FrameSampling(num_frames=num_frames))
        return decode_media(self.video, [request])[0].media[0]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the job's input: a clip, and what is asked about it."""

    clip: Clip
    form: str  # "caption", "open" or "choice"
    question: Question | None = None

    @property
    def prompt(self) -> str:
        """The prompt of the row."""
        return VIDEO_PROMPT if self.question is None else self.question.text


def make_clips(split: Split, num_clips: int, run_seed: int = 1) -> list[Clip]:
    """Encode clips of a split, in several sizes."""
    clips: list[Clip] = []
    for number in range(num_clips):
        scene = random_scene(first_seed(split, run_seed, number))
        width_px, height_px = SIZES[number % len(SIZES)]
        frames = draw(scene, frame_times(round(scene.duration_s * RATE)), width_px, height_px)
        clips.append(Clip(scene=scene, video=encode(frames, RATE)))
    return clips


def questions_about(clips: Sequence[Clip]) -> list[Row]:
    """Make two questions about each clip: an open one and a multiple-choice one."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for clip in clips:
        pool = questions(clip.scene)
        first, second = rng.permutation(len(pool))[:2]
        rows.append(Row(clip=clip, form="open", question=pool[first]))
        rows.append(Row(clip=clip, form="choice", question=pool[second].as_choice(rng)))
    return rows


def answers(
    checkpoint: Path, rows: Sequence[Row], num_frames: int, timestamps: Timestamps, folder: Path
) -> list[str]:
    """Return the answers of a job to all rows, "" for failed rows; Ray must be connected."""
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "number": [str(number) for number in range(len(rows))],
            "video": pa.array([row.clip.video for row in rows], pa.large_binary()),
            "prompt": [row.prompt for row in rows],
        }
    )
    pq.write_table(table, folder / "input.parquet", row_group_size=32)
    config = PipelineConfig(
        input=str(folder / "input.parquet"),
        output=str(folder / "output"),
        checkpoint=checkpoint,
        columns=InputColumns(id="number", prompt="prompt"),
        instructions=Instructions(
            frames=FrameSampling(num_frames=num_frames), timestamps=timestamps
        ),
        sampling=SamplingParams(max_tokens=_MAX_TOKENS),
        engine=_ENGINE,
        device="cpu",
        num_groups=1,
    )
    run(config, connect=nullcontext, show_progress=False)
    output: dict[str, Any] = pq.read_table(folder / "output").to_pydict()
    texts = dict(zip(output["number"], output["caption"], strict=True))
    return [texts[str(number)] or "" for number in range(len(rows))]


def judge(rows: Sequence[Row], texts: Sequence[str]) -> Accuracy:
    """Compare all answers with the truth."""
    accuracy = Accuracy()
    for row, text in zip(rows, texts, strict=True):
        if row.question is None:
            judge_caption(accuracy, caption(row.clip.scene), text)
            continue
        for kind in ("questions", row.form, f"{row.form}_{row.question.kind}"):
            accuracy.add(kind, is_right=text.strip() == row.question.answer)
    return accuracy


def evaluate(
    checkpoint: Path,
    num_clips: int,
    split: Split = "test",
    timestamps: Timestamps = "seconds",
    num_frames: Sequence[int] = NUM_FRAMES,
) -> dict[str, object]:
    """Measure everything about a checkpoint; `num_frames` must contain 1 and ASKED_FRAMES."""
    clips = make_clips(split, num_clips)
    captions = [Row(clip=clip, form="caption") for clip in clips]
    asked = questions_about(clips)
    accuracies: dict[int, Accuracy] = {}
    with tempfile.TemporaryDirectory() as folder, connect():
        for number in num_frames:
            rows = captions + asked if number == ASKED_FRAMES else captions
            texts = answers(checkpoint, rows, number, timestamps, Path(folder) / str(number))
            accuracies[number] = judge(rows, texts)
    main = accuracies[ASKED_FRAMES]
    engine_run = run_engine(checkpoint, clips[:64])
    flat = [load for layer in engine_run.loads.values() for load in layer]
    return {
        **{kind: main.fraction(kind) for kind in ("shape", "colour", "count", "motion")},
        "motion_1_frame": accuracies[1].fraction("motion"),
        "text": main.fraction("text"),
        "questions": main.fraction("questions"),
        "clips": num_clips,
        "split": split,
        "timestamps": timestamps,
        "by_kind": main.fractions(),
        **{
            f"{kind}_by_frames": {n: accuracy.fraction(kind) for n, accuracy in accuracies.items()}
            for kind in ("shape", "motion", "event", "caption")
        },
        "expert_load": engine_run.loads,
        "least_expert_load": min(flat),
        "most_expert_load": max(flat),
        "seconds_per_clip": engine_run.seconds,
    }


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """The captions, expert loads and speed of an engine in this process, on one thread."""

    captions: list[str]
    loads: dict[str, list[float]]  # of each expert by layer, as multiples of the layer's mean
    seconds: float  # of the fastest clip, decoding included


def run_engine(checkpoint: Path, clips: Sequence[Clip]) -> EngineRun:
    """Caption clips one by one, without Ray."""
    processor = Processor.from_checkpoint(checkpoint)
    engine = Engine.from_checkpoint(checkpoint, _ENGINE)
    took: list[float] = []
    captions: list[str] = []
    for number, clip in enumerate(clips):
        started_s = time.perf_counter()
        frames = clip.frames(ASKED_FRAMES)
        content = with_timestamps(list(frames.rgb), np.array(frames.timestamps_s), "seconds")
        prompt = processor.prompt([*content, VIDEO_PROMPT])
        engine.add(str(number), prompt, SamplingParams(max_tokens=_MAX_TOKENS))
        while engine.has_work:
            for _, answer in engine.step():
                if isinstance(answer, PromptError):
                    raise answer
                captions.append(answer.text)
        took.append(time.perf_counter() - started_s)
    loads = {
        f"layers.{layer}.mlp.gate": (load / load.mean()).round(3).tolist()
        for layer, load in engine.expert_load().items()
    }
    return EngineRun(captions=captions, loads=loads, seconds=round(min(took), 3))


def print_table(measured: Mapping[str, object]) -> None:
    """Print the measurements, one per line."""
    for name, value in measured.items():
        if not isinstance(value, dict):
            print(f"{name:26} {value!s:>8}")
            continue
        print(f"{name}:")
        for kind, each in value.items():
            is_load = isinstance(each, list)
            text = " ".join(f"{load:.2f}" for load in each) if is_load else f"{100 * each:6.1f} %"
            print(f"    {kind!s:22} {text}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo", help="checkpoint (default: demo)")
    parser.add_argument("--clips", type=int, default=256, help="number of clips (default: 256)")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--timestamps", choices=("none", "seconds", "mm:ss"), default="seconds")
    options = parser.parse_args(arguments)
    checkpoint = find_checkpoint(options.model)
    measured = evaluate(checkpoint, options.clips, options.split, options.timestamps)
    print_table(measured)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
