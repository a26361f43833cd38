"""`FrameView`: how a row's media are shown: which frames, at which size, with which time labels."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from model.config import ImageConfig
from model.inputs.images import image_size
from pipeline.media.frame_sampling import FrameSampling

# The smallest share of a row's budget that a frame gets: a frame of 224 x 224 pixels. With fewer
# tokens a frame would show little, so a tight budget takes fewer frames instead.
MIN_FRAME_TOKENS = 64
_MAX_FRAME_TOKENS = 1024  # of Kimi-VL-A3B-Instruct: 4096 patches, four of them to a token

Timestamps = Literal["none", "seconds", "mm:ss"]


@dataclass(frozen=True, kw_only=True)
class FrameView:
    """Which frames of a row's media the model sees, how large, and how their times are written.

    A value out of range is a ValueError.
    """

    frames: FrameSampling = field(default_factory=FrameSampling)
    timestamps: Timestamps = "seconds"
    max_frame_tokens: int | None = 256  # 448x448 pixels; None is the checkpoint's own limit
    # The budget of visual tokens of a row. Its frames share the budget evenly, and so few frames
    # are taken that each gets at least `MIN_FRAME_TOKENS`.
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
        """The sampling of `frames`, with no more frames than `max_row_tokens` pays for."""
        if self.max_row_tokens is None:
            return self.frames
        most = self.max_row_tokens // MIN_FRAME_TOKENS
        num_frames = self.frames.num_frames and min(self.frames.num_frames, most)
        max_frames = min(self.frames.max_frames, most)
        return replace(self.frames, num_frames=num_frames, max_frames=max_frames)

    @property
    def most_tokens(self) -> int:
        """The most visual tokens of a row, assuming 1024 a frame if `max_frame_tokens` is None."""
        frames = self.affordable_frames
        num_frames = len(frames.at_s or ()) or frames.num_frames or frames.max_frames
        num_tokens = num_frames * (self.max_frame_tokens or _MAX_FRAME_TOKENS)
        return num_tokens if self.max_row_tokens is None else min(num_tokens, self.max_row_tokens)


@dataclass(frozen=True, kw_only=True)
class FitFrames:
    """The `Fit` that keeps frames within budgets of visual tokens, for one checkpoint."""

    image: ImageConfig  # how the checkpoint cuts images into patches
    max_frame_tokens: int | None  # None is the checkpoint's own limit
    max_row_tokens: int | None = None  # of all frames together; None is no limit

    def __call__(self, width_px: int, height_px: int, num_frames: int) -> tuple[int, int]:
        """Compute the final width and height of `num_frames` frames of one displayed size.

        Raises:
            PromptError: no size fits.
        """
        max_tokens = self.max_frame_tokens
        if self.max_row_tokens is not None:
            share = max(1, self.max_row_tokens // num_frames)
            max_tokens = share if max_tokens is None else min(share, max_tokens)
        size_px = (width_px, height_px)
        # The checkpoint's rule, applied to its own result, shrinks a few sizes once more. The
        # processor applies it again to the decoded frame, so the result must be a fixed point.
        while True:
            fitted = image_size(*size_px, self.image, max_tokens)
            if (fitted.width_px, fitted.height_px) == size_px:
                return size_px
            size_px = (fitted.width_px, fitted.height_px)
