"""Compute the size of a frame on the page. The decoding process imports this, so it is light."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class DisplaySize:
    """A `display.Fit` that limits the longer side, and the pixels to those that the model got."""

    frame_px: int
    seen_px: float | None = None  # width x height as the model saw it; None if unknown

    def __call__(self, width_px: int, height_px: int, num_frames: int) -> tuple[int, int]:
        """Return the size for a displayed size; it is never larger."""
        scale = min(1.0, self.frame_px / max(width_px, height_px))
        if self.seen_px is not None:
            scale = min(scale, math.sqrt(self.seen_px / (width_px * height_px)))
        return max(1, round(width_px * scale)), max(1, round(height_px * scale))
