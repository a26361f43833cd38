"""Write a trained model as a checkpoint directory in the published layout."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from jobs.demo.language import vocabulary_lines
from jobs.training.curriculum import IMAGE, TEXT, VISION
from jobs.training.random_checkpoint import write_configs, write_weights
from jobs.training.vocabulary import write_tokenizer
from model.network.kimi_vl import KimiVL
from model.network.rope import text_inv_freq
from model.network.weights import check_checkpoint, destinations


def write_empty_checkpoint(directory: Path) -> None:
    """Write all files of the checkpoint except its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(directory, vocabulary_lines(), num_merges=600)
    write_configs(directory, vocab_size, TEXT, VISION, IMAGE, torch.bfloat16)


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
