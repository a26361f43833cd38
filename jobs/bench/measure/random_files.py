"""Random weights: numbers to fill tensors with, and whole checkpoints in the published layout."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import KimiVLConfig
from model.network.weights import INDEX_FILE, Destination, destinations

# Drawing billions of numbers takes long, so these are repeated. A prime number of them, so that no
# row of a matrix repeats another row.
_NUM_RANDOM = 16_777_259
_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.")


class Noise:
    """Random numbers on a device that fill matrices of any size and keep activations near one."""

    def __init__(self, device: torch.device | None = None) -> None:
        generator = torch.Generator(device or "cpu").manual_seed(0)
        numbers = torch.empty(_NUM_RANDOM, device=device)
        self._numbers = numbers.uniform_(-1, 1, generator=generator)

    def fill(self, weights: Tensor) -> Tensor:
        """Fill `weights` [..., inputs], scaled by the number of inputs, and return it."""
        scale = weights.shape[-1] ** -0.5
        for chunk in weights.view(-1).split(_NUM_RANDOM):
            chunk.copy_(self._numbers[: len(chunk)] * scale)
        return weights


def write_random_checkpoint(directory: Path, config: KimiVLConfig) -> None:
    """Write the configuration and bfloat16 weights, one file per layer, without a tokenizer.

    Peak memory is the tensors of one file.
    """
    _write_configs(directory, config)
    noise = Noise()
    files: dict[str, dict[str, Destination]] = {}
    for name, target in destinations(config).items():
        layer = _LAYER.match(name)
        file_name = f"model-{'rest' if layer is None else layer[1].zfill(5)}.safetensors"
        files.setdefault(file_name, {})[name] = target
    for file_name, tensors in files.items():
        weights = {
            name: noise.fill(torch.empty(target.shape, dtype=torch.bfloat16))
            for name, target in tensors.items()
        }
        save_file(weights, directory / file_name, metadata={"format": "pt"})
    weight_map = {name: file_name for file_name, tensors in files.items() for name in tensors}
    _write_json(directory / INDEX_FILE, {"metadata": {}, "weight_map": weight_map})


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
    _write_json(directory / "config.json", values)
    _write_json(directory / "preprocessor_config.json", image)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value))
