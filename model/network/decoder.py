"""The decoder of the DeepSeek-V3 family (Moonlight in Kimi-VL), with the names of checkpoints.

Letters: T tokens, D hidden size.
"""

from torch import Tensor, nn

from model.config import TextConfig
from model.network.attention import LatentAttention, MultiHeadAttention
from model.network.batch import TokenBatch
from model.network.kv_cache import LatentCache
from model.network.mlp import MLP
from model.network.moe import MoE, Shards
from model.network.norm import RMSNorm
from model.network.rope import Rotation, text_rotation


class DecoderLayer(nn.Module):
    """Attention, then a dense MLP or experts; each has a norm before and a residual around it."""

    def __init__(self, config: TextConfig, layer: int, shards: Shards) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        attention = MultiHeadAttention if config.kv_lora_rank is None else LatentAttention
        self.self_attn = attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = (
            MoE(config, shards(layer))
            if config.is_moe_layer(layer)
            else MLP(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self, x: Tensor, rotation: Rotation, batch: TokenBatch, cache: Tensor | None
    ) -> Tensor:
        """Map `x` [T, D] to [T, D]; `cache` is the storage of this layer, or None."""
        if len(x):  # an idle rank has no tokens, but other ranks need its experts below
            x = x + self.self_attn(self.input_layernorm(x), rotation, batch, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and the last norm; `language_model.model` in a checkpoint."""

    def __init__(self, config: TextConfig, shards: Shards) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, shards) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, embeddings: Tensor, batch: TokenBatch, cache: LatentCache | None) -> Tensor:
        """Map embeddings [T, D] to normalised hidden states [T, D]."""
        config = self.config
        rotation = text_rotation(
            batch.positions, config.qk_rope_head_dim, config.rope_theta, embeddings.dtype
        )
        x = embeddings
        for number, layer in enumerate(self.layers):
            x = layer(x, rotation, batch, None if cache is None else cache.layers[number])
        return self.norm(x)


class LanguageModel(nn.Module):
    """The decoder and its untied head; `language_model` in a checkpoint."""

    def __init__(self, config: TextConfig, shards: Shards) -> None:
        super().__init__()
        self.model = Decoder(config, shards)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
