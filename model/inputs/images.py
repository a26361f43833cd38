"""Image -> uint8 patches on the 28-pixel grid, as `KimiVLImageProcessor` of the checkpoint does.

`image_size` does only the arithmetic, so that a prompt can be measured before a pixel is touched.
`image_patches` does the work. Patches stay uint8, because the engine normalises them.

Letters: h, w rows and columns of patches; P = h * w. A visual token is 2 x 2 patches.
"""

import bisect
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.config import ImageConfig
from model.inputs.prompt import PromptError

# A side of the grid must be shorter than the rotary table of the published model,
# `Rope2DPosEmb(..., 512, 512)` in modeling_kimi_vl.py.
MAX_GRID_SIDE = 512

# Modes with 8 bits per channel. Pillow clips wider ones to white instead of scaling them.
_MODES = frozenset("1 L LA P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV LAB".split())
_WITH_ALPHA = frozenset("LA La P PA RGBA RGBa".split())  # of a palette: maybe


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """The sizes of an image that is resized, then padded at the right and at the bottom."""

    width_px: int  # after the resize
    height_px: int
    padded_width_px: int  # multiples of 28
    padded_height_px: int
    grid_hw: tuple[int, int]  # rows and columns of patches, both even

    @property
    def num_patches(self) -> int:
        """The number of patches of the padded image, P."""
        return self.grid_hw[0] * self.grid_hw[1]

    @property
    def num_tokens(self) -> int:
        """The number of visual tokens (media pads) of the image: one for each 2 x 2 patches."""
        return self.num_patches // 4


def image_size(
    width_px: int, height_px: int, config: ImageConfig, max_tokens: int | None = None
) -> ImageSize:
    """Compute the size at which the network sees an image; only padding makes an image larger.

    `config.in_token_limit` counts whole patches before padding, as the checkpoint does. So the
    padded grid may exceed it: 1280x720 at 4096 has 4300 patches. `max_tokens` counts the padded
    grid and is never exceeded: an image that would have more tokens by the rule of the checkpoint
    becomes the largest image of the same shape that has not. A side that would shrink below one
    pixel becomes one pixel; the published code fails there.

    Raises PromptError: the image has no pixels, or a side of its grid reaches 512 patches.
    """
    if width_px < 1 or height_px < 1:
        raise PromptError("bad_prompt", f"an image needs pixels, got {width_px}x{height_px}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"an image takes at least 1 token, got max_tokens={max_tokens}")
    size = _padded(*_within_limit(width_px, height_px, config), config)
    if max_tokens is not None and size.num_tokens > max_tokens:
        size = _within_tokens(width_px, height_px, size, config, max_tokens)
    if max(size.grid_hw) >= MAX_GRID_SIDE:
        rows, columns = size.grid_hw
        raise PromptError(
            "bad_prompt",
            f"a {width_px}x{height_px} image has {columns}x{rows} patches of {config.patch_size} "
            f"px, and a side must have fewer than {MAX_GRID_SIDE}; crop or shrink it",
        )
    return size


def image_patches(
    image: NDArray[np.uint8] | Image.Image, config: ImageConfig, max_tokens: int | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Resize an image, pad it with black, and cut it into patches.

    The image is [H, W, 3] uint8 RGB (else ValueError), or a PIL image of 8 bits per channel (else
    PromptError), which is put on white where it is transparent. Its size is that of `image_size`.
    Returns patches [P, 3, 14, 14] uint8, row-major, and their grid (h, w).
    """
    if isinstance(image, Image.Image):
        image = np.asarray(_to_rgb(image))
    require_rgb(image)
    height_px, width_px, _ = image.shape
    size = image_size(width_px, height_px, config, max_tokens)
    target = (size.width_px, size.height_px)
    if target != (width_px, height_px):
        resized = Image.fromarray(image).resize(target, Image.Resampling.BICUBIC)
        image = np.asarray(resized)
    padded = np.zeros((size.padded_height_px, size.padded_width_px, 3), np.uint8)
    padded[: size.height_px, : size.width_px] = image
    (rows, columns), side = size.grid_hw, config.patch_size
    cut = padded.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
    return cut.reshape(rows * columns, 3, side, side), size.grid_hw  # this reshape copies


def require_rgb(image: NDArray[np.uint8]) -> None:
    """Raise ValueError for everything but an [H, W, 3] uint8 array."""
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected an [H, W, 3] uint8 array, got {type(image).__name__}")  # noqa: TRY004
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected [H, W, 3] uint8, got {list(image.shape)} {image.dtype}")


def _within_limit(width_px: int, height_px: int, config: ImageConfig) -> tuple[int, int]:
    """Resize as the checkpoint does: sides are truncated, patches counted by floor division."""
    num_patches = (width_px // config.patch_size) * (height_px // config.patch_size)
    if num_patches <= config.in_token_limit:
        return width_px, height_px
    scale = math.sqrt(config.in_token_limit / num_patches)
    return max(1, int(width_px * scale)), max(1, int(height_px * scale))


def _within_tokens(
    width_px: int, height_px: int, upper: ImageSize, config: ImageConfig, max_tokens: int
) -> ImageSize:
    """Find the largest size below `upper` with the shape of the image and at most `max_tokens`."""
    longest_px = max(width_px, height_px)

    def scaled(side_px: int) -> ImageSize:
        width, height = (side * side_px // longest_px for side in (width_px, height_px))
        return _padded(max(1, width), max(1, height), config)

    # Bisection works: a longer side never has fewer tokens, and one pixel has one token.
    sides = range(1, max(upper.width_px, upper.height_px) + 1)
    return scaled(bisect.bisect_right(sides, max_tokens, key=lambda side: scaled(side).num_tokens))


def _padded(width_px: int, height_px: int, config: ImageConfig) -> ImageSize:
    step = config.patch_size * config.merge_size
    padded_width_px = -(-width_px // step) * step
    padded_height_px = -(-height_px // step) * step
    return ImageSize(
        width_px=width_px,
        height_px=height_px,
        padded_width_px=padded_width_px,
        padded_height_px=padded_height_px,
        grid_hw=(padded_height_px // config.patch_size, padded_width_px // config.patch_size),
    )


def on_background(image: Image.Image, color: str | None) -> Image.Image:
    """Put an image of 8 bits per channel on a colour (#rrggbb), which shows through it; RGB.

    None takes the colours that the image has under its transparency.
    """
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
    if color is None or image.mode != "RGBA":
        return image.convert("RGB")
    opaque = Image.new("RGB", image.size, color)
    opaque.paste(image, mask=image)
    return opaque


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode not in _MODES:
        raise PromptError(
            "bad_prompt",
            f"an image of mode {image.mode} has no 8-bit RGB form; scale its values to 8 bits",
        )
    return on_background(image, "#ffffff")
