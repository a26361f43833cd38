"""`FrameView`: how a row's media are shown: which frames, of which size, with which times."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from model.config import ImageConfig
from model.inputs.images import image_size
from pipeline.media.frame_sampling import FrameSampling

Timestamps = Literal["none", "seconds", "mm:ss"]


@dataclass(frozen=True, kw_only=True)
class FrameView:
    """How media are shown.

    Raises:
        ValueError: a value is out of range.
    """

    frames: FrameSampling = field(default_factory=FrameSampling)
    timestamps: Timestamps = "seconds"
    max_frame_tokens: int | None = 256  # 448x448 pixels; None is the checkpoint's own limit
    # Visual tokens of a row. Its frames share them evenly, and are so few that each has enough.
    max_row_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.timestamps not in get_args(Timestamps):
            raise ValueError(
                f"timestamps must be one of {', '.join(get_args(Timestamps))}, got "
                f"{self.timestamps!r}"
            )
        if self.max_frame_tokens is not None and self.max_frame_tokens < 1:
            raise ValueError(f"max_frame_tokens must be at least 1, got {self.max_frame_tokens}")
        if self.max_row_tokens is not None and self.max_row_tokens < MIN_FRAME_TOKENS:
            raise ValueError(
                f"max_row_tokens must be at least {MIN_FRAME_TOKENS}, which is one frame, got "
                f"{self.max_row_tokens}"
            )

    @property
    def affordable_frames(self) -> FrameSampling:
        """`frames`, but never more than `max_row_tokens` pays for."""
        if self.max_row_tokens is None:
            return self.frames
        most = self.max_row_tokens // MIN_FRAME_TOKENS
        num_frames = self.frames.num_frames and min(self.frames.num_frames, most)
        max_frames = min(self.frames.max_frames, most)
        return replace(self.frames, num_frames=num_frames, max_frames=max_frames)

    @property
    def most_tokens(self) -> int:
        """The most visual tokens that a row can take, where the frames have a limit."""
        frames = self.affordable_frames
        num_frames = len(frames.at_s or ()) or frames.num_frames or frames.max_frames
        num_tokens = num_frames * (self.max_frame_tokens or 1024)
        return num_tokens if self.max_row_tokens is None else min(num_tokens, self.max_row_tokens)


# Of a row with a budget: fewer than a frame of 224 x 224 pixels has would show little.
MIN_FRAME_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class FitFrames:
    """A `pipeline.media.display.Fit` by visual tokens, for one checkpoint.

    Args:
        image: of the checkpoint.
        max_frame_tokens: of each frame; None is the checkpoint's own limit.
        max_row_tokens: of all frames together; None is no limit.
    """

    image: ImageConfig
    max_frame_tokens: int | None
    max_row_tokens: int | None = None

    def __call__(self, width_px: int, height_px: int, num_frames: int) -> tuple[int, int]:
        """The final width and height of frames of this displayed size.

        Raises:
            PromptError: there is no such size.
        """
        max_tokens = self.max_frame_tokens
        if self.max_row_tokens is not None:
            share = max(1, self.max_row_tokens // num_frames)
            max_tokens = share if max_tokens is None else min(share, max_tokens)
        size_px = (width_px, height_px)
        while True:  # the checkpoint's rule shrinks a few of its own results once more
            fitted = image_size(*size_px, self.image, max_tokens)
            if (fitted.width_px, fitted.height_px) == size_px:
                return size_px
            size_px = (fitted.width_px, fitted.height_px)
