"""Run the same weights in transformers: DeepSeek-V3 as decoder, MoonViT of Kimi-K2.5 for images.

Letters: B sequences, P patches, V vision tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25VisionConfig
from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25VisionModel

from model.config import TextConfig, VisionConfig
from model.network.kimi_vl import KimiVL
from model.network.vision import Grid

_TEXT_KEYS = """vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers
    num_attention_heads num_key_value_heads n_shared_experts n_routed_experts kv_lora_rank
    q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim n_group topk_group num_experts_per_tok
    first_k_dense_replace norm_topk_prob routed_scaling_factor rms_norm_eps
    max_position_embeddings""".split()


class Reference:
    """Decoder and vision tower as transformers builds them, with its own choice of kernels.

    The decoder shares the plain weights of `model`. The tower has random weights of its own,
    because their values do not affect the speed.
    """

    def __init__(self, model: KimiVL) -> None:
        self._device = model.device
        self._decoder = _decoder(model)
        with model.device:
            self._tower = _tower(model.config.vision)
        self._projector = model.multi_modal_projector

    @torch.inference_mode()
    def prefill(self, token_ids: Tensor) -> object:
        """Compute prompts [B, length], and return their cache."""
        output = self._decoder(token_ids, use_cache=True, logits_to_keep=1)
        output.logits.argmax(-1)
        return output.cache

    @torch.inference_mode()
    def decoding(self, context_len: int, num_sequences: int) -> "Decoding":
        """Start `num_sequences` that decode, each after a context of `context_len` tokens.

        Their caches are noise of the same size as the cache of one prompt: with one context for
        all, they would choose the same experts.
        """
        vocab_size = self._decoder.config.vocab_size
        prompt = torch.randint(0, vocab_size, (1, context_len), device=self._device)
        cache = self._decoder(prompt, use_cache=True, logits_to_keep=1).cache
        cache.batch_repeat_interleave(num_sequences)
        for layer in cache.layers:
            for tensor in (layer.keys, layer.values):
                tensor.normal_(std=float(tensor.float().std()))
        tokens = torch.randint(0, vocab_size, (num_sequences, 1), device=self._device)
        return Decoding(self._decoder, cache, tokens)

    @torch.inference_mode()
    def encode_images(self, patches: Tensor, grid_hw: Sequence[Grid]) -> Tensor:
        """Encode patches [P, 3, patch, patch] uint8 to features [V, D], through our projector."""
        pixels = (patches.float() / 255.0 - 0.5) / 0.5
        grid_thw = torch.tensor([(1, *grid) for grid in grid_hw], device=self._device)
        output = self._tower(pixels.bfloat16(), grid_thw=grid_thw)
        return self._projector(output.pooler_output)


class Decoding:
    """Greedy decoding of B sequences."""

    def __init__(self, decoder: torch.nn.Module, cache: object, tokens: Tensor) -> None:
        self._decoder = decoder
        self._cache = cache
        self._tokens = tokens  # [B, 1]

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one token for each sequence."""
        output = self._decoder(self._tokens, cache=self._cache, use_cache=True)
        self._tokens = output.logits[:, -1:].argmax(-1)


def _decoder(model: KimiVL) -> DeepseekV3ForCausalLM:
    text: TextConfig = model.config.text
    config = DeepseekV3Config(
        **{name: getattr(text, name) for name in _TEXT_KEYS},
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        decoder = DeepseekV3ForCausalLM(config)
    state = model.language_model.state_dict()
    decoder.load_state_dict(state, strict=True, assign=True)
    decoder.model.rotary_emb = type(decoder.model.rotary_emb)(config).to(model.device)
    return decoder.eval()


def _tower(vision: VisionConfig) -> Kimi_K25VisionModel:
    config = Kimi_K25VisionConfig(
        patch_size=vision.patch_size,
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_attention_heads=vision.num_attention_heads,
        intermediate_size=vision.intermediate_size,
        pos_emb_height=vision.init_pos_emb_height,
        pos_emb_width=vision.init_pos_emb_width,
        rope_parameters={"rope_type": "axial", "rope_theta": 10000.0},
    )
    return Kimi_K25VisionModel(config).bfloat16().eval()
