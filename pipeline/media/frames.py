"""`Frames`, the result of decoding, and `MediaFacts`, what is true of the media it came from.

Letters: I frames, H and W rows and columns of pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class MediaFacts:
    """What is true of a video or picture as a whole."""

    duration_s: float = 0.0  # from the first frame to the end of the last
    fps: float = 0.0  # the mean rate; 0 if the duration is 0
    width_px: int  # as displayed: upright, with square pixels
    height_px: int
    codec: str
    stream: int | None = None  # the number of the video's stream in its container; from 0 on
    rotation: int = 0  # degrees by which players turn the stored picture, clockwise
    is_vfr: bool = False
    is_interlaced: bool = False
    num_decode_errors: int = 0  # damaged packets and frames, of those that were read or decoded


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Decoded frames of one video or picture, upright and with square pixels.

    Raises:
        ValueError: the arrays do not fit each other, or the times do not rise.
    """

    rgb: NDArray[np.uint8]  # [I, H, W, 3]
    timestamps_s: NDArray[np.float64]  # [I] rising; 0 is the start of the container
    facts: MediaFacts

    def __post_init__(self) -> None:
        if self.rgb.ndim != 4 or self.rgb.shape[3] != 3 or self.rgb.dtype != np.uint8:
            raise ValueError(
                f"rgb must be [I, H, W, 3] uint8, got {self.rgb.shape} {self.rgb.dtype}"
            )
        if len(self.rgb) == 0 or self.timestamps_s.shape != (len(self.rgb),):
            raise ValueError(f"{self.timestamps_s.shape=} does not fit {self.rgb.shape=}")
        if not np.isfinite(self.timestamps_s).all() or (np.diff(self.timestamps_s) <= 0).any():
            raise ValueError(
                f"timestamps must be finite and rise, got {self.timestamps_s.tolist()}"
            )
