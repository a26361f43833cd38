"""Prompts as columns of a table, between the prepare and the generate stage.

Letters: S prompt tokens, I images (frames), P patches.
"""

from math import isqrt

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.inputs.prompt import Prompt

PROMPT_COLUMNS = ("prompt_token_ids", "prompt_patches", "prompt_grid_hw")


def encode_prompt(prompt: Prompt) -> dict[str, object]:
    """The values of `prompt` in a row's prompt columns.

    The pixels are copied, because pyarrow (26.0) never lets go of a memoryview in a list.
    """
    return {
        "prompt_token_ids": prompt.token_ids,
        "prompt_patches": prompt.patches.tobytes(),
        "prompt_grid_hw": prompt.grid_hw.ravel(),
    }


def decode_prompt(table: pa.Table, row: int, before: Prompt | None = None) -> Prompt | None:
    """The prompt of a row, None where it has none; the patches are a view of the table.

    Where a prompt has no patches of its own, they are those of the nearest row before that has: of
    `before`, if given, the very same array.

    Raises:
        PromptError: the columns do not fit each other.
    """
    token_ids = table["prompt_token_ids"][row].values
    if token_ids is None:
        return None
    grid_hw = table["prompt_grid_hw"][row].values.to_numpy().reshape(-1, 2)
    pixels = table["prompt_patches"]
    if before is not None and pixels.slice(row, 1).null_count:
        return Prompt(token_ids=token_ids.to_numpy(), patches=before.patches, grid_hw=grid_hw)
    while pixels.slice(row, 1).null_count:
        row -= 1
    patches = _bytes(pixels, row)
    num_patches = int(grid_hw.prod(axis=1, dtype=np.int64).sum())
    side_px = isqrt(patches.size // (3 * num_patches)) if num_patches else 1
    return Prompt(
        token_ids=token_ids.to_numpy(),
        patches=patches.reshape(-1, 3, side_px, side_px),
        grid_hw=grid_hw,
    )


def _bytes(column: pa.ChunkedArray, row: int) -> NDArray[np.uint8]:
    """The bytes of one row of a large_binary column; Arrow's own scalar would be a copy."""
    array = column.slice(row, 1).chunk(0)
    _, offsets, values = array.buffers()
    start, end = np.frombuffer(offsets, np.int64)[array.offset : array.offset + 2]
    return np.frombuffer(values or b"", np.uint8)[start:end]
