"""128K positions: the numbers of the plain formula, in memory that does not grow with the context.

The past is planted into the cache: 131,000 random memories a layer, as if computed before.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import BLOCK_SIZE
from model.network.attention import LatentAttention
from model.network.batch import TokenBatch
from model.network.kv_cache import LatentCache
from model.network.kv_pieces import PagedContexts, slots_of
from model.network.rope import text_rotation
from tests.tiny import tiny_config, tiny_model

CONTEXT = 131_072
SHAPE = {
    "max_position_embeddings": CONTEXT,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
# Queries to such a past that absorb, and that expand; at these widths the border is at 6.
DECODE, FEW, MANY = 1, 4, 40


def planted(config, context_len, num_new):
    """Make a cache of reversed blocks with a random past, and a batch that ends at its end."""
    num_blocks = context_len // BLOCK_SIZE
    cache = LatentCache(config.text, num_blocks, torch.float32, torch.device("cpu"))
    for number, layer in enumerate(cache.layers):
        layer[1:] = torch.randn(layer[1:].shape, generator=torch.Generator().manual_seed(number))
    table = torch.arange(num_blocks, 0, -1)
    start, num_decodes = context_len - num_new, int(num_new == 1)
    batch = TokenBatch(
        token_ids=torch.arange(5, 5 + num_new),
        positions=torch.arange(start, context_len),
        query_lens=(num_new,),
        context_lens=(context_len,),
        num_paged=num_decodes,
        slots=slots_of(table, context_len)[start:],
        contexts=PagedContexts(
            tables=table[None].int(),
            rows=torch.zeros(num_decodes, dtype=torch.int32),
            lens=torch.full((num_decodes,), context_len, dtype=torch.int32),
        ),
        table_rows=(0,),
    )
    return cache, batch


def plain_attention(attention: LatentAttention, x, rotation, context):
    """Compute the formula: all keys and values of all heads, one mask, one softmax."""
    widths = attention.widths
    query = attention.q_proj(x).unflatten(-1, (widths.num_heads, -1))
    q_nope, q_rope = query.split((widths.nope, widths.rope), dim=-1)
    latent, k_rope = attention.kv_a_proj_with_mqa(x).split((widths.latent, widths.rope), dim=-1)
    own = torch.cat(
        (attention.kv_a_layernorm(latent), rotation.interleaved(k_rope[:, None])[:, 0]), dim=-1
    )
    latent, k_rope = torch.cat((context, own)).split((widths.latent, widths.rope), dim=-1)
    key_value = attention.kv_b_proj(latent).unflatten(-1, (widths.num_heads, -1))
    k_nope, value = key_value.split((widths.nope, widths.value), dim=-1)
    scores = torch.einsum("nhd,lhd->hnl", q_nope, k_nope)
    scores += torch.einsum("nhd,ld->hnl", rotation.interleaved(q_rope), k_rope)
    ahead = torch.ones(scores.shape[1:], dtype=torch.bool).triu(len(context) + 1)
    weights = (scores * attention.scale).masked_fill(ahead, -torch.inf).softmax(-1)
    return attention.o_proj(torch.einsum("hnl,lhv->nhv", weights, value).flatten(1))


def plain_logits(model, batch, cache, context_len):
    text, decoder = model.config.text, model.language_model.model
    rotation = text_rotation(batch.positions, text.qk_rope_head_dim, text.rope_theta, torch.float32)
    past = slots_of(batch.contexts.tables[0], context_len - len(batch.token_ids))
    x = decoder.embed_tokens(batch.token_ids)
    for layer, memories in zip(decoder.layers, cache.layers, strict=True):
        attended = plain_attention(
            layer.self_attn, layer.input_layernorm(x), rotation, memories[past]
        )
        x = x + attended
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.logits(decoder.norm(x))


@pytest.mark.parametrize("num_new", [DECODE, FEW, MANY])
def test_the_last_of_128k_positions_have_the_numbers_of_the_formula(num_new):
    config = tiny_config(SHAPE)
    model = tiny_model(config)
    widths = LatentAttention(config.text).widths
    assert widths.absorbed_is_cheaper(num_new, CONTEXT) == (num_new != MANY)
    cache, batch = planted(config, CONTEXT, num_new)
    expected = plain_logits(model, batch, cache, CONTEXT)
    actual = model.logits(model(batch, cache))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor that an operator makes; views do not count."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor) and not func.is_view and not is_in_place(func):
                self.nbytes = max(self.nbytes, tensor.nbytes)
        return made


def is_in_place(func):
    return func._schema.is_mutable


def largest_bytes(config, model, context_len, num_new):
    cache, batch = planted(config, context_len, num_new)
    with Largest() as largest:
        model(batch, cache)
    return largest.nbytes


@pytest.mark.parametrize("num_new", [DECODE, FEW, MANY])
def test_beside_the_cache_memory_does_not_grow_with_the_context(num_new):
    # Published heads over a narrow network, so that a copy of all keys would show.
    config = tiny_config({**SHAPE, "num_attention_heads": 16, "num_key_value_heads": 16})
    model = tiny_model(config)
    short = largest_bytes(config, model, CONTEXT // 4, num_new)
    long = largest_bytes(config, model, CONTEXT, num_new)
    # The place of each token in the cache, eight bytes, is the only thing of the context's length.
    assert long <= max(short, 8 * CONTEXT)
    assert long < CONTEXT * 24 * 4  # and not even one layer's latents are copied
