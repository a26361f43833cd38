"""Make the turns of a conversation: the caption, and questions answered in words or by letters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.demo.language import (
    IMAGE_PROMPT,
    VIDEO_PROMPT,
    VIDEO_PROMPTS,
    Question,
    caption,
    image_caption,
    image_questions,
    questions,
)
from jobs.demo.scenes import Scene
from jobs.training.curriculum import Stage


@dataclass(frozen=True)
class Turn:
    """One prompt and its right answer."""

    question: str
    answer: str
    kind: str  # "caption" or the kind of the question
    meant: str = ""  # the answer in words
    options: tuple[str, ...] = ()


def turns_about(
    scene: Scene, u: float | None, stage: Stage, rng: np.random.Generator
) -> list[Turn]:
    """Make the caption and some questions about a clip, or about its frame at time `u` alone."""
    if u is None:
        prompt = VIDEO_PROMPT if rng.random() < 0.7 else str(rng.choice(VIDEO_PROMPTS))
        turns = [Turn(prompt, caption(scene), "caption")]
        pool = questions(scene)
    else:
        turns = [Turn(IMAGE_PROMPT, image_caption(scene), "caption")]
        pool = image_questions(scene, u)
    # A question for what the caption says teaches little; captions do not contain places.
    prefers_places = rng.random() < stage.caption
    asked = stage.num_questions
    if not prefers_places:
        turns, asked = [], asked + 2
    for _ in range(min(asked, len(pool))):
        question = _choose(pool, scene, stage, rng, prefers_places=prefers_places)
        pool.remove(question)
        turns.append(question_turn(question, stage, rng))
    return turns


def _choose(
    pool: Sequence[Question],
    scene: Scene,
    stage: Stage,
    rng: np.random.Generator,
    *,
    prefers_places: bool,
) -> Question:
    """Choose one of the remaining questions, by the kinds that the stage prefers."""
    attributes = asked_attributes(pool, scene)
    places = [question for question in pool if prefers_places and question.kind == "place"]
    chosen = pool
    if stage.attributes and attributes and rng.random() < stage.attributes:
        chosen = attributes
    elif places and rng.random() < stage.places:
        chosen = places
    return chosen[int(rng.integers(len(chosen)))]


def asked_attributes(pool: Sequence[Question], scene: Scene) -> list[Question]:
    """Return the questions for colour or shape whose answer depends on the shape they name."""
    if len(scene.shapes) == 1:
        return []
    return [question for question in pool if question.kind in ("shape", "colour")]


def question_turn(question: Question, stage: Stage, rng: np.random.Generator) -> Turn:
    """Make a turn whose answer is in words, or one of the letters that the stage offers."""
    if rng.random() < stage.choices:
        choice = question.as_choice(rng, int(rng.choice(stage.options)))
        return Turn(choice.text, choice.answer, "q_letter", question.answer, choice.options)
    return Turn(question.text, question.answer, f"q_{question.kind}", question.answer)
