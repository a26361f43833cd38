"""Chooses the dtype of weights and activations where the user leaves it open: `dtype="auto"`.

`auto` keeps the stored dtype, with one exception: on a CPU without bfloat16 products, bfloat16
weights become float32 where the memory allows it. Products are then several times as fast. Where it
does not, the weights stay bfloat16 and products of many rows widen them (`model.network.onednn`).
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from model.engine.config import EngineConfig
from model.memory import available_bytes
from model.network.onednn import has_bfloat16_products
from model.network.weights import EMBEDDING, stored_tensors

_GIB = 1 << 30
_MOST_OF_FREE = 0.5  # for float32 weights; the rest is for caches, steps and other processes


@dataclass(frozen=True)
class DtypeChoice:
    """The dtype of weights and activations."""

    dtype: torch.dtype | None  # None: as stored
    why: str = ""  # for people; empty where it is the stored dtype, or the one that was asked for


AS_STORED = DtypeChoice(None)
_FLOAT32 = "computes in float32, because this processor has no instructions for bfloat16"


def choose_dtype(checkpoint: Path, config: EngineConfig) -> DtypeChoice:
    """Choose the dtype for a checkpoint on this machine; reads at most the headers of its files.

    Raises:
        CheckpointError: the headers do not match the index.
    """
    if config.dtype != "auto":
        return DtypeChoice(getattr(torch, config.dtype))
    if torch.device(config.device).type != "cpu" or has_bfloat16_products():
        return AS_STORED
    stored = stored_tensors(checkpoint)
    if EMBEDDING not in stored or stored[EMBEDDING].dtype != "BF16":
        return AS_STORED
    ranks = config.ranks_per_machine
    needed = 4 * ranks * sum(prod(tensor.shape) for tensor in stored.values())
    try:
        free = available_bytes()
    except ValueError:  # this system does not say what is free; nor does `require_room` refuse then
        return DtypeChoice(torch.float32, _FLOAT32)
    if needed <= _MOST_OF_FREE * free:
        return DtypeChoice(torch.float32, _FLOAT32)
    return DtypeChoice(
        torch.bfloat16,
        f"keeps weights in bfloat16, since float32 ones of {ranks} rank{'s' * (ranks > 1)} would "
        f"take {needed / _GIB:.1f} GiB, more than half of the {free / _GIB:.1f} GiB that are free; "
        "products of many rows turn them into float32 block by block, because this processor has "
        "no instructions for bfloat16",
    )
