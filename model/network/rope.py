"""Rotary position embedding: one axis for text, two axes for image patches.

Angles are always computed in float32 from integer positions. `inv_freq` is neither a parameter nor
a buffer, so `model.to(bfloat16)` cannot round it.

Letters: T tokens, P patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

VISION_THETA = 10000.0  # `Rope2DPosEmb` in modeling_kimi_vl.py; not in config.json
_CACHED_ROWS = 128  # patches of 2 x 16 heads of 72 channels: about a megabyte in float32


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the angles by which pairs of channels are rotated."""

    cos: Tensor  # [T, width / 2]
    sin: Tensor  # [T, width / 2]

    def interleaved(self, x: Tensor) -> Tensor:
        """Rotate the pairs (0, 1), (2, 3), ... of `x` [T, heads, width].

        The result holds the first channel of every pair, then the second of every pair, as
        `apply_rotary_pos_emb` of DeepSeek-V3 leaves it. Queries and keys are permuted alike, so
        their products do not change.
        """
        return torch.cat(self._turn(x[..., 0::2], x[..., 1::2]), dim=-1)

    def halves(self, x: Tensor) -> Tensor:
        """Rotate the pairs (0, width / 2), (1, width / 2 + 1), ... of `x` [T, heads, width]."""
        return torch.cat(self._turn(*x.chunk(2, dim=-1)), dim=-1)

    def _turn(self, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos[:, None], self.sin[:, None]  # one angle for all heads
        return real * cos - imaginary * sin, imaginary * cos + real * sin


@dataclass(frozen=True)
class PatchRotation:
    """The complex numbers of length 1 by which pairs of channels of patches are multiplied."""

    turns: Tensor  # [P, width / 2] complex64

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate the pairs (0, 1), (2, 3), ... of `x` [P, heads, width]; they keep their places.

        The products are in float32 and are rounded to the dtype of `x`, as in `apply_rope` of
        MoonViT.
        """
        # On CPUs, few rows at a time: then their float32 copy stays in the processor's cache.
        step = _CACHED_ROWS if x.device.type == "cpu" else max(1, len(x))
        if len(x) <= step:
            return _turned(x, self.turns[:, None])
        parts = zip(x.split(step), self.turns.split(step), strict=True)
        return torch.cat([_turned(part, turns[:, None]) for part, turns in parts])


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


def text_rotation(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Make the rotation of tokens at `positions` [T] for heads with `width` rotary channels.

    The cosines are rounded to `dtype` before they multiply, as in the published model.
    """
    inv_freq = text_inv_freq(width, theta, positions.device)
    angles = positions.float()[:, None] * inv_freq  # [T, width / 2]
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


def text_inv_freq(width: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Compute theta ** (-2m / width), m = 0 .. width / 2 - 1 (arXiv 2104.09864, eq. 15)."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    return 1.0 / theta**exponents


def patch_rotation(
    grid_hw: Sequence[tuple[int, int]], head_dim: int, device: torch.device
) -> PatchRotation:
    """Make the rotation of patches: even pairs are rotated by column, odd pairs by row.

    This is the order of the axes in the code of `Rope2DPosEmb`; its docstring says otherwise.
    Positions start at (0, 0) in each image.
    """
    inv_freq = vision_inv_freq(head_dim, device)
    angles = [torch.empty(0, head_dim // 2, device=device)]
    for height, width in grid_hw:
        row = torch.arange(height, device=device).repeat_interleave(width)
        column = torch.arange(width, device=device).repeat(height)
        xy = torch.stack((column, row), dim=-1).float()  # [h*w, 2]
        # By frequency, then by axis: x f0, y f0, x f1, y f1, ...
        angles.append((xy[:, None, :] * inv_freq[:, None]).flatten(1))
    angle = torch.cat(angles)  # [P, head_dim / 2]
    return PatchRotation(torch.polar(torch.ones_like(angle), angle))


def vision_inv_freq(head_dim: int, device: torch.device | None = None) -> Tensor:
    """Compute 10000 ** (-4j / head_dim), j = 0 .. head_dim / 4 - 1, in float32."""
    exponents = torch.arange(0, head_dim, 4, dtype=torch.float32, device=device) / head_dim
    return 1.0 / VISION_THETA**exponents
