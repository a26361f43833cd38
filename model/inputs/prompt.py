"""`Prompt`: what the network needs of one request, in numpy.

The prepare stage makes prompts on CPU machines. So this module and those that build prompts
(`tokenizer`, `images`, `processor`) never import torch.

Letters: S prompt tokens, I images (frames), P patches, V vision tokens (V = P / 4).
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


class PromptError(ValueError):
    """One prompt cannot be run; the message says why. Other prompts are not affected.

    `code` is a stable word for the output's `error_code` column.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["PromptError"], tuple[str, str]]:
        # Pickling an exception calls it with `self.args`, which holds only the message.
        return PromptError, (self.code, self.message)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids, and the patches of the images that fill their media pads.

    Patches stay uint8 until the engine normalises them on its device: the object store then carries
    a quarter of the bytes of float32. No tokens, or shapes or dtypes that do not fit, raise
    PromptError `bad_prompt`.

    Images are known by their digests. Whoever makes a prompt from pixels leaves `image_digests`
    out, and they are made here, in some 4 ms for 1,000 vision tokens. Whoever reads a prompt back
    gives them, so that pixels are hashed once, where rows are prepared, and never by an engine.
    """

    token_ids: NDArray[np.int32]  # [S]
    patches: NDArray[np.uint8]  # [P, 3, patch, patch], image after image, row-major in each
    grid_hw: NDArray[np.int32]  # [I, 2] rows and columns of patches of each image, both even
    # [I] 16 bytes of each image, equal only for equal pixels in an equal grid
    image_digests: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.token_ids.ndim != 1 or len(self.token_ids) == 0:
            raise PromptError("bad_prompt", f"a prompt needs tokens, got {self.token_ids.shape}")
        if self.grid_hw.ndim != 2 or self.grid_hw.shape[1] != 2:
            raise PromptError("bad_prompt", f"grid_hw must be [I, 2], got {self.grid_hw.shape}")
        if (self.grid_hw <= 0).any() or (self.grid_hw % 2).any():
            raise PromptError("bad_prompt", f"grid sides must be even: {self.grid_hw.tolist()}")
        self._check_patches()
        if not self.image_digests and len(self.grid_hw):
            object.__setattr__(self, "image_digests", image_digests(self.patches, self.grid_hw))
        if len(self.image_digests) != len(self.grid_hw):
            reason = f"{len(self.image_digests)} digests for {len(self.grid_hw)} images"
            raise PromptError("bad_prompt", reason)

    def _check_patches(self) -> None:
        shape, dtype = self.patches.shape, self.patches.dtype
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or dtype != np.uint8:
            reason = f"patches must be uint8 [P, 3, side, side], got {dtype} {shape}"
            raise PromptError("bad_prompt", reason)
        if len(self.patches) != self.num_patches:
            reason = f"the grids ask for {self.num_patches} patches, got {len(self.patches)}"
            raise PromptError("bad_prompt", reason)

    @property
    def num_patches(self) -> int:
        """The number of patches of all images, P."""
        return int(self.grid_hw.prod(axis=1, dtype=np.int64).sum())

    @property
    def num_vision_tokens(self) -> int:
        """The number of media pads that the patches fill, V: one for each 2 x 2 patches."""
        return self.num_patches // 4


def image_digests(patches: NDArray[np.uint8], grid_hw: NDArray[np.int32]) -> tuple[bytes, ...]:
    """Make 16 bytes for each of the images [I]: BLAKE2b over its grid and its pixels."""
    ends = grid_hw.prod(axis=1, dtype=np.int64).cumsum()
    parts = np.split(patches, ends)[:-1]  # behind the last image there is nothing
    digests: list[bytes] = []
    for grid, part in zip(grid_hw, parts, strict=True):
        hashed = blake2b(grid.tobytes(), digest_size=16)
        hashed.update(part.ravel().data)  # a view, where the patches are contiguous
        digests.append(hashed.digest())
    return tuple(digests)
