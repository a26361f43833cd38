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

# One shape in four tiny frames, and where it is: motion comes out of places.
_FIRST = Stage(
    steps=380,
    clips=64,
    sizes=((56, 56),),
    num_frames=(4,),
    difficulty=Difficulty(num_shapes=(1.0, 0.0, 0.0), small=0.5, event=0.0, text=0.0),
    rate=4.0,
    question_first=0.3,
    timestamps=0.0,
    choices=0.05,
    places=1.0,
)
_SLOWER = replace(_FIRST, steps=230, rate=1.3)
_ENDS = replace(_SLOWER, steps=175, num_frames=(2,))
# 84 pixels have three visual tokens across, as there are three places across.
_LARGER = replace(_ENDS, steps=695, rate=1.0, sizes=((84, 84),))
# Two shapes, events, words, times.
_MORE = replace(
    _LARGER,
    steps=720,
    clips=48,
    sizes=((84, 84), (112, 84), (84, 112)),
    num_frames=(2, 4),
    difficulty=Difficulty(num_shapes=(0.6, 0.4, 0.0), event=0.1, text=0.1),
    rate=0.7,
    timestamps=0.4,
    still_image=0.05,
    choices=0.1,
    places=1.0,
)
# Motion again, now in several formats.
_AGAIN = replace(
    _MORE,
    steps=600,
    clips=64,
    sizes=((84, 84), (84, 84), (112, 84), (84, 112)),
    num_frames=(2, 2, 4),
    difficulty=Difficulty(num_shapes=(0.75, 0.25, 0.0), event=0.05, text=0.05),
)
# As at inference.
_LAST = Stage(
    steps=720,
    clips=32,
    sizes=((224, 168), (168, 224), (196, 196), (252, 140)),
    num_frames=(8,),
    difficulty=Difficulty(event=0.15),
    rate=1.0,
    timestamps=0.75,
    still_image=0.05,
    places=0.8,
)
STAGES = (_FIRST, _SLOWER, _ENDS, _LARGER, _MORE, _AGAIN, _LAST)
