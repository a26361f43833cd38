"""Attention of the decoder: multi-head latent attention, and plain multi-head attention.

Both write the kv of each token into one layer of the `LatentCache`. A decode attends to its whole
context there. A chunk of a prompt attends to itself, and to its past in the cache if it has one.
Latent attention has two forms, whose results differ only by rounding:

* expanded: keys and values of every head are made from the latent kv;
* absorbed: `kv_b_proj` is folded into the query and the output, so that only the latent kv is read
  (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).

Letters: T tokens, B sequences, D hidden size, H heads, C kv_lora_rank, L context, n queries.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TextConfig
from model.network.attend import (
    PartialAttention,
    attend_past,
    attend_pieces,
    attend_varlen,
    joined,
)
from model.network.batch import TokenBatch
from model.network.kv_pieces import PagedContexts, slots_of
from model.network.norm import RMSNorm
from model.network.rope import Rotation

# (absorbed queries [P, H, C + rope], one layer of the cache, their contexts, C, scale) -> sums of
# latent kv [P, H, C].
Decode = Callable[[Tensor, Tensor, PagedContexts, int, float], Tensor]

# (queries [n, H, width] of one chunk, cache, slots of its past) -> attention to the past.
Past = Callable[[Tensor, Tensor, Tensor], PartialAttention]


@dataclass(frozen=True)
class LatentWidths:
    """The widths of latent attention, and what its two forms cost."""

    num_heads: int
    latent: int  # C
    nope: int
    rope: int
    value: int

    def absorbed_is_cheaper(self, num_queries: int, context_len: int) -> bool:
        """Say whether the absorbed form needs fewer products.

        It does for few queries to a long context: up to 170 at the published widths.
        """
        expanded = context_len * (self._per_latent + num_queries * 2 * self.head)
        absorbed = num_queries * (self._per_latent + context_len * 2 * (self.latent + self.rope))
        return absorbed < expanded

    @property
    def head(self) -> int:
        """The width of expanded queries, keys and values: the kernels want all to be equal."""
        return max(self.nope + self.rope, self.value)

    @property
    def _per_latent(self) -> int:
        """Products per head to expand a latent, or to absorb a query and up-project its output."""
        return self.latent * (self.nope + self.value)


class LatentAttention(nn.Module):
    """Multi-head latent attention, with or without a low-rank query."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None
        hidden, heads = config.hidden_size, config.num_attention_heads
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
            # The published code leaves eps at the default of its norm class here, 1e-6, and does
            # not pass `rms_norm_eps`. So does its kv_a_layernorm.
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
        self.decode: Decode = decode_in_pieces  # a kernel may take its place
        self.rotate_and_write = rotate_and_write  # on GPUs one kernel takes its place

    def forward(
        self, x: Tensor, rotation: Rotation, batch: TokenBatch, cache: Tensor | None
    ) -> Tensor:
        """Attend from each token to its context: [T, D] -> [T, D].

        `cache` is one layer [slots, C + rope]; None for whole sequences without a cache.
        """
        query, latent_kv = self.rotate_and_write(
            self._query(x).unflatten(-1, (self.widths.num_heads, -1)),
            self.kv_a_proj_with_mqa(x),
            self.kv_a_layernorm,
            rotation,
            batch.slots,
            cache,
        )
        num = batch.num_paged_tokens
        outputs = [self._decode(query[:num], cache, batch)] if cache is not None and num else []
        if len(x) > num:
            outputs.append(self._prefill(query[num:], latent_kv[num:], cache, batch))
        return self.o_proj(joined(outputs).flatten(-2))

    def _query(self, x: Tensor) -> Tensor:
        if self.has_low_rank_query:
            return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return self.q_proj(x)

    def _decode(self, query: Tensor, cache: Tensor, batch: TokenBatch) -> Tensor:
        """Attend from each paged token [P, H, nope + rope] to its cached context: [P, H, value]."""
        assert batch.contexts is not None
        absorbed = self._absorb(query)  # [P, H, C + rope]
        latent = self.decode(absorbed, cache, batch.contexts, self.widths.latent, self.scale)
        return self._up_project_values(latent)

    def _prefill(
        self, query: Tensor, latent_kv: Tensor, cache: Tensor | None, batch: TokenBatch
    ) -> Tensor:
        """Attend from the chunks of prompts [T, H, nope + rope]: [T, H, value]."""
        key, value = self._expand(latent_kv)
        query_rows = self._widened(query)
        own = attend_varlen(query_rows, key, value, batch.chunks, self.scale, is_causal=True)
        return merge_pasts(self._narrowed(own), query, cache, batch, self._past)

    def _past(self, query: Tensor, cache: Tensor, slots: Tensor) -> PartialAttention:
        """Attend from one chunk [n, H, nope + rope] to its past, in the cheaper form."""
        if not self.widths.absorbed_is_cheaper(len(query), len(slots)):
            query = self._widened(query)
            return self._narrowed(attend_past(query, cache, slots, self._expand, self.scale))
        absorbed = self._absorb(query)  # [n, H, C + rope]: n * H queries of one head
        rows = absorbed.flatten(0, 1)[:, None]
        found = attend_past(rows, cache, slots, as_one_head, self.scale)
        latent = found.output.view_as(absorbed).type_as(query)
        return PartialAttention(self._up_project_values(latent), found.lse.view(absorbed.shape[:2]))

    def _expand(self, latent_kv: Tensor) -> tuple[Tensor, Tensor]:
        """Expand latent kv [..., L, C + rope] to keys and values [..., L, H, width]."""
        latent, k_rope = latent_kv.split((self.widths.latent, self.widths.rope), dim=-1)
        key_value = self.kv_b_proj(latent).unflatten(-1, (self.widths.num_heads, -1))
        k_nope, value = key_value.split((self.widths.nope, self.widths.value), dim=-1)
        k_rope = k_rope.unsqueeze(-2).expand(*k_nope.shape[:-1], -1)
        return self._widened(torch.cat((k_nope, k_rope), dim=-1)), self._widened(value)

    def _widened(self, x: Tensor) -> Tensor:
        """Pad with zeros: the fused kernels want queries, keys and values of one width."""
        return F.pad(x, (0, self.widths.head - x.shape[-1]))

    def _narrowed(self, found: PartialAttention) -> PartialAttention:
        return PartialAttention(found.output[..., : self.widths.value], found.lse)

    def _absorb(self, query: Tensor) -> Tensor:
        """Map queries to keys [n, H, nope + rope] to queries to latent kv [n, H, C + rope]."""
        q_nope, q_rope = query.split((self.widths.nope, self.widths.rope), dim=-1)
        w_key, _ = self._weights_by_head()
        return torch.cat((torch.einsum("nhd,hdc->nhc", q_nope, w_key), q_rope), dim=-1)

    def _up_project_values(self, found: Tensor) -> Tensor:
        """Map weighted sums of latent kv [n, H, C + rope] to values [n, H, value]."""
        _, w_value = self._weights_by_head()
        if w_value.device.type == "cpu" and w_value.dtype.itemsize == 2:
            # The copy pays: on the strided view oneDNN takes four times as long.
            w_value = w_value.contiguous()
        return torch.einsum("nhc,hvc->nhv", found[..., : self.widths.latent], w_value)

    def _weights_by_head(self) -> tuple[Tensor, Tensor]:
        """Split `kv_b_proj` into [H, nope, C] for keys and [H, value, C] for values."""
        by_head = self.kv_b_proj.weight.unflatten(0, (self.widths.num_heads, -1))
        w_key, w_value = by_head.split((self.widths.nope, self.widths.value), dim=1)
        return w_key, w_value


class MultiHeadAttention(nn.Module):
    """Plain multi-head attention with rotary halves, for configs without `kv_lora_rank`.

    Its parameters have the names and shapes of the Llama family. A key head may serve a group of
    query heads, and the whole width of a head is rotated.
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
        """Do as `LatentAttention.forward`, with a cache [slots, 2 * kv heads * head_dim]."""
        query = rotation.halves(self.q_proj(x).unflatten(-1, (-1, self.head_dim)))
        key = rotation.halves(self.k_proj(x).unflatten(-1, (-1, self.head_dim)))
        value = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        write_cache(torch.cat((key, value), dim=1).flatten(1), batch.slots, cache)
        num = batch.num_paged_tokens
        outputs = [self._decode(query[:num], cache, batch)] if cache is not None and num else []
        if len(x) > num:
            key, value = self._repeated(key[num:]), self._repeated(value[num:])
            own = attend_varlen(query[num:], key, value, batch.chunks, self.scale, is_causal=True)
            outputs.append(merge_pasts(own, query[num:], cache, batch, self._past))
        return self.o_proj(joined(outputs).flatten(-2))

    def _decode(self, query: Tensor, cache: Tensor, batch: TokenBatch) -> Tensor:
        """Attend from each paged token [P, H, head_dim] to its context: [P, H, head_dim]."""
        assert batch.contexts is not None
        groups = query.unflatten(1, (self.num_kv_heads, -1)).transpose(1, 2)
        found = attend_pieces(groups, cache, batch.contexts.pieces, self._key_value, self.scale)
        return found.transpose(1, 2).flatten(1, 2)

    def _past(self, query: Tensor, cache: Tensor, slots: Tensor) -> PartialAttention:
        """Attend from one chunk [n, H, head_dim] to its past."""

        def heads(kv: Tensor) -> tuple[Tensor, Tensor]:
            key, value = self._key_value(kv)
            return self._repeated(key), self._repeated(value)

        return attend_past(query, cache, slots, heads, self.scale)

    def _key_value(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Split cached kv [..., L, width] into keys and values [..., L, kv heads, head_dim]."""
        key, value = kv.unflatten(-1, (2, self.num_kv_heads, self.head_dim)).unbind(-3)
        return key, value

    def _repeated(self, x: Tensor) -> Tensor:
        """Repeat each kv head for its group: [..., kv heads, head_dim] -> [..., H, head_dim]."""
        return x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=-2)


def decode_in_pieces(
    query: Tensor, cache: Tensor, contexts: PagedContexts, latent_width: int, scale: float
) -> Tensor:
    """Attend from absorbed queries to their contexts, piece by piece; see `Decode`."""
    # All heads read the same latent kv, so they are H queries of one head.
    found = attend_pieces(query[:, :, None], cache, contexts.pieces, as_one_head, scale)
    return found[:, :, 0, :latent_width]


def as_one_head(latent_kv: Tensor) -> tuple[Tensor, Tensor]:
    """Use latent kv [..., L, width] as both key and value of one head: [..., L, 1, width]."""
    return latent_kv.unsqueeze(-2), latent_kv.unsqueeze(-2)


def rotate_and_write(
    query: Tensor,
    kv: Tensor,
    norm: RMSNorm,
    rotation: Rotation,
    slots: Tensor | None,
    cache: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Make queries and latent kv of new tokens, and write the kv into the cache, if there is one.

    `query` is [T, H, nope + rope] before its rotation, `kv` [T, C + rope] before norm and rotation,
    `slots` [T] their places in `cache`, one layer. Returns both in the same shapes.
    """
    rope = 2 * rotation.cos.shape[-1]
    q_nope, q_rope = query.split((query.shape[-1] - rope, rope), dim=-1)
    query = torch.cat((q_nope, rotation.interleaved(q_rope)), dim=-1)
    latent, k_rope = kv.split((kv.shape[-1] - rope, rope), dim=-1)
    k_rope = rotation.interleaved(k_rope[:, None])[:, 0]  # shared by all heads
    latent_kv = torch.cat((norm(latent), k_rope), dim=-1)
    write_cache(latent_kv, slots, cache)
    return query, latent_kv


def write_cache(kv: Tensor, slots: Tensor | None, cache: Tensor | None) -> None:
    """Write the kv [T, width] of the new tokens into one layer of the cache, if there is one."""
    if cache is not None and slots is not None:
        cache.index_copy_(0, slots, kv)


def merge_pasts(
    own: PartialAttention, query: Tensor, cache: Tensor | None, batch: TokenBatch, past: Past
) -> Tensor:
    """Merge the attention of chunks to themselves with that to their past in the cache.

    `own` has output [T, H, value] and lse [T, H], `query` is [T, H, width], and `past` attends from
    one chunk to its past. Without a cache all sequences are whole. Returns [T, H, value].
    """
    lens = batch.query_lens[batch.num_paged :]
    ends = batch.context_lens[batch.num_paged :]
    if cache is None or batch.contexts is None or lens == ends:  # no chunk has a past
        return own.output
    rows = batch.table_rows[batch.num_paged :]
    parts = (query.split(lens), own.output.split(lens), own.lse.split(lens))
    outputs: list[Tensor] = []
    for row, end, q, output, lse in zip(rows, ends, *parts, strict=True):
        if end == len(q):
            outputs.append(output)
        else:
            found = past(q, cache, slots_of(batch.contexts.tables[row], end - len(q)))
            outputs.append(PartialAttention(output, lse).merge_partial(found).output.type_as(query))
    return joined(outputs)
