"""A step as large as any: its prompts, and what it takes of a card's memory.

An engine on a GPU computes it once at its start, with a cache of its own, and gives the rest of the
card to the cache that stays (`model.engine.fit.capacity`).

Letters: B sequences, T tokens of the step, P patches, V vision tokens (V = P / 4), S tokens of a
prompt.
"""

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from model.config import KimiVLConfig
from model.engine.blocks import blocks_for
from model.engine.config import EngineConfig
from model.engine.fit.capacity import GIB, MORE_ROOM, StepMemory
from model.engine.sequence import SamplingParams
from model.inputs.prompt import Prompt
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache

# Every part of sampling that takes memory: a penalty, a draw, and a sort of the whole vocabulary.
_SAMPLING = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9999, repetition_penalty=1.1)
_MOST_SIDE = 128  # patches: an image of 1792 x 1792 pixels


class Trial(Protocol):
    """What is needed of the engine that computes the step."""

    cache: LatentCache

    def add(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        """Queue a prompt."""
        ...

    def close(self) -> None:
        """Free the cache."""
        ...


E = TypeVar("E", bound=Trial)


def take_worst_step(
    make_engine: Callable[[EngineConfig], E],
    compute: Callable[[E], None],
    model: KimiVL,
    config: EngineConfig,
    batch_size: int,
) -> int:
    """Compute a step as large as any by an engine of its own; return the bytes of its cache.

    `compute` computes one step of such an engine. No trace is left: the counts of the experts are
    as before.
    """
    text = model.config.text
    prompts = worst_prompts(
        model.config,
        num_sequences=batch_size,
        num_tokens=config.max_step_tokens,
        num_patches=config.max_vision_patches,
        max_model_len=config.max_model_len or text.max_position_embeddings,
    )
    # A scheduler wants one more block for each running sequence.
    num_blocks = sum(blocks_for(len(prompt.token_ids) + 1) + 1 for prompt in prompts)
    # Half a block more, so that the fraction is not rounded to one block less.
    cache_gib = (num_blocks + 0.5) * LatentCache.block_bytes(text, model.dtype) / GIB
    config = replace(config, max_batch_size=batch_size, cache_gib=cache_gib, cache_fraction=None)
    engine = make_engine(replace(config, cuda_graphs=False, runs_ahead=False))
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, _SAMPLING)
    counts = [moe.experts.rows_computed.clone() for moe in model.experts.values()]
    compute(engine)
    for moe, count in zip(model.experts.values(), counts, strict=True):
        moe.experts.rows_computed.copy_(count)
    num_bytes = sum(layer.nbytes for layer in engine.cache.layers)
    engine.close()
    return num_bytes


def worst_prompts(
    config: KimiVLConfig,
    *,
    num_sequences: int,
    num_tokens: int,
    num_patches: int,
    max_model_len: int,
) -> list[Prompt]:
    """Make B prompts that a scheduler begins and ends in one step, the images last.

    They have T tokens, or as many as B prompts can have, and P patches, but for what cannot be
    divided into images. Their tokens and pixels are random, so that they share no block and no
    image, and all experts are asked.
    """
    generator = np.random.default_rng(0)
    longest = max_model_len - 1  # the answer has one token
    num_sequences = min(num_sequences, num_tokens)
    grids = list(_grids(num_patches, longest - 1))[:num_sequences]
    num_texts = num_sequences - len(grids)
    lens = [height * width // 4 + 1 for height, width in grids]
    if num_texts:
        spare = num_tokens - sum(lens)
        lens = [max(1, min(longest, spare // num_texts))] * num_texts + lens
    lens[-1] = max(lens[-1], min(longest, lens[-1] + num_tokens - sum(lens)))
    return [
        _prompt(config, num_tokens, grid, generator)
        for num_tokens, grid in zip(lens, [(0, 0)] * num_texts + grids, strict=True)
    ]


def _grids(num_patches: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Divide patches into few images, each of at most `most_tokens` vision tokens."""
    side = min(_MOST_SIDE, math.isqrt(4 * max(0, most_tokens)))
    left = num_patches
    while min(side, left // 2) >= 2:
        height = min(side, math.isqrt(left)) // 2 * 2
        width = min(side, left // height) // 2 * 2
        yield height, width
        left -= height * width


def _prompt(
    config: KimiVLConfig, num_tokens: int, grid: tuple[int, int], generator: np.random.Generator
) -> Prompt:
    """Make a prompt of random tokens [S], which begins with an image, if the grid has patches."""
    height, width = grid
    token_ids = generator.integers(0, config.text.vocab_size, num_tokens, np.int32)
    token_ids[token_ids == config.media_token_id] = 0
    token_ids[: height * width // 4] = config.media_token_id
    side_px = config.vision.patch_size
    return Prompt(
        token_ids=token_ids,
        patches=generator.integers(0, 256, (height * width, 3, side_px, side_px), np.uint8),
        grid_hw=np.array([grid] if height else [], np.int32).reshape(-1, 2),
    )


def measure(step: Callable[[], int], device: torch.device, cuda: Any = torch.cuda) -> StepMemory:
    """Measure the memory of a card during `step`, and what is in use when it is over.

    `step` returns the bytes that it held all the time and that do not count. `cuda` has the
    functions of `torch.cuda`. Raises ValueError: the card has too little memory for the step.
    """
    _collect(cuda)
    cuda.reset_peak_memory_stats(device)
    try:
        own = step()
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"a worst-case step does not fit into the memory of {device}: {_first_line(error)}; "
            f"{MORE_ROOM}"
        ) from error
    peak = cuda.max_memory_allocated(device)
    # Only now: the workspaces of cuBLAS and the buffers of NCCL came with the step, and stay.
    _collect(cuda)
    free, card = cuda.mem_get_info(device)
    taken = peak - cuda.memory_allocated(device) - own
    return StepMemory(card=card, used=card - free, step=max(0, taken))


def _collect(cuda: Any) -> None:
    """Free what nobody refers to, and give back what torch keeps for itself."""
    gc.collect()
    cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
