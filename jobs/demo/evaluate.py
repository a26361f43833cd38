"""Measure a demo checkpoint on clips that it has never seen.

    python -m jobs.demo.evaluate --clips 256

Scenes of the held-out split go through H.264, the decoder, the processor and the engine, as the
rows of a job do. The last line printed is one JSON object with everything that was measured.

Letters: E routed experts.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jobs.checkpoints import find_checkpoint
from jobs.demo.clips import encode
from jobs.demo.language import VIDEO_PROMPT, Question, caption, questions, read_caption
from jobs.demo.lessons import first_seed, with_timestamps
from jobs.demo.scenes import Scene, Split, draw, frame_times, random_scene
from model.engine import Engine
from model.engine_config import EngineConfig
from model.moe import Router
from model.processor import Processor
from model.prompt import Prompt, PromptError
from model.sequence import SamplingParams
from pipeline.frames import Frames
from pipeline.media import decode_media
from pipeline.sampling import FrameSampling

SIZES = ((224, 168), (168, 224), (196, 196), (252, 140))  # width and height
RATE = 10
NUM_FRAMES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A scene and its encoded video."""

    scene: Scene
    video: bytes

    def frames(self, num_frames: int) -> Frames:
        """The frames that a job would look at."""
        return decode_media(self.video, FrameSampling(num_frames=num_frames))


class Tally:
    """How many of each kind were right."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.right: Counter[str] = Counter()

    def add(self, kind: str, *, is_right: bool) -> None:
        """Count one."""
        self.asked[kind] += 1
        self.right[kind] += is_right

    def fraction(self, kind: str) -> float:
        """Right of asked; 0 if none was asked."""
        return round(self.right[kind] / max(1, self.asked[kind]), 4)

    def fractions(self) -> dict[str, float]:
        """By kind."""
        return {kind: self.fraction(kind) for kind in sorted(self.asked)}


class Answerer:
    """A processor and an engine of one checkpoint."""

    def __init__(self, checkpoint: Path, timestamps: str, dtype: str = "auto") -> None:
        self.processor = Processor.from_checkpoint(checkpoint)
        config = EngineConfig(dtype=dtype, max_model_len=1024, cache_gib=0.5)
        self.engine = Engine.from_checkpoint(checkpoint, config)
        self.timestamps = timestamps

    def prompt(self, frames: Frames, question: str) -> Prompt:
        """Frames and a question as the user's turn."""
        content = with_timestamps(list(frames.rgb), frames.timestamps_s, self.timestamps)
        return self.processor.prompt([*content, question])

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answers, in the order of the prompts."""
        params = SamplingParams(max_tokens=96)
        for number, prompt in enumerate(prompts):
            self.engine.add(str(number), prompt, params)
        texts: dict[int, str] = {}
        while self.engine.has_work:
            for name, answer in self.engine.step():
                if isinstance(answer, PromptError):
                    raise answer
                texts[int(name)] = answer.text
        return [texts[number] for number in range(len(prompts))]


class RouterLoad:
    """Counts how often each expert of an engine's model is chosen."""

    def __init__(self, model: nn.Module) -> None:
        self.counts: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if isinstance(module, Router):
                self.counts[name] = torch.zeros(module.config.n_routed_experts)
                module.register_forward_hook(self._counter(self.counts[name]))

    def _counter(self, counts: Tensor):  # noqa: ANN202
        def count(_router: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
            counts.add_(torch.bincount(output[0].flatten(), minlength=len(counts)))

        return count

    def extremes(self) -> tuple[float, float]:
        """The least and the most loaded expert of all layers, in units of its layer's mean."""
        loads = torch.stack([counts / counts.mean() for counts in self.counts.values()])
        return round(float(loads.min()), 3), round(float(loads.max()), 3)


def make_clips(split: Split, num_clips: int, run_seed: int = 1) -> list[Clip]:
    """Encoded clips of a split, of several sizes."""
    clips: list[Clip] = []
    for number in range(num_clips):
        scene = random_scene(first_seed(split, run_seed, number))
        width_px, height_px = SIZES[number % len(SIZES)]
        frames = draw(scene, frame_times(round(scene.duration_s * RATE)), width_px, height_px)
        clips.append(Clip(scene=scene, video=encode(frames, RATE)))
    return clips


def judge_caption(tally: Tally, scene: Scene, text: str) -> None:
    """Compare a caption with the truth, attribute by attribute.

    A shape is judged in its place in the order of the true caption; one that is missing is wrong.
    """
    truth, seen = read_caption(caption(scene)), read_caption(text)
    tally.add("count", is_right=len(seen.shapes) == len(truth.shapes))
    tally.add("background", is_right=seen.background == truth.background)
    tally.add("caption", is_right=text.strip() == caption(scene))
    for number, right in enumerate(truth.shapes):
        said = seen.shapes[number] if number < len(seen.shapes) else ("", "", "", "")
        for kind, one, other in zip(
            ("size", "colour", "shape", "motion"), said, right, strict=True
        ):
            tally.add(kind, is_right=one == other)
    tally.add("event" if truth.event else "no_event", is_right=seen.event == truth.event)
    tally.add("text" if truth.text else "no_text", is_right=seen.text == truth.text)


def ask_captions(answerer: Answerer, clips: Sequence[Clip], num_frames: int) -> Tally:
    """Caption all clips from `num_frames` frames each."""
    prompts = [answerer.prompt(clip.frames(num_frames), VIDEO_PROMPT) for clip in clips]
    tally = Tally()
    for clip, text in zip(clips, answerer.answers(prompts), strict=True):
        judge_caption(tally, clip.scene, text)
    return tally


def ask_questions(answerer: Answerer, clips: Sequence[Clip], num_frames: int = 8) -> Tally:
    """Two questions about each clip: an open one and one with answers to choose from."""
    rng = np.random.default_rng(0)
    asked: list[tuple[Question, str]] = []
    prompts: list[Prompt] = []
    for clip in clips:
        frames = clip.frames(num_frames)
        chosen = rng.permutation(np.array(questions(clip.scene), object))[:2]
        for number, question in enumerate(chosen):
            form = question.as_choice(rng) if number else question
            asked.append((form, "choice" if number else "open"))
            prompts.append(answerer.prompt(frames, form.text))
    tally = Tally()
    for (question, form), text in zip(asked, answerer.answers(prompts), strict=True):
        for kind in ("questions", form, f"{form}_{question.kind}"):
            tally.add(kind, is_right=text.strip() == question.answer)
    return tally


def evaluate(
    checkpoint: Path, num_clips: int, split: Split = "test", timestamps: str = "seconds"
) -> dict[str, object]:
    """Everything that is measured of a checkpoint."""
    clips = make_clips(split, num_clips)
    answerer = Answerer(checkpoint, timestamps)
    loads = RouterLoad(answerer.engine.model)
    captions = {number: ask_captions(answerer, clips, number) for number in NUM_FRAMES}
    asked = ask_questions(answerer, clips)
    main = captions[8].fractions()
    least, most = loads.extremes()
    return {
        **{kind: main.get(kind, 0.0) for kind in ("shape", "colour", "count", "motion")},
        "motion_1_frame": captions[1].fraction("motion"),
        "text": captions[8].fraction("text"),
        "questions": asked.fraction("questions"),
        "clips": num_clips,
        "split": split,
        "timestamps": timestamps,
        "captions": main,
        "motion_by_frames": {n: tally.fraction("motion") for n, tally in captions.items()},
        "questions_by_kind": asked.fractions(),
        "least_expert_load": least,
        "most_expert_load": most,
    }


def time_one_clip(checkpoint: Path) -> float:
    """Seconds from decoded frames to the caption, alone on one thread."""
    (clip,) = make_clips("validation", 1)
    answerer = Answerer(checkpoint, "seconds")
    frames = clip.frames(8)
    took: list[float] = []
    for _ in range(4):
        started_s = time.perf_counter()
        answerer.answers([answerer.prompt(frames, VIDEO_PROMPT)])
        took.append(time.perf_counter() - started_s)
    return round(min(took), 3)


def print_table(measured: Mapping[str, object]) -> None:
    """Show what was measured, one line each."""
    for name, value in measured.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for kind, fraction in value.items():
                print(f"    {kind!s:22} {100 * fraction:6.1f} %")
        elif isinstance(value, float):
            print(f"{name:26} {value:8.4f}")
        else:
            print(f"{name:26} {value!s:>8}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo", help="checkpoint directory; default: demo")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--timestamps", choices=("none", "seconds", "clock"), default="seconds")
    options = parser.parse_args(arguments)
    checkpoint = find_checkpoint(options.model)
    measured = evaluate(checkpoint, options.clips, options.split, options.timestamps)
    measured["seconds_per_clip"] = time_one_clip(checkpoint)
    print_table(measured)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
