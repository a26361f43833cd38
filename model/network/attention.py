"""Attention of the decoder: multi-head latent attention, and plain multi-head attention.

Both write what they remember of each token into one layer of the `LatentCache`. A decode attends
to its whole context there; a chunk of a prompt attends to itself, and to its past there if it has
one. Latent attention has two forms that give the same numbers up to rounding:

* expanded: keys and values of every head are made from the latents;
* absorbed: `kv_b_proj` is folded into the query and the output, so that only the latents are read
  (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).

Letters: T tokens, B sequences, D hidden size, H heads, C kv_lora_rank, L context, n queries.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TextConfig
from model.network.attend import Attended, attend_packed, attend_past, attend_pieces
from model.network.batch import TokenBatch
from model.network.kv_pieces import slots_of
from model.network.norm import RMSNorm
from model.network.rope import Rotation

# (queries [n, H, width] of one chunk, cache, slots of its past) -> what they find there.
Past = Callable[[Tensor, Tensor, Tensor], Attended]


def attention_for(config: TextConfig) -> "LatentAttention | MultiHeadAttention":
    """The attention module that the config asks for."""
    return MultiHeadAttention(config) if config.kv_lora_rank is None else LatentAttention(config)


@dataclass(frozen=True)
class LatentWidths:
    """Numbers of latent attention, and what its two forms cost."""

    num_heads: int
    latent: int  # C
    nope: int
    rope: int
    value: int

    def absorbed_is_cheaper(self, num_queries: int, context_len: int) -> bool:
        """Whether fewer products are needed when the latents are not expanded.

        Few queries to a long context absorb; at the published widths up to 170.
        """
        expanded = context_len * (self._per_latent + num_queries * 2 * self.head)
        absorbed = num_queries * (self._per_latent + context_len * 2 * (self.latent + self.rope))
        return absorbed < expanded

    @property
    def head(self) -> int:
        """Of the expanded queries, keys and values, made equal."""
        return max(self.nope + self.rope, self.value)

    @property
    def _per_latent(self) -> int:
        """Products per head that expand a latent, or absorb a query and free its output."""
        return self.latent * (self.nope + self.value)


class LatentAttention(nn.Module):
    """Multi-head latent attention, with or without a low-rank query."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.num_heads = heads
        self.scale = config.softmax_scale
        self.widths = LatentWidths(
            num_heads=heads,
            latent=config.kv_lora_rank,
            nope=config.qk_nope_head_dim,
            rope=config.qk_rope_head_dim,
            value=config.v_head_dim,
        )
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
        widths = self.widths
        query = self._query(x).unflatten(-1, (widths.num_heads, -1))  # [T, H, nope + rope]
        q_nope, q_rope = query.split((widths.nope, widths.rope), dim=-1)
        query = torch.cat((q_nope, rotation.interleaved(q_rope)), dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((widths.latent, widths.rope), dim=-1)
        k_rope = rotation.interleaved(k_rope[:, None])[:, 0]  # shared by all heads
        memory = torch.cat((self.kv_a_layernorm(latent), k_rope), dim=-1)  # [T, C + rope]
        store(memory, batch, cache)
        num = batch.num_decodes
        outputs = [self._decode(query[:num], cache, batch)] if cache is not None and num else []
        if len(x) > num:
            outputs.append(self._prefill(query[num:], memory[num:], cache, batch))
        return self.o_proj(torch.cat(outputs).flatten(-2))

    def _query(self, x: Tensor) -> Tensor:
        if self.has_low_rank_query:
            return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return self.q_proj(x)

    def _decode(self, query: Tensor, cache: Tensor, batch: TokenBatch) -> Tensor:
        """[B, H, nope + rope], one query of each decode -> [B, H, value]."""
        rows = self._absorb(query)[:, :, None]  # [B, H, 1, C + rope]: H queries to one memory
        found = attend_pieces(rows, cache, batch.decode_pieces, one_head, self.scale)
        return self._free(found[:, :, 0])

    def _prefill(
        self, query: Tensor, memory: Tensor, cache: Tensor | None, batch: TokenBatch
    ) -> Tensor:
        """[T, H, nope + rope] of the chunks of prompts -> [T, H, value]."""
        key, value = self._expand(memory)
        lens = batch.query_lens[batch.num_decodes :]
        own = attend_packed(self._widened(query), key, value, lens, self.scale, is_causal=True)
        return with_pasts(self._narrowed(own), query, cache, batch, self._past)

    def _past(self, query: Tensor, cache: Tensor, slots: Tensor) -> Attended:
        """Attention of one chunk [n, H, nope + rope] to its past, in the cheaper form."""
        if not self.widths.absorbed_is_cheaper(len(query), len(slots)):
            query = self._widened(query)
            return self._narrowed(attend_past(query, cache, slots, self._expand, self.scale))
        absorbed = self._absorb(query)  # [n, H, C + rope]: n * H queries to one memory
        rows = absorbed.flatten(0, 1)[:, None]
        found = attend_past(rows, cache, slots, one_head, self.scale)
        latent = found.output.view_as(absorbed).type_as(query)
        return Attended(self._free(latent), found.lse.view(absorbed.shape[:2]))

    def _expand(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Memories [..., L, C + rope] -> keys and values [..., L, H, width], equally wide."""
        latent, k_rope = memory.split((self.widths.latent, self.widths.rope), dim=-1)
        key_value = self.kv_b_proj(latent).unflatten(-1, (self.widths.num_heads, -1))
        k_nope, value = key_value.split((self.widths.nope, self.widths.value), dim=-1)
        k_rope = k_rope.unsqueeze(-2).expand(*k_nope.shape[:-1], -1)
        return self._widened(torch.cat((k_nope, k_rope), dim=-1)), self._widened(value)

    def _widened(self, x: Tensor) -> Tensor:
        """The fused kernels want queries, keys and values of one width; zeros change nothing."""
        return F.pad(x, (0, self.widths.head - x.shape[-1]))

    def _narrowed(self, found: Attended) -> Attended:
        return Attended(found.output[..., : self.widths.value], found.lse)

    def _absorb(self, query: Tensor) -> Tensor:
        """Queries [n, H, nope + rope] to keys -> [n, H, C + rope] to latents."""
        q_nope, q_rope = query.split((self.widths.nope, self.widths.rope), dim=-1)
        w_key, _ = self._weights_by_head()
        return torch.cat((torch.einsum("nhd,hdc->nhc", q_nope, w_key), q_rope), dim=-1)

    def _free(self, found: Tensor) -> Tensor:
        """Weighted memories [n, H, C + rope] -> values [n, H, value]."""
        _, w_value = self._weights_by_head()
        # Contiguous, else the product is four times slower than with the copy.
        return torch.einsum("nhc,hvc->nhv", found[..., : self.widths.latent], w_value.contiguous())

    def _weights_by_head(self) -> tuple[Tensor, Tensor]:
        """`kv_b_proj` as [H, nope, C] and [H, value, C]."""
        by_head = self.kv_b_proj.weight.unflatten(0, (self.widths.num_heads, -1))
        w_key, w_value = by_head.split((self.widths.nope, self.widths.value), dim=1)
        return w_key, w_value


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
        value = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        store(torch.cat((key, value), dim=1).flatten(1), batch, cache)
        num = batch.num_decodes
        outputs = [self._decode(query[:num], cache, batch)] if cache is not None and num else []
        if len(x) > num:
            lens = batch.query_lens[num:]
            key, value = self._repeated(key[num:]), self._repeated(value[num:])
            own = attend_packed(query[num:], key, value, lens, self.scale, is_causal=True)
            outputs.append(with_pasts(own, query[num:], cache, batch, self._past))
        return self.o_proj(torch.cat(outputs).flatten(-2))

    def _decode(self, query: Tensor, cache: Tensor, batch: TokenBatch) -> Tensor:
        """One query of each decode [B, H, head_dim] -> [B, H, head_dim]."""
        groups = query.unflatten(1, (self.num_kv_heads, -1)).transpose(1, 2)
        found = attend_pieces(groups, cache, batch.decode_pieces, self._key_value, self.scale)
        return found.transpose(1, 2).flatten(1, 2)

    def _past(self, query: Tensor, cache: Tensor, slots: Tensor) -> Attended:
        """Attention of one chunk [n, H, head_dim] to its past."""

        def heads(memory: Tensor) -> tuple[Tensor, Tensor]:
            key, value = self._key_value(memory)
            return self._repeated(key), self._repeated(value)

        return attend_past(query, cache, slots, heads, self.scale)

    def _key_value(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Memories [..., L, width] -> keys and values [..., L, kv heads, head_dim]."""
        key, value = memory.unflatten(-1, (2, self.num_kv_heads, self.head_dim)).unbind(-3)
        return key, value

    def _repeated(self, x: Tensor) -> Tensor:
        """[..., kv heads, head_dim] -> [..., H, head_dim]."""
        return x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=-2)


def one_head(memory: Tensor) -> tuple[Tensor, Tensor]:
    """Memories [..., L, width] as the key and the value of one head: [..., L, 1, width]."""
    return memory.unsqueeze(-2), memory.unsqueeze(-2)


def store(memory: Tensor, batch: TokenBatch, cache: Tensor | None) -> None:
    """Write `memory` [T, width], what a layer remembers of the new tokens, into its cache."""
    if cache is not None and batch.slots is not None:
        cache.index_copy_(0, batch.slots, memory)


def with_pasts(
    own: Attended, query: Tensor, cache: Tensor | None, batch: TokenBatch, past: Past
) -> Tensor:
    """What chunks of prompts found in themselves, joined with what lies before them in the cache.

    Args:
        own: output [T, H, value], lse [T, H].
        query: [T, H, width].
        cache: one layer; None when all sequences are whole.
        batch: whose sequences behind the decodes are the chunks.
        past: attention of one chunk's queries to its past.

    Returns:
        [T, H, value].
    """
    if cache is None or batch.block_tables is None:
        return own.output
    lens = batch.query_lens[batch.num_decodes :]
    ends = batch.context_lens[batch.num_decodes :]
    tables = batch.block_tables[batch.num_decodes :]
    parts = (query.split(lens), own.output.split(lens), own.lse.split(lens))
    outputs: list[Tensor] = []
    for table, end, q, output, lse in zip(tables, ends, *parts, strict=True):
        if end == len(q):
            outputs.append(output)
        else:
            found = past(q, cache, slots_of(table, end - len(q)))
            outputs.append(Attended(output, lse).joined(found).output.type_as(query))
    return torch.cat(outputs)
