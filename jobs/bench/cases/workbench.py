"""`Workbench`: what the parts of the benchmark share, made when the first of them asks for it."""

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
    """How much of each work is done."""

    num_rounds: int = 3  # of works in turns
    prompt_len: int = 128
    prefill_prompts: int = 8
    num_sequences: tuple[int, ...] = (1, 8, 32, 64)  # that decode at the same time
    decode_steps: int = 3  # of a round
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
    """Shapes, sizes and the network; `num_threads` are torch's."""

    config: KimiVLConfig
    long_config: KimiVLConfig  # of the part that lengthens contexts
    checkpoint: Path  # of the parts that look at clips
    num_threads: int
    compares: bool
    num_ranks: int = 2  # of the part that divides the experts
    sizes: Sizes = field(default_factory=Sizes)

    @cached_property
    def model(self) -> KimiVL:
        """The network of `config` with random weights, as an engine loads it."""
        model, _ = self._networks
        return model

    @cached_property
    def reference(self) -> Reference | None:
        """The same weights in transformers, if that is asked for."""
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
        """Prompts for `config`, none like another."""
        return RandomPrompts(self.config)
