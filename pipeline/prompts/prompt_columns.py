"""Prompts as columns of a table, on their way from the prepare stage to the generate stage.

Letters: S prompt tokens, I images (frames), P patches.
"""

import hashlib
from math import isqrt

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.inputs.prompt import Prompt

PROMPT_COLUMNS = (
    "prompt_token_ids",
    "prompt_patches",
    "prompt_grid_hw",
    "prompt_image_digests",
)


def encode_prompt(prompt: Prompt) -> dict[str, object]:
    """Turn a prompt into the values of a row's `PROMPT_COLUMNS`.

    The pixels are copied, because pyarrow (26.0) never releases a memoryview that it took out of a
    list.
    """
    return {
        "prompt_token_ids": prompt.token_ids,
        "prompt_patches": prompt.patches.tobytes(),
        "prompt_grid_hw": prompt.grid_hw.ravel(),
        "prompt_image_digests": prompt.image_digests,
    }


def decode_prompt(table: pa.Table, row: int, before: Prompt | None = None) -> Prompt | None:
    """Read the prompt of one row, if it has one; its patches are a view of the table's memory.

    A row whose `prompt_patches` are null shows the same pixels as the nearest earlier row that has
    some. If the prompt `before`, the one decoded last, is given, the result then holds the very
    same array, so that a caller can tell shared pixels by identity.

    Raises:
        PromptError: the columns do not fit each other.
    """
    token_ids = table["prompt_token_ids"][row].values
    if token_ids is None:
        return None
    grid_hw = table["prompt_grid_hw"][row].values.to_numpy().reshape(-1, 2)
    return Prompt(
        token_ids=token_ids.to_numpy(),
        patches=_patches(table["prompt_patches"], row, grid_hw, before),
        grid_hw=grid_hw,
        image_digests=tuple(table["prompt_image_digests"][row].as_py()),
    )


def row_seed(seed: int, seed_id: str) -> int:
    """Derive the sampling seed of one prompt, in [0, 2**63), from the run's seed and an id.

    The result does not depend on the order of rows, so a restarted run draws the same answers.
    """
    digest = hashlib.blake2b(f"{seed}:{seed_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _patches(
    pixels: pa.ChunkedArray, row: int, grid_hw: NDArray[np.int32], before: Prompt | None
) -> NDArray[np.uint8]:
    if before is not None and pixels.slice(row, 1).null_count:
        return before.patches
    while pixels.slice(row, 1).null_count:
        row -= 1
    patches = _bytes_of(pixels, row)
    num_patches = int(grid_hw.prod(axis=1, dtype=np.int64).sum())
    side_px = isqrt(patches.size // (3 * num_patches)) if num_patches else 1
    return patches.reshape(-1, 3, side_px, side_px)


def _bytes_of(column: pa.ChunkedArray, row: int) -> NDArray[np.uint8]:
    """View the bytes of one row of a large_binary column; `as_py` would copy them."""
    array = column.slice(row, 1).chunk(0)
    _, offsets, values = array.buffers()
    start, end = np.frombuffer(offsets, np.int64)[array.offset : array.offset + 2]
    return np.frombuffer(values or b"", np.uint8)[start:end]
