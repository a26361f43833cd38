"""The demo model's sizes, and what it is taught in which order."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jobs.demo import random_checkpoint
from jobs.demo.lessons import Stage
from jobs.demo.scenes import Difficulty

TEXT: Mapping[str, Any] = {**random_checkpoint.TEXT, "num_hidden_layers": 4, "rope_theta": 2000.0}
VISION: Mapping[str, Any] = random_checkpoint.VISION
# Any video is seen at about 112 x 84 pixels.
IMAGE: Mapping[str, Any] = {**random_checkpoint.IMAGE, "in_token_limit": 48}

# One shape, or two, in a few frames: colours, shapes, places, and motion out of places.
_FIRST = Stage(
    goals={"motion": 0.95, "shape": 0.9},
    until=0.45,
    clips=24,
    sizes=((84, 84), (112, 84)),
    num_frames=(2, 4),
    difficulty=Difficulty(num_shapes=(0.7, 0.3, 0.0), small=0.4, event=0.05, text=0.2),
    rate=1.6,
    num_questions=1,
    choices=0.5,
    options=(2, 3),
)
# Every format, more shapes, words, events, answers to choose from.
_MORE = replace(
    _FIRST,
    goals={"motion": 0.96, "shape": 0.95, "q_letter": 0.9},
    until=0.65,
    rate=1.0,
    num_questions=2,
    sizes=((224, 168), (168, 224), (196, 196), (252, 140)),
    num_frames=(2, 4, 8),
    difficulty=Difficulty(num_shapes=(0.55, 0.45, 0.0), event=0.15, text=0.2),
    timestamps=0.5,
    still_image=0.05,
    options=(2, 3, 4),
    choices=0.5,
)
# As at inference.
_LAST = replace(
    _MORE,
    goals={},
    until=1.0,
    num_frames=(4, 8, 8, 8),
    difficulty=Difficulty(),
    timestamps=0.75,
    options=(2, 3, 4, 4, 4),
)
STAGES = (_FIRST, _MORE, _LAST)
