"""The size at which frames are shown to the model, so that the processor need not resize them."""

from dataclasses import dataclass

from model.config import ImageConfig
from model.images import image_size

# Of a row with a budget: fewer than a frame of 224 x 224 pixels has would show little.
MIN_FRAME_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class FitFrames:
    """A `pipeline.view.Fit` by visual tokens, for one checkpoint.

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
