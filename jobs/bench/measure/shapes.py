"""Make shapes to measure with random weights, engines for them, and prompts of random tokens."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.bench.measure.random_files import Noise
from jobs.planning.shapes import moonlight
from model.config import KimiVLConfig, VisionConfig
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.inputs.prompt import Prompt
from model.inputs.tokenizer import Tokenizer
from model.network.kimi_vl import KimiVL
from model.network.moe import Shards
from model.network.vision import Grid
from model.network.weights import empty_model
from parallel.ranks.worker import Engine as AnyEngine


def narrow() -> KimiVLConfig:
    """Return a shape for long contexts: two layers, published latent width, else a quarter."""
    published = moonlight(2)
    text = replace(
        published.text, vocab_size=8192, hidden_size=512, intermediate_size=2816,
        num_attention_heads=4, num_key_value_heads=4, moe_intermediate_size=352,
        n_routed_experts=16, num_experts_per_tok=4,
    )  # fmt: skip
    vision = VisionConfig(
        num_attention_heads=2, num_hidden_layers=1, hidden_size=16, intermediate_size=16
    )
    return replace(published, text=text, vision=vision, media_token_id=text.vocab_size - 1)


def random_model(
    config: KimiVLConfig, device: torch.device | None = None, shards: Shards | None = None
) -> KimiVL:
    """Make the network in bfloat16, with random weights that keep activations near one.

    They are made on `device`, by default the CPU; `shards` are those of `KimiVL`. Raises
    ValueError: they do not fit there.
    """
    device = device or torch.device("cpu")
    model = empty_model(config, torch.bfloat16, device, shards)
    noise = Noise(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(float(name.endswith("weight")))
            else:
                noise.fill(parameter)
    return model.eval().requires_grad_(requires_grad=False)


def engine_for(model: KimiVL, max_batch_size: int, num_threads: int, cache_gib: float) -> Engine:
    """Make an engine on a CPU; see `engine_with`."""
    config = EngineConfig(
        max_batch_size=max_batch_size, cache_gib=cache_gib, num_threads=num_threads
    )
    return engine_with(model, config)


def engine_with(model: KimiVL, config: EngineConfig) -> Engine:
    """Make an engine; its tokenizer decodes to no text, because text is not measured."""
    return Engine(model, _bytes_alone(model.config.text.vocab_size), config)


@cache
def _bytes_alone(vocab_size: int) -> Tokenizer:
    """Make a tokenizer of single bytes; with the published number of ids it takes two seconds."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, {}, vocab_size=vocab_size)


class RandomPrompts:
    """Makes prompts that share no prefix with earlier ones."""

    def __init__(self, config: KimiVLConfig, seed: int = 0) -> None:
        self._media_token_id = config.media_token_id
        self._rng = np.random.default_rng(seed)

    def ids(self, length: int) -> NDArray[np.int32]:
        """Draw token ids, none of which is a media pad."""
        return self._rng.integers(0, self._media_token_id, length, dtype=np.int32)

    def text(self, length: int) -> Prompt:
        """Make a prompt without images."""
        return text_prompt(self.ids(length))

    def about(self, grids: Sequence[Grid], questions: int, length: int) -> list[Prompt]:
        """Make questions of `length` tokens about the same images, each image after four tokens."""
        pieces: list[NDArray[np.int32]] = []
        for height, width in grids:
            pads = np.full(height * width // 4, self._media_token_id, np.int32)
            pieces += [self.ids(4), pads]
        prefix = np.concatenate(pieces)
        images = {"patches": self.patches(grids), "grid_hw": np.array(grids, np.int32)}
        return [
            Prompt(token_ids=np.concatenate((prefix, self.ids(length))), **images)
            for _ in range(questions)
        ]

    def patches(self, grids: Sequence[Grid]) -> NDArray[np.uint8]:
        """Draw noise as patches [P, 3, 14, 14]."""
        num_patches = sum(height * width for height, width in grids)
        return self._rng.integers(0, 256, (num_patches, 3, 14, 14), dtype=np.uint8)


def text_prompt(ids: NDArray[np.int32]) -> Prompt:
    """Make a prompt without images."""
    no_patches, no_grids = np.zeros((0, 3, 14, 14), np.uint8), np.zeros((0, 2), np.int32)
    return Prompt(token_ids=ids, patches=no_patches, grid_hw=no_grids)


def add_all(engine: AnyEngine, prompts: Sequence[Prompt], max_tokens: int) -> None:
    """Queue prompts, whose requests are named "0", "1" and so on."""
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, SamplingParams(max_tokens=max_tokens, loop_guard=0))


def run_until_done(engine: AnyEngine) -> None:
    """Step until every request is answered."""
    while engine.has_work:
        engine.step()
