"""A checkpoint with random weights in the published layout on disk, of any size."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import KimiVLConfig
from model.network.weights import INDEX_FILE, Destination, destinations

_NUM_RANDOM = 16_777_259  # drawing billions of numbers takes long; these are repeated
_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.")


def write_random_checkpoint(directory: Path, config: KimiVLConfig) -> None:
    """Write the configuration and bfloat16 weights, a file for each layer; no tokenizer.

    Peak memory is one file's tensors.
    """
    _write_configs(directory, config)
    noise = torch.empty(_NUM_RANDOM).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    files: dict[str, dict[str, Destination]] = {}
    for name, target in destinations(config).items():
        layer = _LAYER.match(name)
        file_name = f"model-{'rest' if layer is None else layer[1].zfill(5)}.safetensors"
        files.setdefault(file_name, {})[name] = target
    for file_name, tensors in files.items():
        weights = {name: _random(noise, target.shape) for name, target in tensors.items()}
        save_file(weights, directory / file_name, metadata={"format": "pt"})
    _write_index(directory, files)


def _random(noise: Tensor, shape: tuple[int, ...]) -> Tensor:
    weights = torch.empty(shape, dtype=torch.bfloat16)
    for part in weights.view(-1).split(len(noise)):
        part.copy_(noise[: len(part)] * shape[-1] ** -0.5)
    return weights


def _write_configs(directory: Path, config: KimiVLConfig) -> None:
    values = {
        "model_type": "kimi_vl",
        "torch_dtype": "bfloat16",
        "media_placeholder_token_id": config.media_token_id,
        "vocab_size": config.text.vocab_size,
        "text_config": asdict(config.text),
        "vision_config": asdict(config.vision),
    }
    image = {
        "pad_input": True,
        "patch_size": config.image.patch_size,
        "in_token_limit": config.image.in_token_limit,
        "image_mean": config.image.image_mean,
        "image_std": config.image.image_std,
    }
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "preprocessor_config.json").write_text(json.dumps(image))


def _write_index(directory: Path, files: dict[str, dict[str, Destination]]) -> None:
    pairs: Iterable[tuple[str, str]] = (
        (name, file_name) for file_name, tensors in files.items() for name in tensors
    )
    index = {"metadata": {}, "weight_map": dict(pairs)}
    (directory / INDEX_FILE).write_text(json.dumps(index))
