from itertools import chain

import pytest
import torch

from model.config import BLOCK_SIZE
from model.network.attention import LatentAttention, LatentWidths
from model.network.batch import TokenBatch, whole_sequences
from model.network.kv_cache import LatentCache
from model.network.kv_pieces import PagedContexts
from model.network.rope import text_rotation
from tests.tiny import tiny_config, tiny_model

MULTI_HEAD = {"kv_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 32}
LOW_RANK_QUERY = {"q_lora_rank": 24}


def cached_batch(token_ids, starts, tables):
    """Make a batch of new tokens of each sequence, from its position `start` on."""
    ends = [start + len(ids) for ids, start in zip(token_ids, starts, strict=True)]
    places = [range(start, end) for start, end in zip(starts, ends, strict=True)]
    slots = [
        table[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
        for table, sequence in zip(tables, places, strict=True)
        for place in sequence
    ]
    num_decodes = sum(
        len(ids) == 1 and start > 0 for ids, start in zip(token_ids, starts, strict=True)
    )
    return TokenBatch(
        token_ids=torch.tensor(list(chain(*token_ids)), dtype=torch.int64),
        positions=torch.tensor(list(chain(*places)), dtype=torch.int64),
        query_lens=tuple(len(ids) for ids in token_ids),
        context_lens=tuple(ends),
        num_paged=num_decodes,
        slots=torch.tensor(slots, dtype=torch.int64),
        contexts=PagedContexts(
            tables=torch.tensor(tables, dtype=torch.int32),
            rows=torch.arange(num_decodes, dtype=torch.int32),
            lens=torch.tensor(ends[:num_decodes], dtype=torch.int32),
        ),
        table_rows=tuple(range(len(token_ids))),
    )


def test_absorbed_equals_expanded_in_float64():
    config = tiny_config().text
    torch.manual_seed(1)
    attention = LatentAttention(config).double()
    x = torch.randn(40, config.hidden_size, dtype=torch.float64)
    whole = whole_sequences([list(range(40))])
    rotation = text_rotation(whole.positions, config.qk_rope_head_dim, 1e4, torch.float64)
    expected = attention(x, rotation, whole, None)

    cache = LatentCache(config, 4, torch.float64, torch.device("cpu")).layers[0]
    table = [[3, 1, 4]]
    attention(x[:39], _rotation(config, 0, 39), cached_batch([[0] * 39], [0], table), cache)
    step = cached_batch([[0]], [39], table)
    assert step.num_paged == 1
    decoded = attention(x[39:], _rotation(config, 39, 40), step, cache)
    torch.testing.assert_close(decoded, expected[39:], rtol=0, atol=1e-14)


def _rotation(config, start, end):
    positions = torch.arange(start, end)
    return text_rotation(positions, config.qk_rope_head_dim, 1e4, torch.float64)


PUBLISHED = LatentWidths(num_heads=16, latent=512, nope=128, rope=64, value=128)


@pytest.mark.parametrize(
    ("num_queries", "context_len", "is_cheaper"),
    [
        pytest.param(1, 2, True, id="a decode of two tokens"),
        pytest.param(1, 131_072, True, id="a decode"),
        pytest.param(128, 131_072, True, id="few queries, long past"),
        pytest.param(200, 131_072, False, id="many queries"),
        pytest.param(128, 150, False, id="few queries, short past"),
    ],
)
def test_few_queries_to_a_long_past_absorb(num_queries, context_len, is_cheaper):
    assert PUBLISHED.absorbed_is_cheaper(num_queries, context_len) == is_cheaper


def test_the_costs_are_those_of_the_products():
    heads, latent, nope, rope, value = 16, 512, 128, 64, 128
    for num_queries, context_len in ((1, 2), (7, 900), (150, 900), (151, 9000), (300, 9000)):
        expand = context_len * latent * heads * (nope + value)
        scores_and_sums = num_queries * context_len * heads * 2 * (nope + rope)  # values padded
        absorb_and_up_project = num_queries * heads * latent * (nope + value)
        over_latents = num_queries * context_len * heads * 2 * (latent + rope)
        is_cheaper = absorb_and_up_project + over_latents < expand + scores_and_sums
        assert PUBLISHED.absorbed_is_cheaper(num_queries, context_len) == is_cheaper


def test_a_chunk_reads_its_past_alike_in_both_forms(monkeypatch):
    config = tiny_config().text
    torch.manual_seed(1)
    attention = LatentAttention(config).double()
    x = torch.randn(40, config.hidden_size, dtype=torch.float64)
    expected = attention(x, _rotation(config, 0, 40), whole_sequences([[0] * 40]), None)
    table = [[3, 1, 4]]
    for is_absorbed in (True, False):
        monkeypatch.setattr(LatentWidths, "absorbed_is_cheaper", lambda *_, form=is_absorbed: form)
        cache = LatentCache(config, 4, torch.float64, torch.device("cpu")).layers[0]
        attention(x[:23], _rotation(config, 0, 23), cached_batch([[0] * 23], [0], table), cache)
        chunk = cached_batch([[0] * 17], [23], table)
        found = attention(x[23:], _rotation(config, 23, 40), chunk, cache)
        torch.testing.assert_close(found, expected[23:], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({}, id="latent"),
        pytest.param(LOW_RANK_QUERY, id="latent with low-rank query"),
        pytest.param(MULTI_HEAD, id="multi-head"),
        pytest.param({**MULTI_HEAD, "num_key_value_heads": 2}, id="multi-head, shared keys"),
        pytest.param({"v_head_dim": 64}, id="values wider than keys"),
    ],
)
def test_prefill_chunks_and_decode_steps_equal_the_whole_sequence(shape):
    config = tiny_config(shape)
    model = tiny_model(config)
    first, second = list(range(5, 60)), list(range(100, 121))
    expected = model(whole_sequences([first, second]))

    cache = LatentCache(config.text, 8, torch.float32, model.device)
    tables = [[7, 2, 5, 1], [3, 8, 0, 0]]
    hidden_first = [
        model(cached_batch([first[:30]], [0], tables[:1]), cache),
        model(cached_batch([first[30:50]], [30], tables[:1]), cache),
    ]
    hidden_second = [model(cached_batch([second[:16]], [0], tables[1:]), cache)]
    for step in range(5):
        batch = cached_batch(
            [[first[50 + step]], [second[16 + step]]], [50 + step, 16 + step], tables
        )
        both = model(batch, cache)
        hidden_first.append(both[:1])
        hidden_second.append(both[1:])
    actual = torch.cat((*hidden_first, *hidden_second))
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [{}, MULTI_HEAD], ids=["latent", "multi-head"])
def test_a_step_without_tokens_is_legal(shape):
    config = tiny_config(shape)
    model = tiny_model(config)
    cache = LatentCache(config.text, 2, torch.float32, model.device)
    empty = torch.empty(0, dtype=torch.int64)
    batch = TokenBatch(
        token_ids=empty,
        positions=empty,
        query_lens=(),
        context_lens=(),
        slots=empty,
        contexts=PagedContexts(torch.empty(0, 1, dtype=torch.int32), empty.int(), empty.int()),
    )
    assert model(batch, cache).shape == (0, config.text.hidden_size)
    assert model(whole_sequences([])).shape == (0, config.text.hidden_size)
