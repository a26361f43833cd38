"""Media that show a number in their pixels, and an engine without a model that reads it back."""

import io
import os
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image

from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt, PromptError
from parallel.experts.load import ExpertLoad

_BITS = 16  # as 4 x 4 squares, each of which is a patch of the vision tower
_SIDE = 4
_PATCH_PX = 14


def numbered_rgb(number: int) -> np.ndarray:
    """A picture [56, 56, 3] of black and white squares, the bits of a number."""
    bits = [255 * (number >> bit & 1) for bit in range(_BITS)]
    squares = np.array(bits, np.uint8).reshape(_SIDE, _SIDE, 1)
    return np.kron(squares, np.ones((_PATCH_PX, _PATCH_PX, 3), np.uint8))


def numbered_media(number: int) -> bytes:
    """A still picture, or for odd numbers a video, all of whose frames show the number."""
    file = io.BytesIO()
    if number % 2 == 0:
        Image.fromarray(numbered_rgb(number)).save(file, "PNG")
        return file.getvalue()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=10)
        assert isinstance(stream, VideoStream)
        stream.width = stream.height = _SIDE * _PATCH_PX
        stream.pix_fmt = "yuv420p"
        for position in range(4):
            frame = av.VideoFrame.from_ndarray(numbered_rgb(number), format="rgb24")
            frame.pts, frame.time_base = position, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def number_in(prompt: Prompt) -> int | None:
    """The number that all images of a prompt show; None for a prompt of text alone."""
    size = _SIDE * _SIDE
    images = prompt.patches.reshape(-1, size, 3 * _PATCH_PX**2).mean(axis=2) > 127
    numbers = {int(sum(1 << bit for bit in np.flatnonzero(image))) for image in images}
    assert len(numbers) <= 1, f"the images of a row show {numbers}"
    return next(iter(numbers), None)


class NumberEngine:
    """Answers with the number that a prompt shows and its `max_tokens`, in any order.

    It fails requests alone with the probability `failing`, and dies with `dying` in each step, at
    most once for each name that it can still take away from the folder `deaths`.
    """

    def __init__(
        self, seed: int, *, failing: float = 0.0, dying: float = 0.0, deaths: Path | None = None
    ) -> None:
        self._rng = random.Random(seed)
        self._failing, self._dying, self._deaths = failing, dying, deaths
        self._waiting: dict[str, tuple[int | None, int]] = {}
        self._num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def add(
        self, request_id: str, prompt: Prompt, params: SamplingParams, *, own_step: bool = False
    ) -> None:
        self._waiting[request_id] = (number_in(prompt), params.max_tokens)

    def step(self) -> Sequence[tuple[str, Completion | PromptError]]:
        self._num_steps += 1
        # A run whose engines die at a golden prompt, before any row, is not continued by itself.
        has_rows = any(number is not None for number, _ in self._waiting.values())
        if has_rows and self._rng.random() < self._dying and self._may_die():
            raise OSError("the device fell off the bus")
        chosen = self._rng.sample(list(self._waiting), self._rng.randint(1, len(self._waiting)))
        return [(request_id, self._answer(*self._waiting.pop(request_id))) for request_id in chosen]

    def _may_die(self) -> bool:
        for token in self._deaths.iterdir() if self._deaths else ():
            token.unlink(missing_ok=True)
            return True
        return False

    def _answer(self, number: int | None, max_tokens: int) -> Completion | PromptError:
        if number is not None and self._rng.random() < self._failing:
            return PromptError("out_of_memory", "of bad luck")
        return Completion(
            text=f"{number}/{max_tokens}",
            token_ids=(1,),
            finish_reason="stop",
            num_prompt_tokens=1,
            num_generated_tokens=1,
            mean_logprob=0.0,
            min_logprob=0.0,
        )

    def cancel(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    def stats(self) -> Mapping[str, float]:
        return {"steps": self._num_steps}

    def expert_load(self) -> ExpertLoad:
        return {}

    def close(self) -> None:
        pass


def unlucky_engine(deaths: Path, *_: object) -> NumberEngine:
    """An engine in any process, which fails and dies at times."""
    return NumberEngine(os.getpid(), failing=0.15, dying=0.5, deaths=deaths)


def lucky_engine(*_: object) -> NumberEngine:
    """An engine that answers everything, in any order."""
    return NumberEngine(os.getpid())
