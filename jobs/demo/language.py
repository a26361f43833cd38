"""Describe scenes: their one right caption, questions with answers, and a parser of captions.

Captions are short and regular, so that each attribute can be judged by itself:

    A small red circle moves left and a large blue square stays still on a black background.
    A green cross grows on a white background. The green cross disappears late.
    A large red circle moves up left on a grey background. The text says SUN.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SPLITS,
    WORDS,
    Difficulty,
    Scene,
    Shape,
    random_scene,
)

VIDEO_PROMPT = "Describe this video."
VIDEO_PROMPTS = (
    VIDEO_PROMPT,
    "Describe this video in detail.",
    "What happens in this video?",
    "Caption this video.",
)
IMAGE_PROMPT = "Describe this image."
NUMBERS = ("one", "two", "three")
VERBS = {
    "still": "stays still",
    "growing": "grows",
    "shrinking": "shrinks",
    **{direction: f"moves {direction}" for direction in DIRECTIONS},
}
PLACES = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)
# A question about the start or end needs a shape that keeps its place in these times, because a few
# frames show no more.
ENDS = {"start": (0.0, 0.14), "end": (0.86, 1.0)}
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question about a scene, its answer, and answers that would be wrong."""

    kind: str
    text: str
    answer: str
    wrong: tuple[str, ...]
    options: tuple[str, ...] = ()  # in the order of LETTERS, one of which is the answer

    def as_choice(self, rng: np.random.Generator, num_options: int = 4) -> "Question":
        """Return the question with up to four options, whose answer is a letter."""
        wrong = rng.permutation(list(self.wrong))[: num_options - 1]
        options = [str(option) for option in rng.permutation([self.answer, *wrong])]
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        text = "\n".join([self.text, *lines, "Answer with the letter."])
        letter = LETTERS[options.index(self.answer)]
        return Question(self.kind, text, letter, (), tuple(options))


@dataclass(frozen=True)
class ParsedCaption:
    """The content of a caption; each shape has (size, colour, shape, motion)."""

    shapes: tuple[tuple[str, str, str, str], ...]
    background: str
    event: str
    text: str


def caption(scene: Scene) -> str:
    """Return the right caption for the clip of a scene."""
    clauses = [f"{_described(shape)} {VERBS[shape.motion]}" for shape in scene.shapes]
    sentence = f"{_listed(clauses)} on a {scene.background} background."
    return " ".join([sentence, *_sentences(scene)])


def image_caption(scene: Scene) -> str:
    """Return the right caption for a single frame, which shows no motion and no event."""
    clauses = [f"a {shape.name}" for shape in scene.shapes]
    sentence = f"{_listed(clauses)} on a {scene.background} background."
    return sentence + (f" The text says {scene.text}." if scene.text else "")


def describe_in_words(scene: Scene) -> str:
    """Describe all that can be asked about the clip of a scene: the caption, then the places."""
    places = [
        f"The {shape.name} is {place.answer} at the {end}."
        for index, shape in enumerate(scene.shapes)
        for end in ENDS
        for place in _at_end(scene, index, end)
    ]
    return " ".join([caption(scene), *places])


def _listed(clauses: Sequence[str]) -> str:
    clauses = [re.sub(r"^a (?=[aeio])", "an ", part) for part in clauses]
    joined = ", ".join(clauses[:-1]) + " and " + clauses[-1] if len(clauses) > 1 else clauses[0]
    return joined[0].upper() + joined[1:]


def _described(shape: Shape) -> str:
    return f"a {shape.size} {shape.name}" if shape.size else f"a {shape.name}"


def _sentences(scene: Scene) -> list[str]:
    """Return the sentences after the first one."""
    sentences: list[str] = []
    if scene.event is not None:
        name = scene.shapes[scene.event.shape].name
        sentences.append(f"The {name} {_happening(scene)} {scene.event.when}.")
    if scene.text:
        sentences.append(f"The text says {scene.text}.")
    return sentences


def _happening(scene: Scene) -> str:
    assert scene.event is not None
    return f"{scene.event.kind} {scene.event.colour}".strip()


_SHAPE = re.compile(
    rf"(?:\b(small|large) )?\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    rf"(?: ({'|'.join(sorted(VERBS.values(), key=len, reverse=True))}))?\b"
)


def read_caption(text: str) -> ParsedCaption:
    """Parse a caption, as far as possible."""
    first, _, rest = text.partition(" background.")
    motions = {verb: motion for motion, verb in VERBS.items()}
    shapes = [
        (size or "", colour, shape, motions.get(verb, ""))
        for size, colour, shape, verb in _SHAPE.findall(first)
    ]
    background = re.search(r"on a (\w+)$", first)
    event = re.search(r"The ([^.]* (?:early|late))\.", rest)
    written = re.search(r"The text says (\w+)\.", rest)
    return ParsedCaption(
        shapes=tuple(shapes),
        background=background[1] if background else "",
        event=event[1] if event else "",
        text=written[1] if written else "",
    )


def questions(scene: Scene) -> list[Question]:
    """Return every question that can be asked about the clip of a scene."""
    asked = [_background(scene), _count(scene)]
    for index, shape in enumerate(scene.shapes):
        asked.append(_motion(shape))
        asked += [question for end in ENDS for question in _at_end(scene, index, end)]
        changes_colour = scene.event is not None and scene.event.kind == "turns"
        if not changes_colour:
            asked += _colour_and_shape(scene, shape)
    if len(scene.shapes) == 1:
        asked.append(_text(scene))
    if scene.event is not None:
        asked += _about_event(scene)
    return asked


def image_questions(scene: Scene, u: float) -> list[Question]:
    """Return every question about the frame of an eventless scene at time `u`."""
    asked = [_background(scene), _count(scene)]
    for shape in scene.shapes:
        asked += [*_where(shape, np.array([u]), ""), *_colour_and_shape(scene, shape)]
    return [*asked, _text(scene)] if len(scene.shapes) == 1 else asked


def _background(scene: Scene) -> Question:
    wrong = _others(BACKGROUNDS, scene.background)
    return Question("background", "What colour is the background?", scene.background, wrong)


def _count(scene: Scene) -> Question:
    answer = NUMBERS[len(scene.shapes) - 1]
    return Question("count", "How many shapes are there?", answer, _others(NUMBERS, answer))


def _motion(shape: Shape) -> Question:
    if shape.motion in DIRECTIONS:
        text = f"Which way does the {shape.name} move?"
        return Question("motion", text, shape.motion, _others(DIRECTIONS, shape.motion))
    text = f"What does the {shape.name} do?"
    wrong = _others(VERBS.values(), VERBS[shape.motion])
    return Question("motion", text, VERBS[shape.motion], wrong)


def _at_end(scene: Scene, index: int, end: str) -> list[Question]:
    """Ask where a shape is at one end of the clip; return nothing if it is not visible there."""
    times = np.array(ENDS[end])
    if not scene.visible(index, times).all():
        return []
    return _where(scene.shapes[index], times, f" at the {end}")


def _where(shape: Shape, u: NDArray[np.float64], when: str) -> list[Question]:
    """Ask where a shape is at times `u`; return nothing if it is near or crosses a border."""
    xy = shape.xy(u)
    thirds = (xy * 3).astype(int)
    border = np.abs(xy[:, None] - np.array([[1 / 3], [2 / 3]])).min()
    if border < 0.04 or (thirds != thirds[0]).any():
        return []
    place = PLACES[thirds[0, 1] * 3 + thirds[0, 0]]
    return [Question("place", f"Where is the {shape.name}{when}?", place, _others(PLACES, place))]


def _colour_and_shape(scene: Scene, shape: Shape) -> list[Question]:
    asked = [
        Question(
            "shape",
            f"Which shape is {shape.colour}?",
            shape.shape,
            _others(SHAPES, shape.shape),
        )
    ]
    if [other.shape for other in scene.shapes].count(shape.shape) == 1:
        text = f"What colour is the {shape.shape}?"
        asked.append(Question("colour", text, shape.colour, _others(COLOURS, shape.colour)))
    return asked


def _text(scene: Scene) -> Question:
    answer = scene.text or "nothing"
    pool = [str(number) for number in range(10, 100, 7)] if answer.isdigit() else WORDS
    return Question("text", "What does the text say?", answer, _others(pool, answer))


def _about_event(scene: Scene) -> list[Question]:
    event = scene.event
    assert event is not None
    name = scene.shapes[event.shape].name
    happenings = {"appears", "disappears", "turns"} - {event.kind}
    wrong = tuple(
        sorted(kind if kind != "turns" else f"turns {name.split()[0]}" for kind in happenings)
    )
    what = Question("event", f"What happens to the {name}?", _happening(scene), wrong)
    when = f"When does that happen to the {name}?"
    late = "late" if event.when == "early" else "early"
    return [what, Question("event", when, event.when, (late,))]


def _others(pool: Iterable[str], answer: str) -> tuple[str, ...]:
    return tuple(option for option in pool if option != answer)


def vocabulary_lines() -> list[str]:
    """Return text that contains every word of prompts, captions, questions and answers."""
    lines: list[str] = []
    rng = np.random.default_rng(0)
    for seed in SPLITS["train"][:1500]:
        scene = random_scene(seed, Difficulty())
        lines += [describe_in_words(scene), image_caption(scene)]
        for question in [*questions(scene), *image_questions(scene, 0.5)]:
            lines += [question.text, question.answer, question.as_choice(rng).text]
    times = [f"{tenth / 10:.1f}s [00:0{tenth % 10}] " for tenth in range(50)] * 20
    template = ["system", "user", "assistant", "image", "You are a helpful assistant"]
    return [*lines, *times, *[*VIDEO_PROMPTS, IMAGE_PROMPT, *template] * 200]
