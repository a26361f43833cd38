"""Write a trained model as a checkpoint directory in the published layout."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from jobs.demo.language import vocabulary_lines
from jobs.training.curriculum import IMAGE, TEXT, VISION
from jobs.training.vocabulary import write_tokenizer
from model.network.kimi_vl import KimiVL
from model.network.rope import text_inv_freq
from model.network.weights import INDEX_FILE, check_checkpoint, destinations


def write_empty_checkpoint(directory: Path) -> None:
    """Write all files of the checkpoint except its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(directory, vocabulary_lines(), num_merges=600)
    write_configs(directory, vocab_size, TEXT, VISION, IMAGE, torch.bfloat16)


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


def export(model: KimiVL, empty_checkpoint: Path, directory: Path) -> None:
    """Write the whole checkpoint in bfloat16, and check that it is complete.

    Args:
        model: the trained model.
        empty_checkpoint: directory of the other files that it was trained with.
        directory: created if missing; existing weights are replaced.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for file in empty_checkpoint.iterdir():
        shutil.copyfile(file, directory / file.name)
    parameters = dict(model.named_parameters())
    weights: dict[str, Tensor] = {}
    for name, target in sorted(destinations(model.config).items()):
        tensor = parameters[target.parameter].detach()
        if target.expert is not None:
            tensor = tensor[target.expert, target.first_row : target.first_row + target.shape[0]]
        # The bias decides between experts with nearly equal scores, so it is stored exactly.
        is_bias = name.endswith("e_score_correction_bias")
        weights[name] = tensor.to(torch.float32 if is_bias else torch.bfloat16).clone()
    text = model.config.text
    for layer in range(text.num_hidden_layers):
        name = f"language_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        weights[name] = text_inv_freq(text.qk_rope_head_dim, text.rope_theta)
    write_weights(directory, weights, num_shards=2)
    check_checkpoint(directory)


def write_weights(directory: Path, weights: Mapping[str, Tensor], num_shards: int) -> None:
    """Write tensors as shards with an index, as published."""
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
