"""`KimiVL`: vision tower, projector and language model, with the names of the published checkpoint.

Letters: T tokens, D hidden size, P patches, V vision tokens (V = P / 4), W vision width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import KimiVLConfig
from model.network.batch import TokenBatch
from model.network.decoder import LanguageModel
from model.network.kv_cache import LatentCache
from model.network.mlp import LinearGelu
from model.network.moe import MoE, Shards, unsharded
from model.network.vision import LAYER_NORM_EPS, Grid, MoonViT


class MultiModalProjector(nn.Module):
    """Maps four neighbouring patches to one embedding of the decoder."""

    def __init__(self, vision_width: int, hidden_size: int) -> None:
        super().__init__()
        merged = 4 * vision_width
        self.pre_norm = nn.LayerNorm(vision_width, eps=LAYER_NORM_EPS)  # of each patch by itself
        self.linear_1 = LinearGelu(merged, merged, approximate="none")
        self.linear_2 = nn.Linear(merged, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [V, 4, W] to [V, D]; the GELU is exact here, unlike in the tower."""
        return self.linear_2(self.linear_1(self.pre_norm(x).flatten(1)))


class KimiVL(nn.Module):
    """The whole network of one rank.

        uint8 patches --normalise--> MoonViT --> projector --> features [V, D]
                                                                  |  (overwrite the media pads)
        token ids -------------------------------> embeddings [T, D] --> decoder --> hidden [T, D]
                                                                                        |
                                                  logits of the rows that are asked <-- lm_head

    `shards` say, for each layer with routed experts, which of them this process holds, and have the
    dispatcher to all of them. None: this process holds all experts.
    """

    # What kernels change that take the place of plain torch (`model.network.kernels.install`):
    max_paged_len = 1  # new tokens behind a past up to which each attends to the cache alone
    never_waits = False  # whether nothing in the layers of a decode waits for the host

    def __init__(self, config: KimiVLConfig, shards: Shards | None = None) -> None:
        super().__init__()
        text = config.text
        self.config = config
        self._pixel_scales: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.vision_tower = MoonViT(config.vision)
        self.multi_modal_projector = MultiModalProjector(
            config.vision.hidden_size, text.hidden_size
        )
        self.language_model = LanguageModel(text, shards or unsharded(text.n_routed_experts))

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.language_model.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations."""
        return self.language_model.model.embed_tokens.weight.dtype

    @property
    def experts(self) -> dict[int, MoE]:
        """The layers with routed experts, by number."""
        layers = enumerate(self.language_model.model.layers)
        return {number: layer.mlp for number, layer in layers if isinstance(layer.mlp, MoE)}

    def encode_images(self, patches: Tensor, grid_hw: Sequence[Grid]) -> Tensor:
        """Map the patches of images [P, 3, patch, patch] uint8 to features [V, D]."""
        mean, std = self._mean_and_std(patches.device)
        pixels = ((patches.float() / 255.0 - mean) / std).to(self.dtype)
        return self.multi_modal_projector(self.vision_tower(pixels, grid_hw))

    def _mean_and_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return [3, 1, 1] each, made once for a device: making them waits for it."""
        if device not in self._pixel_scales:
            image = self.config.image
            mean, std = torch.tensor((image.image_mean, image.image_std), device=device)
            self._pixel_scales[device] = mean[:, None, None], std[:, None, None]
        return self._pixel_scales[device]

    def forward(
        self, batch: TokenBatch, cache: LatentCache | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Compute the hidden states [T, D] of the tokens of one step.

        Whole sequences need no cache. `features` [V, D] have the order of `batch.media_rows`.
        """
        embeddings = self.language_model.model.embed_tokens(batch.token_ids)
        if features is not None and batch.media_rows is not None:
            assert len(features) == len(batch.media_rows)
            embeddings = embeddings.index_copy(0, batch.media_rows, features)
        return self.language_model.model(embeddings, batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [n, D], only of the rows in need, to float32 logits [n, vocabulary]."""
        return self.language_model.lm_head(hidden).float()
