"""`Thumbnail`: the size of a frame on the page. The decoding process loads it, so it is light."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thumbnail:
    """A `pipeline.view.Fit` by the longer side."""

    frame_px: int

    def __call__(self, width_px: int, height_px: int, num_frames: int) -> tuple[int, int]:
        """The size for a displayed size; never larger."""
        scale = min(1.0, self.frame_px / max(width_px, height_px))
        return max(1, round(width_px * scale)), max(1, round(height_px * scale))
