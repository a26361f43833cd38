"""Chooses what a configuration leaves open, by the memory of the device, and reserves the cache."""

from collections.abc import Callable

import torch

from model.config import BLOCK_SIZE
from model.engine.blocks import blocks_for
from model.engine.config import EngineConfig
from model.engine.fit.capacity import (
    CPU_CACHE_GIB,
    GIB,
    Capacity,
    StepMemory,
    cache_bytes,
    default_batch_size,
    kept_bytes,
)
from model.engine.fit.worst_case import measure
from model.memory import free_bytes
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache


def fit_device(
    model: KimiVL, config: EngineConfig, max_model_len: int, worst_step: Callable[[int], int]
) -> tuple[Capacity, LatentCache]:
    """Choose batch and cache of an engine; return what was chosen, and the cache.

    `worst_step` computes a step as large as any, with a batch of the given size, as the `step` of
    `measure`; only a GPU without a given cache needs it. A cache that does not fit raises
    ValueError.
    """
    device = model.device
    block_bytes = LatentCache.block_bytes(model.config.text, model.dtype)
    is_cache_given = config.cache_gib is not None or config.cache_fraction is not None
    card, memory, kept = 0, StepMemory(0, 0, 0), 0
    if device.type == "cuda" and not (config.max_batch_size and is_cache_given):
        card = torch.cuda.mem_get_info(device)[1]
    batch_size = config.max_batch_size or default_batch_size(device.type, card)
    if card and not is_cache_given:
        memory = measure(lambda: worst_step(batch_size), device)
        has_graphs = config.cuda_graphs is not False and model.never_waits
        kept = kept_bytes(config.feature_cache_gib, has_graphs=has_graphs)
        num_bytes = cache_bytes(memory, kept, blocks_for(max_model_len) * block_bytes)
        origin = f"the {num_bytes / GIB:.2f} GiB that a worst-case step leaves"
    else:
        num_bytes, origin = _asked_bytes(config, device)
    # No more blocks than all sequences can use at their greatest length.
    num_blocks = min(num_bytes // block_bytes, batch_size * blocks_for(max_model_len))
    if num_blocks < 1:
        raise ValueError(f"{origin} is too small for one block of {block_bytes} bytes")
    cache = _reserve(model, num_blocks, origin)
    return Capacity(
        batch_size=batch_size,
        cache_gib=num_blocks * block_bytes / GIB,
        cache_tokens=num_blocks * BLOCK_SIZE,
        step_tokens=config.max_step_tokens,
        vision_patches=config.max_vision_patches,
        is_batch_given=config.max_batch_size is not None,
        is_cache_given=is_cache_given,
        card_gib=card / GIB,
        used_gib=memory.used / GIB,
        step_gib=memory.step / GIB,
        kept_gib=kept / GIB,
    ), cache


def _asked_bytes(config: EngineConfig, device: torch.device) -> tuple[int, str]:
    """Return the bytes of the cache that a configuration asks for, and by what."""
    if config.cache_fraction is None:
        gib = CPU_CACHE_GIB if config.cache_gib is None else config.cache_gib
        return int(gib * GIB), f"cache_gib={gib:g}"
    free = free_bytes(device)
    origin = f"cache_fraction={config.cache_fraction:g} of {free / GIB:.2f} GiB free"
    return int(config.cache_fraction * free), origin


def _reserve(model: KimiVL, num_blocks: int, origin: str) -> LatentCache:
    try:
        return LatentCache(model.config.text, num_blocks, model.dtype, model.device)
    except RuntimeError as error:  # of torch, when memory is short
        raise ValueError(f"{origin} cannot be reserved on {model.device}: {error}") from error
