"""The demo model's sizes, and what it is taught in which order."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.demo.scenes import Difficulty
from jobs.training import random_checkpoint

TEXT: Mapping[str, Any] = {**random_checkpoint.TEXT, "num_hidden_layers": 4, "rope_theta": 2000.0}
VISION: Mapping[str, Any] = random_checkpoint.VISION
# Any video is seen at about 112 x 84 pixels.
IMAGE: Mapping[str, Any] = {**random_checkpoint.IMAGE, "in_token_limit": 48}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the curriculum."""

    goals: Mapping[str, float]  # accuracy by kind of target with which it ends
    until: int  # steps of the run with which it ends at the latest
    conversations: int  # of one batch
    sizes: tuple[tuple[int, int], ...]  # width and height of the clips, chosen evenly
    num_frames: tuple[int, ...]
    difficulty: Difficulty
    rate: float = 1.0  # factor on the learning rates
    num_questions: int = 2  # turns beside the caption
    caption: float = 0.6  # probability that a caption comes first; else there are only questions
    still_image: float = 0.0  # probability of a single image instead of a clip
    timestamps: float = 0.3  # probability that frames bring their times
    choices: float = 0.3  # of the questions, how many offer answers to choose from
    options: tuple[int, ...] = (4,)  # how many answers these offer
    places: float = 0.5  # of the questions after a caption, how many ask for a place
    attributes: float = 0.0  # of those about several shapes, how many ask which one has what
    tells_asked: bool = False  # whether hints tell of which colour or shape a question asks
    told: float = 0.0  # of the conversations, how many are about a scene told in words
    told_questions: int = 4  # turns of these


# No clips: scenes told in words, to learn to find an answer, its option and its letter.
_WORDS = Stage(
    goals={"q_letter": 0.95, "q_motion": 0.95, "q_place": 0.9},
    until=700,
    conversations=24,
    sizes=(),
    num_frames=(),
    difficulty=Difficulty(event=0.3, text=0.2),
    told=1.0,
    told_questions=3,
    choices=0.6,
    options=(2, 3, 4),
)
# One shape, or two, in a few frames: colours, shapes, places, and motion out of places.
_FIRST = replace(
    _WORDS,
    goals={"motion": 0.92, "shape": 0.93, "q_letter": 0.85},
    until=2000,
    sizes=((84, 84), (112, 84)),
    num_frames=(2, 4),
    difficulty=Difficulty(num_shapes=(0.7, 0.3, 0.0), small=0.4, event=0.0, text=0.25),
    rate=1.6,
    told=0.25,
)
# Every format, and events: six frames show whether they come early or late.
_MORE = replace(
    _FIRST,
    goals={"motion": 0.95, "shape": 0.97, "q_letter": 0.93, "event": 0.93, "text": 0.93},
    until=2800,
    rate=1.0,
    sizes=((224, 168), (168, 224), (196, 196), (252, 140)),
    num_frames=(6,),
    difficulty=Difficulty(event=0.45, text=0.35),
    timestamps=0.5,
    still_image=0.05,
)
# As at inference.
_LAST = replace(
    _MORE,
    goals={},
    until=5000,
    num_frames=(4, 8, 8, 8, 8, 8, 8, 16),
    timestamps=0.75,
    num_questions=3,
    options=(2, 3, 4, 4, 4),
)
# Colour and shape of one among several, which a share of all questions was too few for.
_WHICH = replace(
    _LAST,
    until=5900,
    difficulty=Difficulty(num_shapes=(0.3, 0.45, 0.25), event=0.4, text=0.6),
    caption=0.45,
    places=0.4,
    attributes=0.4,
)
# And that they were too few was not all.
_ASKED = replace(_WHICH, until=10**9, rate=1.8, tells_asked=True)
STAGES = (_WORDS, _FIRST, _MORE, _LAST, _WHICH, _ASKED)
