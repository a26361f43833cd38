"""Write the log of a training run: JSON lines, a progress line, and a chart of the curves."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jobs.training.lessons import KINDS

_CURVES = ("shape", "colour", "motion", "event", "text", "q_place", "q_letter", "hint_motion")


class LogBook:
    """Appends means over `log_steps` steps to a JSON-lines file, and prints a progress line.

    Lines about steps after `last_step`, from which a run resumes, are dropped: they are repeated.
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
        """Add the numbers of one step: `clips`, `asked` and `right` by kind, and scalars."""
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
        """Return the fraction of the target tokens that were predicted right, by kind."""
        asked = np.sum([numbers["asked"] for numbers in self._numbers], axis=0)
        right = np.sum([numbers["right"] for numbers in self._numbers], axis=0)
        return {
            kind: round(float(right[index] / asked[index]), 4)
            for index, kind in enumerate(KINDS)
            if asked[index]
        }


def draw_curves(log: Path, picture: Path) -> None:
    """Draw the loss (black) and the accuracies over the steps; values above 1 are cut off."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots()
    for name in ("loss", *_CURVES):
        points_of_all = [
            (line["step"], line["accuracy"].get(name, line.get(name))) for line in lines
        ]
        points = [(step, value) for step, value in points_of_all if value is not None]
        colour = "black" if name == "loss" else None
        axes.plot(*zip(*points, strict=True) if points else ([], []), color=colour, label=name)
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    axes.grid(color="0.9")
    figure.legend(loc="outside upper center", ncols=len(_CURVES) + 1, fontsize=8)
    figure.savefig(picture, format="png")
