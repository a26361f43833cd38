"""The log of a training run: JSON lines, a progress line, and a picture of the curves."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jobs.demo.lessons import KINDS

_WIDTH, _HEIGHT, _MARGIN = 900, 560, 60  # of the picture, in pixels
_CURVES = {
    "shape": (31, 119, 180),
    "colour": (214, 39, 40),
    "motion": (44, 160, 44),
    "event": (148, 103, 189),
    "text": (140, 86, 75),
    "q_place": (227, 119, 194),
    "q_letter": (188, 150, 34),
    "hint_motion": (23, 160, 175),
}


class LogBook:
    """Means over `log_steps` steps, appended to a JSON-lines file and shown as a progress line.

    Lines about steps behind `last_step`, where a run goes on, are dropped: it learns them again.
    """

    def __init__(self, path: Path, log_steps: int, last_step: int = 0) -> None:
        self.path = path
        self.log_steps = log_steps
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= last_step]
            path.write_text("".join(kept))
        self._clear()

    def _clear(self) -> None:
        self._numbers: list[Mapping[str, Any]] = []
        self._started_s = time.monotonic()

    def add(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Take the numbers of one step: `clips`, `asked` and `right` by kind, and scalars."""
        self._numbers.append(numbers)
        if step % self.log_steps == 0:
            self._write(step)
            self._clear()

    def _write(self, step: int) -> None:
        accuracy = self._accuracy()
        seconds = time.monotonic() - self._started_s
        line = {
            "step": step,
            "time": time.strftime("%H:%M:%S", time.gmtime()),
            "stage": self._numbers[-1]["stage"],
            "clips_per_s": round(self._sum("clips") / seconds, 1),
            **{
                name: round(self._sum(name) / len(self._numbers), 4)
                for name in ("loss", "hint_loss", "hint_motion", "norm", "worst_load")
            },
            "accuracy": accuracy,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = " ".join(f"{kind}={value:.2f}" for kind, value in accuracy.items())
        print(
            f"{line['time']} {step:6d} stage {line['stage']} "
            f"{line['clips_per_s']:3.0f} clips/s loss {line['loss']:.3f} "
            f"hints {line['hint_loss']:.3f} {line['hint_motion']:.2f} "
            f"load {line['worst_load']:.1f} {shown}",
            flush=True,
        )

    def _sum(self, name: str) -> float:
        return float(sum(numbers[name] for numbers in self._numbers))

    def _accuracy(self) -> dict[str, float]:
        """Fraction of the target tokens that were predicted right, by kind."""
        asked = np.sum([numbers["asked"] for numbers in self._numbers], axis=0)
        right = np.sum([numbers["right"] for numbers in self._numbers], axis=0)
        return {
            kind: round(float(right[index] / asked[index]), 4)
            for index, kind in enumerate(KINDS)
            if asked[index]
        }


def draw_curves(log: Path, picture: Path) -> None:
    """Draw the loss (black, from 0 to its start) and the accuracies (0 to 1) over the steps."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    last_step = lines[-1]["step"]
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        canvas.line((_MARGIN, y, _WIDTH - _MARGIN, y), fill=(225, 225, 225))
        canvas.text((_MARGIN - 8, y), f"{tenth / 10:.1f}", fill="black", font=font, anchor="rm")
        step, x = last_step * tenth // 10, _x(tenth / 10)
        canvas.text((x, _HEIGHT - 40), f"{step}", fill="black", font=font, anchor="mm")
    curves = {"loss": (0, 0, 0), **_CURVES}
    for place, (name, colour) in enumerate(curves.items()):
        points = [
            (_x(line["step"] / last_step), _y(value))
            for line in lines
            if (value := line["accuracy"].get(name, line.get(name))) is not None
        ]
        _curve(canvas, points, colour)
        x = _MARGIN + place * (_WIDTH - 2 * _MARGIN) // len(curves)
        canvas.text((x, 18), name, fill=colour, font=font)
    canvas.text((_WIDTH / 2, _HEIGHT - 16), "step", fill="black", font=font, anchor="mm")
    image.save(picture, optimize=True)


def _x(part: float) -> float:
    return _MARGIN + part * (_WIDTH - 2 * _MARGIN)


def _y(value: float) -> float:
    return _HEIGHT - _MARGIN - min(value, 1.0) * (_HEIGHT - 2 * _MARGIN)


def _curve(
    canvas: ImageDraw.ImageDraw,
    points: Sequence[tuple[float, float]],
    colour: tuple[int, int, int],
) -> None:
    if len(points) > 1:
        canvas.line(points, fill=colour, width=2)
