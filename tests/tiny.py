"""Small checkpoints in the published on-disk layout, made in milliseconds."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from jobs.training import curriculum
from jobs.training.curriculum import VISION
from jobs.training.export import write_configs, write_weights
from jobs.training.vocabulary import write_tokenizer
from model.config import ImageConfig, KimiVLConfig, TextConfig, VisionConfig
from model.network.kimi_vl import KimiVL
from model.network.rope import text_inv_freq
from model.network.weights import SINGLE_FILE, destinations

# The demo checkpoint's shape, with as many layers and as small images as tests need.
TEXT: Mapping[str, Any] = {
    **curriculum.TEXT,
    "num_hidden_layers": 3,
    "rope_theta": 800000.0,
}
IMAGE: Mapping[str, Any] = {**curriculum.IMAGE, "in_token_limit": 576}
HALF = (0.5, 0.5, 0.5)
LINES = ("a red circle moves left on black", "a blue square stands still on white") * 8

# `text_config` of Kimi-VL-A3B-Instruct as published.
PUBLISHED_TEXT: Mapping[str, Any] = {
    "vocab_size": 163840,
    "max_position_embeddings": 131072,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "ep_size": 1,
    "routed_scaling_factor": 2.446,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc",
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 6,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "pretraining_tp": 1,
    "use_cache": True,
    "rope_theta": 800000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 163584,
    "pad_token_id": 163839,
    "eos_token_id": 163585,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
PUBLISHED_VISION: Mapping[str, Any] = {
    "model_type": "moonvit",
    "patch_size": 14,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "init_pos_emb_height": 64,
    "init_pos_emb_width": 64,
    "merge_kernel_size": [2, 2],
    "torch_dtype": "bfloat16",
}
PUBLISHED_IMAGE: Mapping[str, Any] = {**IMAGE, "in_token_limit": 4096}


def write_published_configs(directory: Path, **text: object) -> None:
    """The JSON files of the published checkpoint, with changes to `text_config`."""
    config = {
        "architectures": ["KimiVLForConditionalGeneration"],
        "model_type": "kimi_vl",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.3",
        "ignore_index": -100,
        "media_placeholder_token_id": 163605,
        "tie_word_embeddings": False,
        "vocab_size": 163840,
        "auto_map": {"AutoConfig": "configuration_kimi_vl.KimiVLConfig"},
        "text_config": {**PUBLISHED_TEXT, **text},
        "vision_config": PUBLISHED_VISION,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_IMAGE))


def tiny_config(
    text: Mapping[str, Any] | None = None, vision: Mapping[str, Any] | None = None
) -> KimiVLConfig:
    """A configuration without files; `text` and `vision` change the demo checkpoint's."""
    text_fields = {"vocab_size": 320, **TEXT, **(text or {})}
    vision_fields = {**VISION, **(vision or {}), "merge_kernel_size": (2, 2)}
    known_text = TextConfig.__dataclass_fields__
    known_vision = VisionConfig.__dataclass_fields__
    return KimiVLConfig(
        text=TextConfig(**{k: v for k, v in text_fields.items() if k in known_text}),
        vision=VisionConfig(**{k: v for k, v in vision_fields.items() if k in known_vision}),
        image=ImageConfig(in_token_limit=64, image_mean=HALF, image_std=HALF),
        media_token_id=319,
        stop_token_ids=(318,),
    )


def tiny_model(config: KimiVLConfig, seed: int = 0) -> KimiVL:
    """The network with random float32 weights, as a checkpoint of `config` would fill it."""
    generator = torch.Generator().manual_seed(seed)
    model = KimiVL(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(noise * 0.1 + float("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(requires_grad=False)


def tiny_checkpoint(directory: Path, **changes: Any) -> KimiVLConfig:
    """A checkpoint directory of the demo's shape with a small vocabulary, in float32."""
    options = {"lines": LINES, "num_merges": 40, "dtype": torch.float32, **changes}
    return write_checkpoint(directory, **options)


def write_checkpoint(
    directory: Path,
    *,
    lines: Iterable[str],
    num_merges: int,
    seed: int = 0,
    text: Mapping[str, Any] = TEXT,
    vision: Mapping[str, Any] = VISION,
    image: Mapping[str, Any] = IMAGE,
    dtype: torch.dtype = torch.bfloat16,
    num_shards: int = 2,
) -> KimiVLConfig:
    """Write a whole checkpoint directory and return its configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(directory, lines, num_merges)
    write_configs(directory, vocab_size, text, vision, image, dtype)
    config = KimiVLConfig.from_checkpoint(directory)
    weights = random_weights(config, seed, dtype)
    if num_shards == 1:
        save_file(weights, directory / SINGLE_FILE, metadata={"format": "pt"})
    else:
        write_weights(directory, weights, num_shards)
    return config


def random_weights(config: KimiVLConfig, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Make a random tensor for every name in a checkpoint of `config`, unused buffers included."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, target in sorted(destinations(config).items()):
        noise = torch.randn(target.shape, generator=generator)
        if len(target.shape) == 1:
            # Norms are around 1, biases around 0.
            is_norm = "norm" in name and name.endswith("weight")
            noise = noise * 0.1 + (1.0 if is_norm else 0.0)
        else:
            noise = noise * target.shape[-1] ** -0.5
        weights[name] = noise.to(dtype)
    if config.text.kv_lora_rank is not None:
        inv_freq = text_inv_freq(config.text.qk_rope_head_dim, config.text.rope_theta)
        for layer in range(config.text.num_hidden_layers):
            name = f"language_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            weights[name] = inv_freq.clone()
    return weights


@cache
def reference_weights(config: KimiVLConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by their names in the files."""
    return random_weights(config, seed, torch.float32)
