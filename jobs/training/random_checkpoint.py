"""Write a checkpoint directory in the published layout with random weights.

Training starts from such a checkpoint, and tests use them: every file, name and dtype is as in a
published Kimi-VL checkpoint, and only the sizes differ.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from jobs.training.vocabulary import write_tokenizer
from model.config import KimiVLConfig
from model.network.rope import text_inv_freq
from model.network.weights import INDEX_FILE, SINGLE_FILE, destinations

# The published decoder at reduced width: latent attention, one dense layer, 16 experts.
TEXT: Mapping[str, Any] = {
    "max_position_embeddings": 8192,
    "hidden_size": 128,
    "intermediate_size": 384,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 16,
    "ep_size": 1,
    "routed_scaling_factor": 2.446,
    "kv_lora_rank": 48,
    "q_lora_rank": None,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "qk_nope_head_dim": 32,
    "topk_method": "noaux_tc",
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 4,
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
    "tie_word_embeddings": False,
}
VISION: Mapping[str, Any] = {
    "model_type": "moonvit",
    "patch_size": 14,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "hidden_size": 96,
    "intermediate_size": 256,
    "init_pos_emb_height": 16,
    "init_pos_emb_width": 16,
    "merge_kernel_size": [2, 2],
}
IMAGE: Mapping[str, Any] = {
    "patch_size": 14,
    "pad_input": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "in_token_limit": 576,
    "merge_kernel_size": [2, 2],
    "num_pooled_tokens": 1024,
}


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
    """Write a whole checkpoint directory and return its configuration.

    Args:
        directory: created if missing.
        lines: text on which the vocabulary is trained.
        num_merges: merges of the vocabulary, beyond the 256 bytes.
        seed: seed of the random weights.
        text: `text_config` without the vocabulary and its ids.
        vision: `vision_config`.
        image: `preprocessor_config.json`.
        dtype: type of the stored weights.
        num_shards: number of weight files; 1 writes a single file without an index.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(directory, lines, num_merges)
    write_configs(directory, vocab_size, text, vision, image, dtype)
    config = KimiVLConfig.from_checkpoint(directory)
    write_weights(directory, random_weights(config, seed, dtype), num_shards)
    return config


def write_configs(
    directory: Path,
    vocab_size: int,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    image: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    """Write the three JSON files, with the token ids that `tokenizer_config.json` names."""
    tokens = json.loads((directory / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids = {token["content"]: int(token_id) for token_id, token in tokens.items()}
    dtype_name = str(dtype).removeprefix("torch.")
    config = {
        "architectures": ["KimiVLForConditionalGeneration"],
        "model_type": "kimi_vl",
        "torch_dtype": dtype_name,
        "ignore_index": -100,
        "media_placeholder_token_id": ids["<|media_pad|>"],
        "tie_word_embeddings": False,
        "vocab_size": vocab_size,
        "text_config": {
            **text,
            "vocab_size": vocab_size,
            "bos_token_id": ids["[BOS]"],
            "eos_token_id": ids["[EOS]"],
            "pad_token_id": ids["[PAD]"],
            "torch_dtype": dtype_name,
        },
        "vision_config": {**vision, "torch_dtype": dtype_name},
    }
    generation = {"eos_token_id": [ids["<|im_end|>"]]}
    for name, content in (
        ("config.json", config),
        ("preprocessor_config.json", image),
        ("generation_config.json", generation),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")


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


def write_weights(directory: Path, weights: Mapping[str, Tensor], num_shards: int) -> None:
    """Write tensors as a single file, or as shards with an index, as published."""
    if num_shards == 1:
        save_file(dict(weights), directory / SINGLE_FILE, metadata={"format": "pt"})
        return
    names = list(weights)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        tensors = {name: weights[name] for name in names[shard::num_shards]}
        save_file(tensors, directory / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file_name)
    total_size = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
