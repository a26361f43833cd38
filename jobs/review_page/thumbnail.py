"""`Thumbnail`: the size of a frame on the page. The decoding process loads it, so it is light."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Thumbnail:
    """A `display.Fit` by the longer side, and by the pixels that the model was given."""

    frame_px: int
    seen_px: float | None = None  # width x height of what the model saw; None: not known

    def __call__(self, width_px: int, height_px: int, num_frames: int) -> tuple[int, int]:
        """The size for a displayed size; never larger."""
        scale = min(1.0, self.frame_px / max(width_px, height_px))
        if self.seen_px is not None:
            scale = min(scale, math.sqrt(self.seen_px / (width_px * height_px)))
        return max(1, round(width_px * scale)), max(1, round(height_px * scale))
