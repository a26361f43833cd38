"""Attention of the decoder: multi-head latent attention, and plain multi-head attention.

Both write what they remember of each token into one layer of the `LatentCache` and read it back by
block table. Latent attention has two forms that give the same numbers up to rounding:

* expanded: keys and values of every head are made from the latents (prefill, and the
  whole-sequence forward without a cache);
* absorbed: `kv_b_proj` is folded into the query and the output, so that a decode step reads only
  the latents (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).

Letters: T tokens, B sequences, D hidden size, H heads, C kv_lora_rank, L longest context.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.batch import TokenBatch
from model.cache import slots_of
from model.config import TextConfig
from model.norm import RMSNorm
from model.rope import Rotation


def attention_for(config: TextConfig) -> "LatentAttention | MultiHeadAttention":
    """The attention module that the config asks for."""
    return MultiHeadAttention(config) if config.kv_lora_rank is None else LatentAttention(config)


class LatentAttention(nn.Module):
    """Multi-head latent attention, with or without a low-rank query."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.num_heads = heads
        self.scale = config.softmax_scale
        self.latent_width = config.kv_lora_rank
        self.nope_width = config.qk_nope_head_dim
        self.rope_width = config.qk_rope_head_dim
        self.value_width = config.v_head_dim
        q_width = heads * config.qk_head_dim
        self.has_low_rank_query = config.q_lora_rank is not None
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, q_width, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
            # The class default of the published norm, not `rms_norm_eps`; so for kv_a_layernorm.
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps=1e-6)
            self.q_b_proj = nn.Linear(config.q_lora_rank, q_width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(
            hidden, config.kv_lora_rank + config.qk_rope_head_dim, bias=False
        )
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, eps=1e-6)
        self.kv_b_proj = nn.Linear(
            config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=False)

    def forward(
        self, x: Tensor, rotation: Rotation, batch: TokenBatch, cache: Tensor | None
    ) -> Tensor:
        """Attend from `x` [T, D] to the context of each token; returns [T, D].

        Args:
            x: normalised activations.
            rotation: of the tokens' positions.
            batch: which tokens belong together and where their context lies.
            cache: [slots, C + rope], one layer; None for whole sequences without a cache.
        """
        query = self._query(x).unflatten(-1, (self.num_heads, -1))  # [T, H, nope + rope]
        q_nope, q_rope = query.split((self.nope_width, self.rope_width), dim=-1)
        q_rope = rotation.interleaved(q_rope)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split(
            (self.latent_width, self.rope_width), dim=-1
        )
        k_rope = rotation.interleaved(k_rope[:, None])[:, 0]  # shared by all heads
        memory = torch.cat((self.kv_a_layernorm(latent), k_rope), dim=-1)  # [T, C + rope]
        store(memory, batch, cache)
        query = torch.cat((q_nope, q_rope), dim=-1)
        heads = self._expanded(query, memory, batch, cache)
        if cache is not None and batch.num_decodes:
            decoded = self._absorbed(q_nope, q_rope, cache, batch)
            heads = torch.cat((decoded, heads))
        return self.o_proj(heads.flatten(-2))

    def _query(self, x: Tensor) -> Tensor:
        if self.has_low_rank_query:
            return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return self.q_proj(x)

    def _expanded(
        self, query: Tensor, memory: Tensor, batch: TokenBatch, cache: Tensor | None
    ) -> Tensor:
        """[T, H, nope + rope] of the step -> [T - decodes, H, value] of those that prefill."""
        outputs = [query.new_empty(0, self.num_heads, self.value_width)]
        for q, context in contexts(query, memory, batch, cache, first=batch.num_decodes):
            latent, k_rope = context.split((self.latent_width, self.rope_width), dim=-1)
            key_value = self.kv_b_proj(latent).unflatten(-1, (self.num_heads, -1))
            k_nope, value = key_value.split((self.nope_width, self.value_width), dim=-1)
            k_rope = k_rope[:, None].expand(-1, self.num_heads, -1)
            key = torch.cat((k_nope, k_rope), dim=-1)  # [L, H, nope + rope]
            outputs.append(causal_attention(q, key, value, self.scale))
        return torch.cat(outputs)

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, cache: Tensor, batch: TokenBatch) -> Tensor:
        """[T, H, nope], [T, H, rope] of the step -> [decodes, H, value], from cached latents."""
        q_nope, q_rope = q_nope[: batch.num_decodes], q_rope[: batch.num_decodes]
        w_key, w_value = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1)).split(
            (self.nope_width, self.value_width), dim=1
        )  # [H, nope, C], [H, value, C]
        q_latent = torch.einsum("bhn,hnc->bhc", q_nope, w_key)
        context, mask = padded_context(batch, cache)  # [B, L, C + rope], [B, L]
        query = torch.cat((q_latent, q_rope), dim=-1)
        scores = torch.einsum("bhc,blc->bhl", query, context) * self.scale
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, dtype=wide).type_as(context)
        latent = torch.einsum("bhl,blc->bhc", weights, context[..., : self.latent_width])
        return torch.einsum("bhc,hvc->bhv", latent, w_value)


class MultiHeadAttention(nn.Module):
    """Plain multi-head attention with rotary halves, for configs without `kv_lora_rank`.

    Named and laid out as in the Llama family: fewer key heads than query heads are shared among
    groups of them, and the whole head turns.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        hidden, head_dim = config.hidden_size, config.v_head_dim
        self.head_dim = head_dim
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.scale = config.softmax_scale
        self.q_proj = nn.Linear(hidden, self.num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * head_dim, hidden, bias=False)

    def forward(
        self, x: Tensor, rotation: Rotation, batch: TokenBatch, cache: Tensor | None
    ) -> Tensor:
        """As `LatentAttention.forward`; `cache` is [slots, 2 * kv heads * head_dim]."""
        query = rotation.halves(self.q_proj(x).unflatten(-1, (-1, self.head_dim)))
        key = rotation.halves(self.k_proj(x).unflatten(-1, (-1, self.head_dim)))
        memory = torch.cat((key.flatten(1), self.v_proj(x)), dim=-1)
        store(memory, batch, cache)
        outputs = [query.new_empty(0, self.num_heads, self.head_dim)]
        for q, context in contexts(query, memory, batch, cache, first=0):
            heads = context.unflatten(-1, (2, self.num_kv_heads, self.head_dim))
            shared = heads.repeat_interleave(self.num_heads // self.num_kv_heads, dim=2)
            outputs.append(causal_attention(q, shared[:, 0], shared[:, 1], self.scale))
        return self.o_proj(torch.cat(outputs).flatten(-2))


def store(memory: Tensor, batch: TokenBatch, cache: Tensor | None) -> None:
    """Write `memory` [T, width], what a layer remembers of the new tokens, into its cache."""
    if cache is not None and batch.slots is not None:
        cache.index_copy_(0, batch.slots, memory)


def contexts(
    query: Tensor, memory: Tensor, batch: TokenBatch, cache: Tensor | None, *, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The queries and the whole context of each sequence from number `first` on, after `store`.

    Yields:
        Queries [query length, H, width] and memories [context length, width]: a view where the
        sequence begins in this step, else a copy from the cache.
    """
    parts = zip(query.split(batch.query_lens), memory.split(batch.query_lens), strict=True)
    for number, (q, own) in enumerate(parts):
        if number < first:
            continue
        length = batch.context_lens[number]
        if cache is None or batch.block_tables is None or len(own) == length:
            yield q, own
        else:
            yield q, cache[slots_of(batch.block_tables[number : number + 1], length)[0]]


def padded_context(batch: TokenBatch, cache: Tensor) -> tuple[Tensor, Tensor]:
    """The contexts of the decodes, padded with 0: [B, L, width], and where they are: [B, L]."""
    assert batch.block_tables is not None
    context_lens = batch.context_lens[: batch.num_decodes]
    longest = max(context_lens)
    context = cache[slots_of(batch.block_tables[: batch.num_decodes], longest)]
    lens = torch.tensor(context_lens, device=cache.device)
    mask = torch.arange(longest, device=cache.device) < lens[:, None]
    # What others left behind the context may be nan, and 0 * nan is nan.
    return context.masked_fill_(~mask[..., None], 0), mask


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of the last tokens of one sequence to all of it.

    Args:
        query: [n, H, width], the last n of L tokens.
        key: [L, H, width].
        value: [L, H, value width].
        scale: on the scores.

    Returns:
        [n, H, value width].
    """
    num_new, length = len(query), len(key)
    # The fused kernels want equal widths; zeros change nothing and are cut off again.
    width = max(query.shape[-1], value.shape[-1])
    q, k, v = (
        F.pad(x, (0, width - x.shape[-1])).transpose(0, 1)[None] for x in (query, key, value)
    )
    mask = None
    if num_new != length and num_new > 1:
        mask = torch.ones(num_new, length, dtype=torch.bool, device=query.device)
        mask = mask.tril(length - num_new)
    output = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=num_new == length and num_new > 1,
        scale=scale,
    )
    return output[0].transpose(0, 1)[..., : value.shape[-1]]
