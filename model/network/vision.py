"""MoonViT: patches of images of any resolution -> one feature for each 2 x 2 patches.

The patches of all images stand one after another without padding. No image sees another: attention
runs per image, without a mask. Neighbours with equal grids, such as the frames of a clip, are one
call.

Letters: I images, P patches, V vision tokens (V = P / 4), W vision width.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VisionConfig
from model.network.attend import attend_varlen, joined
from model.network.mlp import LinearGelu
from model.network.rope import PatchRotation, patch_rotation
from model.network.varlen import Spans

Grid = tuple[int, int]  # rows and columns of patches of one image
MAX_KEPT_PATCHES = 32768  # of grids whose tables are kept: 75 MB of positions in bfloat16
LAYER_NORM_EPS = 1e-5  # torch's default; the published code does not set it


def runs_of_equal_grids(grid_hw: Sequence[Grid]) -> list[tuple[int, Grid]]:
    """List (number of images, their grid) for each run of neighbours with equal grids."""
    return [(len(list(run)), grid) for grid, run in groupby(grid_hw)]


def rows_of_images(
    grid_hw: Sequence[Grid], rows_of: Callable[[Grid], Tensor], none: Tensor
) -> Tensor:
    """Put the rows [h*w, ...] that each grid has one after another, for all images: [P, ...].

    `none` [0, ...] is the answer where there is no image.
    """
    runs = [(count, rows_of(grid)) for count, grid in runs_of_equal_grids(grid_hw)]
    parts = [rows if count == 1 else rows.repeat(count, 1) for count, rows in runs]
    return joined(parts) if parts else none


class ByGrid:
    """Tables [h*w, ...] of the grids that were used last, on the device.

    Frames of a clip, and most clips of a job, have one grid. Nothing is kept or found while
    gradients are recorded, because a table then belongs to one graph.
    """

    def __init__(self, max_patches: int = MAX_KEPT_PATCHES) -> None:
        self._max_patches = max_patches
        self._tables: OrderedDict[Grid, Tensor] = OrderedDict()
        self._source: object = None
        self._version: object = None

    def get(
        self, grid: Grid, source: object, version: object, make: Callable[[], Tensor]
    ) -> Tensor:
        """Return the table of a grid. All are made anew for another `source` or `version` of it.

        A table with more patches than are kept in all is made each time.
        """
        if torch.is_grad_enabled():
            return make()
        if source is not self._source or version != self._version:
            self._tables.clear()
            self._source, self._version = source, version
        table = self._tables[grid] if grid in self._tables else make()
        self._tables[grid] = table
        self._tables.move_to_end(grid)
        while sum(len(each) for each in self._tables.values()) > self._max_patches:
            self._tables.popitem(last=False)
        return table

    def forget(self) -> None:
        """Drop all tables."""
        self._tables.clear()


class PatchEmbed(nn.Module):
    """Maps each patch linearly and adds a learned position, resampled to the grid of the image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch = config.patch_size
        # The checkpoint stores a convolution. Its stride is its kernel size, so it is one product
        # per patch.
        self.proj = nn.Conv2d(3, config.hidden_size, kernel_size=patch, stride=patch)
        self.pos_emb = PositionTable(config)

    def forward(self, pixels: Tensor, grid_hw: Sequence[Grid]) -> Tensor:
        """Map `pixels` [P, 3, patch, patch] to [P, W]."""
        embedded = F.linear(pixels.flatten(1), self.proj.weight.flatten(1), self.proj.bias)
        return embedded + self.pos_emb(grid_hw)


class PositionTable(nn.Module):
    """A learned table [rows, columns, W], resampled bicubically to the grid of each image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(
                config.init_pos_emb_height, config.init_pos_emb_width, config.hidden_size
            ).normal_()
        )
        self._kept = ByGrid()

    def forward(self, grid_hw: Sequence[Grid]) -> Tensor:
        """Return the positions of the patches of all images: [P, W]."""
        return rows_of_images(grid_hw, self._of_grid, self.weight.flatten(0, 1)[:0])

    def _of_grid(self, grid: Grid) -> Tensor:
        """Return the positions of one image [h*w, W], kept from an earlier call or resampled."""
        if self.weight.is_inference():  # torch does not count its changes
            return self.resampled(grid)
        return self._kept.get(grid, self.weight, self.weight._version, lambda: self.resampled(grid))

    def resampled(self, grid: Grid) -> Tensor:
        """Resample the table to the grid of one image: [h*w, W]."""
        table = self.weight.permute(2, 0, 1)[None]  # [1, W, rows, columns]
        return F.interpolate(table, size=grid, mode="bicubic")[0].flatten(1).T.contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `to`, `float`, `cuda` and their like: they change the weight without counting it.
        self._kept.forget()
        return super()._apply(fn, recurse)


class VisionMLP(nn.Module):
    """Computes fc1(fc0(x)); fc0 ends with the tanh approximation of GELU."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.fc0 = LinearGelu(hidden_size, width, approximate="tanh")
        self.fc1 = nn.Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [P, W] to [P, W]."""
        return self.fc1(self.fc0(x))


class VisionBlock(nn.Module):
    """Attention within each image and an MLP, each behind a layer norm and a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.norm0 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.wqkv = nn.Linear(width, 3 * width)
        self.wo = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = VisionMLP(width, config.intermediate_size)

    def forward(self, x: Tensor, rotation: PatchRotation, images: Spans) -> Tensor:
        """Map `x` [P, W] to [P, W]."""
        x = x + self.wo(self._attend(self.norm0(x), rotation, images))
        return x + self.mlp(self.norm1(x))

    def _attend(self, x: Tensor, rotation: PatchRotation, images: Spans) -> Tensor:
        qkv = self.wqkv(x).unflatten(-1, (3, self.num_heads, -1))  # [P, 3, heads, head_dim]
        query, key = rotation(qkv[:, :2].flatten(1, 2)).unflatten(1, (2, -1)).unbind(1)
        scale = query.shape[-1] ** -0.5
        found = attend_varlen(query, key, qkv[:, 2], images, scale, is_causal=False)
        return found.output.flatten(1)


class VisionEncoder(nn.Module):
    """All blocks and the last norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self._kept = ByGrid()

    def forward(self, x: Tensor, grid_hw: Sequence[Grid]) -> Tensor:
        """Map `x` [P, W] to [P, W]."""
        rotation = self._rotation(grid_hw, x.device)
        images = Spans(tuple(height * width for height, width in grid_hw), x.device)
        for block in self.blocks:
            x = block(x, rotation, images)
        return self.final_layernorm(x)

    def _rotation(self, grid_hw: Sequence[Grid], device: torch.device) -> PatchRotation:
        """Make the rotation of all patches, from turns kept by grid."""

        def turns(grid: Grid) -> Tensor:
            return patch_rotation([grid], self.head_dim, device).turns

        none = torch.empty(0, self.head_dim // 2, dtype=torch.complex64, device=device)
        return PatchRotation(
            rows_of_images(
                grid_hw, lambda grid: self._kept.get(grid, None, device, lambda: turns(grid)), none
            )
        )


class MoonViT(nn.Module):
    """The vision tower, named `vision_tower` in a checkpoint.

    pixels [P, 3, 14, 14] -> patch_embed [P, W] -> encoder [P, W] -> 2 x 2 merge [V, 4, W]
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.encoder = VisionEncoder(config)

    def forward(self, pixels: Tensor, grid_hw: Sequence[Grid]) -> Tensor:
        """Map normalised pixels [P, 3, patch, patch] of all images to [V, 4, W]."""
        return merge_patches(self.encoder(self.patch_embed(pixels, grid_hw), grid_hw), grid_hw)


def merge_patches(x: Tensor, grid_hw: Sequence[Grid]) -> Tensor:
    """Group the patches of each image by 2 x 2: [P, W] -> [V, 4, W].

    Tokens stand row by row over the merged grid; the four patches of a token stand
    (0, 0), (0, 1), (1, 0), (1, 1) as (row, column).
    """
    runs = runs_of_equal_grids(grid_hw)
    merged: list[Tensor] = []
    lens = [count * height * width for count, (height, width) in runs]
    for (count, (height, width)), part in zip(runs, x.split(lens), strict=True):
        squares = part.view(count, height // 2, 2, width // 2, 2, -1).transpose(2, 3)
        merged.append(squares.reshape(-1, 4, x.shape[-1]))
    return joined(merged) if merged else x.new_empty(0, 4, x.shape[-1])
