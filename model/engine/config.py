"""`EngineConfig`: how an engine runs a checkpoint."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How one engine runs a checkpoint; ValueError names a setting that is out of its range."""

    device: str = "cpu"
    dtype: str = "auto"  # of weights and activations; "auto": see `model.engine.dtype`
    # What is None here is chosen for the device, see `model.engine.fit.capacity`.
    max_batch_size: int | None = None  # sequences that generate together
    max_model_len: int | None = None  # prompt + generated tokens; None: the checkpoint's context
    max_step_tokens: int = 8192  # tokens of one step; longer prompts are computed in chunks
    max_vision_patches: int = 16384  # of one vision call; a larger image has its own call
    cache_gib: float | None = None  # of the kv cache
    cache_fraction: float | None = None  # replaces it: part of what is free after loading
    feature_cache_gib: float = 0.5  # of features of images that later prompts may hold again
    num_threads: int = 1  # of torch, on CPUs
    ranks_per_machine: int = 1  # that may share its memory, at most; only dtype="auto" asks
    cuda_graphs: bool | None = None  # replay decode steps; None: where the network allows it
    runs_ahead: bool | None = None  # begin a step before the last one's tokens are known; None:
    # on GPUs, where the host would else wait for the device

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(
                f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}"
            )
        for name in (
            "max_batch_size max_step_tokens max_vision_patches num_threads ranks_per_machine"
        ).split():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("cache_gib", "feature_cache_gib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if self.cache_fraction is not None and not 0 < self.cache_fraction <= 1:
            raise ValueError(f"cache_fraction must be in (0, 1], got {self.cache_fraction}")
        if self.cuda_graphs and not self.device.startswith("cuda"):
            raise ValueError(f"cuda_graphs needs a device=cuda, got device={self.device!r}")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"max_model_len must be at least 2, got {self.max_model_len}")
