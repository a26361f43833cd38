"""Make lessons: batches of conversations about generated clips, as token ids with targets.

The first turn of a conversation is exactly the prompt that `Processor` makes at inference. Further
turns ask more about the same clip, because a clip costs more than a question.

Letters: T tokens, P patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.demo.clips import with_timestamps
from jobs.demo.language import describe_in_words, questions
from jobs.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Scene,
    draw,
    frame_times,
    random_scene,
)
from jobs.training.answer_hints import (
    ANSWERS,
    NOT_AN_OPTION,
    NOT_GIVEN,
    AnswerHints,
    asked_about,
)
from jobs.training.curriculum import Stage
from jobs.training.hints import Hints, hints_of, no_hints
from jobs.training.turns import Turn, asked_attributes, question_turn, turns_about
from model.inputs.images import image_size
from model.inputs.processor import Processor
from model.inputs.prompt import Prompt

MOTION_WORDS = ("moves", "stays", "still", "grows", "shrinks", "left", "right", "up", "down")
EVENT_WORDS = ("appears", "disappears", "turns", "early", "late")
# Kinds of target tokens by content; 0 is any other.
KINDS = (
    *("other", "shape", "colour", "motion", "size", "background", "event", "text"),
    *("q_background", "q_count", "q_motion", "q_place", "q_colour", "q_shape", "q_text"),
    *("q_event", "q_letter"),
)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One batch; it consists of arrays, so it is cheap to send to another process."""

    token_ids: list[NDArray[np.int32]]  # of each conversation
    targets: list[NDArray[np.int32]]  # positions in each conversation to predict
    kinds: list[NDArray[np.int32]]  # of each target: index into KINDS
    patches: NDArray[np.uint8]  # [P, 3, 14, 14], clip after clip
    grid_hw: NDArray[np.int32]
    hints: Hints  # of the vision tokens, in the order of the patches
    answer_hints: AnswerHints
    num_clips: int  # conversations with frames


@dataclass(frozen=True, kw_only=True)
class _Conversation:
    """The part of a `Lesson` that belongs to one conversation."""

    token_ids: list[int]
    targets: list[int]
    kinds: list[int]
    prompt: Prompt
    hints: Hints
    answer_hints: AnswerHints


class Teacher:
    """Makes lessons with the tokenizer, template and image processor of one checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.processor = Processor.from_checkpoint(checkpoint)
        encode = self.processor.tokenizer.encode_template
        self._next_turn = encode("<|im_user|>user<|im_middle|>")
        self._answer = encode("<|im_end|><|im_assistant|>assistant<|im_middle|>")
        self._end = encode("<|im_end|>")
        (self._line_end,) = self.processor.tokenizer.encode("\n")

    def lesson(self, stage: Stage, num_conversations: int, first_seed: int) -> Lesson:
        """Make the batch whose scenes have the seeds from `first_seed` on."""
        made = [
            # Spread evenly, so that every share of a batch costs the same.
            self._about_words(stage, first_seed + index)
            if int((index + 1) * stage.in_words) > int(index * stage.in_words)
            else self._about_clip(stage, first_seed + index)
            for index in range(num_conversations)
        ]
        made.sort(key=lambda one: one.prompt.grid_hw.tolist())  # equal grids together
        starts = np.cumsum([0, *[len(one.token_ids) for one in made[:-1]]]).tolist()
        return Lesson(
            token_ids=[np.array(one.token_ids, np.int32) for one in made],
            targets=[np.array(one.targets, np.int32) for one in made],
            kinds=[np.array(one.kinds, np.int32) for one in made],
            patches=np.concatenate([one.prompt.patches for one in made]),
            grid_hw=np.concatenate([one.prompt.grid_hw for one in made]),
            hints=Hints.joined([one.hints for one in made]),
            answer_hints=AnswerHints.joined([one.answer_hints for one in made], starts),
            num_clips=sum(len(one.prompt.grid_hw) > 0 for one in made),
        )

    def _about_words(self, stage: Stage, seed: int) -> _Conversation:
        """Make questions about a scene whose description replaces the clip."""
        rng = np.random.default_rng((seed, 1))
        scene = random_scene(seed, stage.difficulty)
        pool = questions(scene)
        attributes = asked_attributes(pool, scene)
        if stage.attributes and attributes and rng.random() < stage.attributes:
            pool = attributes
        chosen = rng.permutation(len(pool))[: stage.questions_in_words]
        turns = [question_turn(pool[index], stage, rng) for index in chosen]
        prompt = self.processor.prompt([f"{describe_in_words(scene)}\n{turns[0].question}"])
        return self._joined(prompt, turns, no_hints(), stage)

    def _about_clip(self, stage: Stage, seed: int) -> _Conversation:
        rng = np.random.default_rng((seed, 1))
        is_image = rng.random() < stage.still_image
        if is_image:
            scene = random_scene(seed, replace(stage.difficulty, event=0.0))
            u = rng.uniform(0, 1, 1)
        else:
            scene = random_scene(seed, stage.difficulty)
            u = stage_times(int(rng.choice(stage.num_frames)), rng)
        turns = turns_about(scene, float(u[0]) if is_image else None, stage, rng)
        width_px, height_px = stage.sizes[rng.integers(len(stage.sizes))]
        size = image_size(width_px, height_px, self.processor.config.image)
        frames = _frames(scene, u, size.width_px, size.height_px, rng)
        style = "none" if is_image else timestamp_style(rng, stage.timestamps)
        content = with_timestamps(frames, u * scene.duration_s, style)
        prompt = self.processor.prompt([*content, turns[0].question])
        hints = hints_of(scene, u, size.width_px, size.height_px)
        return self._joined(prompt, turns, hints, stage)

    def _joined(
        self, prompt: Prompt, turns: Sequence[Turn], hints: Hints, stage: Stage
    ) -> _Conversation:
        """Return the whole conversation, with the positions and kinds of its targets."""
        encode = self.processor.tokenizer.encode
        token_ids: list[int] = prompt.token_ids.tolist()
        targets: list[int] = []
        kinds: list[int] = []
        answer_hints: list[tuple[int, int, int, int, int]] = []
        for number, turn in enumerate(turns):
            start = len(token_ids) if number else 0
            if number:
                token_ids += [*self._next_turn, *encode(turn.question), *self._answer]
            answer_hints += self._answer_hints(
                token_ids, start, turn, gives_asked=stage.gives_asked
            )
            answer = encode(turn.answer)
            targets += range(len(token_ids), len(token_ids) + len(answer) + 1)
            kinds += [*self._kinds(turn, answer), 0]
            token_ids += [*answer, *self._end]
        return _Conversation(
            token_ids=token_ids,
            targets=targets,
            kinds=kinds,
            prompt=prompt,
            hints=hints,
            answer_hints=AnswerHints.of_places(answer_hints),
        )

    def _answer_hints(
        self, token_ids: Sequence[int], start: int, turn: Turn, *, gives_asked: bool
    ) -> list[tuple[int, int, int, int, int]]:
        """Make hints at the position of an answer, and at the line ends of its options."""
        if not turn.meant:
            return []
        places = range(start, len(token_ids))
        ends = [place for place in places if token_ids[place] == self._line_end]
        ends = ends[len(ends) - len(turn.options) :]  # earlier lines may describe the scene
        options = [
            (place, ANSWERS.index(option), letter, NOT_GIVEN, NOT_GIVEN)
            for letter, (place, option) in enumerate(zip(ends, turn.options, strict=True))
        ]
        colour, shape = asked_about(turn.question) if gives_asked else (NOT_GIVEN, NOT_GIVEN)
        answer = (len(token_ids) - 1, ANSWERS.index(turn.meant), NOT_AN_OPTION, colour, shape)
        return [*options, answer]

    def _kinds(self, turn: Turn, answer: Sequence[int]) -> list[int]:
        if turn.kind != "caption":
            return [KINDS.index(turn.kind)] * len(answer)
        return [self._word_kind(token_id) for token_id in answer]

    @cache  # noqa: B019
    def _word_kind(self, token_id: int) -> int:
        word = self.processor.tokenizer.decode([token_id]).strip()
        for kind, words in (
            ("shape", SHAPES),
            ("colour", COLOURS),
            ("motion", MOTION_WORDS),
            ("size", ("small", "large")),
            ("background", BACKGROUNDS),
            ("event", EVENT_WORDS),
        ):
            if word in words:
                return KINDS.index(kind)
        return KINDS.index("text") if word.isdigit() or (word.isupper() and len(word) > 1) else 0


def _frames(
    scene: Scene,
    u: NDArray[np.float64],
    width_px: int,
    height_px: int,
    rng: np.random.Generator,
) -> list[NDArray[np.uint8]]:
    """Draw frames as they come out of resizing, with a little noise as of a codec."""
    frames = draw(scene, u, width_px, height_px)
    noise = _noise(frames[0].size)
    start = rng.integers(len(noise) - frames[0].size)
    wave = noise[start : start + frames[0].size].reshape(frames[0].shape)
    return list(np.clip(frames.astype(np.int16) + wave, 0, 255).astype(np.uint8))


@cache
def _noise(size: int) -> NDArray[np.int16]:
    rng = np.random.default_rng(0)
    return np.round(rng.normal(0, 2.5, 4 * size)).astype(np.int16)


def stage_times(num_frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the times of the frames of a clip: as at inference, but two frames show its ends."""
    if num_frames == 2:
        return np.array([rng.uniform(0, 0.15), rng.uniform(0.85, 1)])
    return frame_times(num_frames)


def timestamp_style(rng: np.random.Generator, probability: float) -> str:
    """Choose how frames are labelled: not at all, or in one of two ways."""
    if rng.random() >= probability:
        return "none"
    return "seconds" if rng.random() < 0.5 else "clock"
