"""Small checkpoints in the published on-disk layout, made in milliseconds."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from jobs.training.random_checkpoint import (
    IMAGE,
    TEXT,
    VISION,
    random_weights,
    write_checkpoint,
)
from model.config import ImageConfig, KimiVLConfig, TextConfig, VisionConfig
from model.network.kimi_vl import KimiVL

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


@cache
def reference_weights(config: KimiVLConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by their names in the files."""
    return random_weights(config, seed, torch.float32)
