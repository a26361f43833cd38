"""Make shapes to measure with random weights, engines for them, and prompts of random tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.bench.measure.random_files import Noise
from jobs.planning.shapes import config_of
from model.config import KimiVLConfig, TextConfig, VisionConfig
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.inputs.prompt import Prompt
from model.inputs.tokenizer import Tokenizer
from model.network.kimi_vl import KimiVL
from model.network.vision import Grid
from model.network.weights import empty_model


def narrow() -> KimiVLConfig:
    """Return a shape for long contexts: two layers, published latent width, else a quarter."""
    return config_of(
        TextConfig(
            vocab_size=8192, hidden_size=512, intermediate_size=2816, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=1e-5, rope_theta=800000.0,
            max_position_embeddings=131072, kv_lora_rank=512, q_lora_rank=None,
            qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, moe_intermediate_size=352,
            n_routed_experts=16, num_experts_per_tok=4, n_shared_experts=2,
            first_k_dense_replace=1, moe_layer_freq=1, scoring_func="sigmoid",
            topk_method="noaux_tc", n_group=1, topk_group=1, norm_topk_prob=True,
            routed_scaling_factor=2.446,
        ),
        VisionConfig(
            num_attention_heads=2, num_hidden_layers=1, hidden_size=16, intermediate_size=16
        ),
    )  # fmt: skip


def random_model(config: KimiVLConfig) -> KimiVL:
    """Make the network in bfloat16, with random weights that keep activations near one."""
    model = empty_model(config, torch.bfloat16, torch.device("cpu"))
    noise = Noise()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(float(name.endswith("weight")))
            else:
                noise.fill(parameter)
    return model.eval().requires_grad_(requires_grad=False)


def engine_for(model: KimiVL, max_batch_size: int, num_threads: int, cache_gib: float) -> Engine:
    """Make an engine; its tokenizer decodes to no text, because text is not measured."""
    bytes_alone = {bytes([byte]): byte for byte in range(256)}
    tokenizer = Tokenizer(bytes_alone, {}, vocab_size=model.config.text.vocab_size)
    config = EngineConfig(
        max_batch_size=max_batch_size, cache_gib=cache_gib, num_threads=num_threads
    )
    return Engine(model, tokenizer, config)


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
        prefix, patches = np.concatenate(pieces), self.patches(grids)
        grid_hw = np.array(grids, np.int32)
        return [
            Prompt(
                token_ids=np.concatenate((prefix, self.ids(length))),
                patches=patches,
                grid_hw=grid_hw,
            )
            for _ in range(questions)
        ]

    def patches(self, grids: Sequence[Grid]) -> NDArray[np.uint8]:
        """Draw noise as patches [P, 3, 14, 14]."""
        num_patches = sum(height * width for height, width in grids)
        return self._rng.integers(0, 256, (num_patches, 3, 14, 14), dtype=np.uint8)


def text_prompt(ids: NDArray[np.int32]) -> Prompt:
    """Make a prompt without images."""
    return Prompt(
        token_ids=ids,
        patches=np.zeros((0, 3, 14, 14), np.uint8),
        grid_hw=np.zeros((0, 2), np.int32),
    )


def add_all(engine: Engine, prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
    """Queue prompts, and return the ids of their requests."""
    params = SamplingParams(max_tokens=max_tokens, loop_guard=0)
    names = [str(number) for number in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        engine.add(name, prompt, params)
    return names


def run_until_done(engine: Engine) -> None:
    """Step until every request is answered."""
    while engine.has_work:
        engine.step()
