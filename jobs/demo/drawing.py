"""Compute how much of each pixel shapes and words cover, with smooth edges.

Letters: N frames.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont


def cover_of(
    kind: str,
    centres: NDArray[np.float64],
    radius: NDArray[np.float64],
    size_px: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compute how much of each pixel a shape covers, in a square around it.

    Args:
        kind: "circle", "square", "triangle" or "cross".
        centres: [N, 2] x and y in pixels.
        radius: [N] in pixels.
        size_px: width and height of the frame.

    Returns:
        The cover [N, side, side] in 0 .. 1 of squares around the centres, and their left top
        corners [N, 2]; the squares lie within the frame.
    """
    radii = radius.astype(np.float32)[:, None, None]
    side = min(int(2 * radii.max()) + 4, *size_px)
    corners = np.clip((centres - side / 2).astype(np.int64), 0, np.array(size_px) - side)
    offsets = (corners - centres + 0.5).astype(np.float32)
    steps = np.arange(side, dtype=np.float32)
    dx = (offsets[:, :1] + steps)[:, None, :]
    dy = (offsets[:, 1:] + steps)[:, :, None]
    cover = np.clip(0.5 - _distance(kind, dx, dy, radii), 0, 1)
    return cover.astype(np.float32), corners


def _distance(
    kind: str, dx: NDArray[np.float32], dy: NDArray[np.float32], radius: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the signed distance from the border of a shape, in pixels; negative inside."""
    across, down = np.abs(dx), np.abs(dy)
    if kind == "circle":
        return np.hypot(dx, dy, dtype=np.float32) - radius
    if kind == "square":
        return np.maximum(across, down) - 0.86 * radius
    if kind == "triangle":  # the apex is at the top, and the sides have a slope of 2 : 1
        sides = np.float32(0.894) * across - np.float32(0.447) * (dy + radius)
        return np.maximum(sides, dy - 0.8 * radius)
    bar = 0.33 * radius
    return np.minimum(
        np.maximum(across - radius, down - bar), np.maximum(across - bar, down - radius)
    )


@cache
def cover_of_text(text: str, width_px: int, height_px: int, band: float) -> NDArray[np.float32]:
    """Compute how much of each pixel text covers, in the top `band` of the frame's height."""
    size = min(height_px * band, width_px / 3.2) * 0.95
    mask = Image.new("L", (width_px, height_px))
    font = ImageFont.load_default(size)
    place = (width_px / 2, height_px * band / 2)
    ImageDraw.Draw(mask).text(place, text, fill=255, font=font, anchor="mm", stroke_width=size / 40)
    return np.asarray(mask, np.float32) / np.float32(255)
