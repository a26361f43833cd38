"""Define `DeviceBench`: the network and the card that the parts of the benchmark share."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from jobs.bench.device.card import Card
from jobs.bench.device.clock import timed_on
from jobs.bench.measure.shapes import RandomPrompts, engine_with, random_model
from jobs.planning.network import Network
from model.config import BLOCK_SIZE, KimiVLConfig
from model.engine.config import EngineConfig
from model.engine.engine import Engine, make_fast
from model.memory import free_bytes
from model.network.kimi_vl import KimiVL
from model.network.vision import Grid

if TYPE_CHECKING:  # transformers is needed for a comparison only
    from jobs.bench.cases.reference import Reference

GIB = 1 << 30
_STEP_GIB = 6.0  # room for the tensors of a step of 8,192 tokens, and for CUDA graphs


class NoRoomError(Exception):
    """A case needs more memory than the card has left; the message says how much."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work each part does."""

    num_rounds: int = 3  # in which works take turns
    prompt_len: int = 2048
    prefill_prompts: tuple[int, ...] = (1, 4)  # in one step
    num_sequences: tuple[int, ...] = (1, 32, 64, 128, 256)  # that decode at the same time
    decode_steps: int = 16  # per round
    image: Grid = (128, 128)  # 1792 x 1792 pixels
    frame: Grid = (18, 32)  # 448 x 252 pixels
    num_frames: int = 32
    num_questions: int = 8
    question_len: int = 32
    row_frames: int = 8
    row_frame: Grid = (32, 32)  # 448 x 448 pixels, 256 tokens; with the text 2,112 tokens a row
    row_text: int = 32  # tokens, beside four before each frame
    row_generated: int = 200


# For a dry run on a CPU: every line runs, within seconds.
DRY_SIZES = Sizes(
    num_rounds=1, prompt_len=48, num_sequences=(1, 3), decode_steps=2, image=(4, 6), frame=(2, 4),
    num_frames=2, num_questions=2, question_len=4, row_frames=2, row_frame=(2, 4), row_text=4,
    row_generated=4,
)  # fmt: skip


@dataclass(kw_only=True)
class DeviceBench:
    """A network with random weights on a device, made when first needed."""

    config: KimiVLConfig
    device: torch.device
    compares: bool  # with transformers
    sizes: Sizes
    skipped: dict[str, str] = field(default_factory=dict)  # case -> why it was not measured

    @cached_property
    def network(self) -> Network:
        """The sizes of the network."""
        return Network(self.config)

    @cached_property
    def card(self) -> Card:
        """What the card can do."""
        return Card(self.device)

    @property
    def model(self) -> KimiVL:
        """The network, made ready as an engine does when it loads a checkpoint."""
        return self._networks[0]

    @property
    def reference(self) -> "Reference | None":
        """The same weights in transformers, if a comparison was requested."""
        return self._networks[1]

    @cached_property
    def _networks(self) -> "tuple[KimiVL, Reference | None]":
        model = random_model(self.config, self.device)
        reference = None
        if self.compares:
            from jobs.bench.cases.reference import Reference

            reference = Reference(model)  # keeps the plain weights
        make_fast(model)
        return model, reference

    @cached_property
    def prompts(self) -> RandomPrompts:
        """Prompts without common prefixes."""
        return RandomPrompts(self.config)

    def timed(self, work: Callable[[], object]) -> float:
        """Return the seconds that the device takes for `work`."""
        return timed_on(self.device, work)

    @contextmanager
    def engine(
        self, num_sequences: int, sequence_len: int, *, has_graphs: bool = True
    ) -> Iterator[Engine]:
        """Make an engine whose cache holds so many sequences of so many tokens; close it after.

        Without `has_graphs` every step is launched operation by operation. Raises NoRoomError.
        """
        num_blocks = num_sequences * (sequence_len // BLOCK_SIZE + 2)
        cache_bytes = num_blocks * BLOCK_SIZE * self.network.cache_bytes
        logits_bytes = 8 * num_sequences * self.config.text.vocab_size
        self.require(cache_bytes + logits_bytes)
        config = EngineConfig(
            device=str(self.device),
            max_batch_size=num_sequences,
            cache_gib=cache_bytes / GIB,
            cuda_graphs=None if has_graphs else False,
            runs_ahead=True,  # as on every GPU; a dry run does so too
        )
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        engine = engine_with(self.model, config)
        try:
            yield engine
        finally:
            engine.close()

    def peak_gib(self) -> float | None:
        """Return the most memory of tensors since the last engine was begun; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self.device) / GIB, 1)

    def require(self, num_bytes: float) -> None:
        """Raise NoRoomError if the card has no room for so many bytes and a step; free garbage."""
        gc.collect()  # engines that are closed, with their graphs
        if self.device.type != "cuda":
            return
        needed, free = num_bytes + _STEP_GIB * GIB, free_bytes(self.device)
        if needed > free:
            raise NoRoomError(f"needs {needed / GIB:.1f} GiB, and {free / GIB:.1f} are free")

    def skip(self, case: str, reason: NoRoomError) -> None:
        """Say and note that a case was not measured."""
        self.skipped[case] = str(reason)
        print(f"  {case} is left out: it {reason}", flush=True)


def weights_gib(config: KimiVLConfig, num_copies: int) -> float:
    """Return the GiB of so many copies of the weights, and of the least engine beside them."""
    return num_copies * Network(config).weights_bytes(1) / GIB + _STEP_GIB + 2.0
