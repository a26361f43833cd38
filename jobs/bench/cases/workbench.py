"""Define `Workbench`: what the parts of the benchmark share, made when first needed."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from jobs.bench.cases.reference import Reference
from jobs.bench.measure.shapes import RandomPrompts, random_model
from model.config import KimiVLConfig
from model.malloc import keep_freed_memory
from model.network.kimi_vl import KimiVL
from model.network.onednn import prepack
from model.network.vision import Grid


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work each part does."""

    num_rounds: int = 3  # in which works take turns
    prompt_len: int = 128
    prefill_prompts: int = 8
    num_sequences: tuple[int, ...] = (1, 8, 32, 64)  # that decode at the same time
    decode_steps: int = 3  # per round
    image: Grid = (64, 64)  # 896 x 896 pixels
    frame: Grid = (18, 32)  # 448 x 252 pixels
    num_frames: int = 32
    contexts: tuple[int, ...] = (1024, 4096, 16384, 65536)
    context_sequences: int = 8
    num_questions: int = 8
    num_waiting: int = 1000
    waiting_steps: int = 200
    num_clips: int = 64
    num_texts: int = 500


@dataclass(kw_only=True)
class Workbench:
    """The shapes, sizes and network of a benchmark run."""

    config: KimiVLConfig
    long_config: KimiVLConfig  # for the part `contexts`
    checkpoint: Path  # for the parts that caption clips
    num_threads: int  # of torch
    compares: bool  # with transformers
    num_ranks: int = 2  # for the part `ranks`
    sizes: Sizes = field(default_factory=Sizes)

    @cached_property
    def model(self) -> KimiVL:
        """The network of `config` with random weights, prepacked as an engine does."""
        model, _ = self._networks
        return model

    @cached_property
    def reference(self) -> Reference | None:
        """The same weights in transformers, if a comparison was requested."""
        _, reference = self._networks
        return reference

    @cached_property
    def _networks(self) -> tuple[KimiVL, Reference | None]:
        model = random_model(self.config)
        reference = Reference(model) if self.compares else None  # keeps the plain weights
        prepack(model)
        keep_freed_memory()
        return model, reference

    @cached_property
    def prompts(self) -> RandomPrompts:
        """Prompts for `config`, without common prefixes."""
        return RandomPrompts(self.config)
