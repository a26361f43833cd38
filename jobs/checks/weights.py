"""Compute the memory of a rank, by number of ranks, from the headers of the weight files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from jobs.checks.finding import Finding
from model.config import KimiVLConfig
from model.engine.config import EngineConfig
from model.engine.dtype import choose_dtype
from model.engine.fit.capacity import CPU_CACHE_GIB
from model.malloc import use_expandable_segments
from model.memory import free_bytes
from model.network.kv_cache import cache_width
from model.network.weights import EMBEDDING, check_checkpoint, destinations, stored_tensors

_GIB = 1 << 30
DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "bfloat16": 2, "float16": 2, "float32": 4}
_WORKING_GIB = 1.0  # for a step: activations, logits, buffers


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The sizes of a checkpoint's weights in the dtype that an engine uses."""

    config: KimiVLConfig
    dtype: str  # the requested or chosen one, or the stored one
    num_tensors: int
    num_parameters: int
    shared_bytes: int  # whole on every rank
    expert_bytes: int  # split over the ranks of a group

    def rank_bytes(self, num_ranks: int) -> int:
        """Return the bytes of weights on the rank with the most experts."""
        experts = self.config.text.n_routed_experts or 1
        return self.shared_bytes + self.expert_bytes * -(-experts // num_ranks) // experts

    def rank_gib(self, num_ranks: int, engine: EngineConfig) -> float:
        """Return the GiB that this rank needs with its caches and working memory."""
        fixed = self.cache_gib(engine) + engine.feature_cache_gib + _WORKING_GIB
        return self.rank_bytes(num_ranks) / _GIB + fixed

    def cache_gib(self, engine: EngineConfig) -> float:
        """Return the GiB of a rank's cache; on a GPU without a given size, the least it may have.

        That is room for one sequence of the greatest length.
        """
        if engine.cache_gib is not None:
            return engine.cache_gib
        if engine.device == "cpu":
            return CPU_CACHE_GIB
        text = self.config.text
        longest = engine.max_model_len or text.max_position_embeddings
        return longest * self.token_bytes() / _GIB

    def token_bytes(self) -> int:
        """Return the bytes of a token in the cache."""
        text = self.config.text
        return cache_width(text) * text.num_hidden_layers * DTYPE_BYTES[self.dtype]


def read_footprint(directory: Path, engine: EngineConfig) -> Footprint:
    """Check the name and shape of every tensor, and count the bytes of `engine`; read headers only.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    config = check_checkpoint(directory)
    stored = stored_tensors(directory)
    wanted = destinations(config)
    chosen = choose_dtype(directory, engine).dtype
    dtype = stored[EMBEDDING].dtype if chosen is None else str(chosen).removeprefix("torch.")
    num_parameters = shared_bytes = expert_bytes = 0
    for name, tensor in stored.items():
        if name not in wanted:
            continue  # published checkpoints contain buffers that no module uses
        count = prod(tensor.shape)
        num_parameters += count
        if ".mlp.experts." in name:
            expert_bytes += count * DTYPE_BYTES[dtype]
        else:
            shared_bytes += count * DTYPE_BYTES[dtype]
    return Footprint(
        config=config,
        dtype=dtype,
        num_tensors=len(stored),
        num_parameters=num_parameters,
        shared_bytes=shared_bytes,
        expert_bytes=expert_bytes,
    )


def findings(
    footprint: Footprint, engine: EngineConfig, group_sizes: Sequence[int]
) -> Iterator[Finding]:
    """Report the checkpoint, and whether a rank of the first group size fits into memory."""
    text = footprint.config.text
    yield Finding(
        "ok",
        "checkpoint",
        f"{footprint.num_tensors} tensors as the configuration says, {footprint.num_parameters:,} "
        f"parameters, {text.num_hidden_layers} layers, {text.n_routed_experts} experts",
    )
    sizes = {ranks: footprint.rank_gib(ranks, engine) for ranks in group_sizes}
    yield Finding(
        "ok",
        "memory",
        f"a rank needs about {', '.join(f'{gib:.1f} GiB at {n}' for n, gib in sizes.items())} "
        f"rank(s) per group: its weights, {_cache_text(footprint, engine)} and "
        f"{engine.feature_cache_gib + _WORKING_GIB:g} of working memory",
    )
    free, where = free_gib(engine.device)
    needed = sizes[group_sizes[0]]
    level = "ok" if needed <= free else "BAD"
    room = f"{free:.1f} GiB free on {where}, {needed:.1f} needed for a rank of {group_sizes[0]}"
    yield Finding(level, "memory", room)


def _cache_text(footprint: Footprint, engine: EngineConfig) -> str:
    gib = f"{footprint.cache_gib(engine):.4g} for the cache"
    if engine.cache_gib is None and engine.device != "cpu":
        return f"at least {gib}, which takes what is left of the card,"
    return gib


def free_gib(device: str) -> tuple[float, str]:
    """Return the free GiB for a rank on `device`, and where: the first GPU, or this machine."""
    use_expandable_segments(device)  # for the engine that answers rows later in this process
    where = f"GPU 0 of {torch.cuda.device_count()}" if device == "cuda" else "this machine"
    return free_bytes(torch.device(device)) / _GIB, where
