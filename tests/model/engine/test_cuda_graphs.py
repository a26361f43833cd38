"""Without a GPU: the step that graphs replay gives equal numbers, and never waits for the host."""

import pytest
import torch
from torch import nn

from model.engine.config import EngineConfig
from model.engine.cuda_graphs import DecodeGraphs, StaticStep, graph_sizes
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from model.network.batch import TokenBatch
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache
from model.network.kv_pieces import PIECE_LEN, PagedContexts, slots_of
from tests.tiny import tiny_checkpoint, tiny_config, tiny_model

LENS = (3, 2 * PIECE_LEN + 40, PIECE_LEN)
MULTI_HEAD = {"kv_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 32}


def decodes(lens=LENS, first_block=1, num_padding=0, device="cpu"):
    """Make a batch of one new token behind each of several random contexts, filled up."""
    counts = [-(-length // 16) for length in lens]
    tables = torch.zeros(len(lens) + 1, 100, dtype=torch.int32)  # row 0 is that of padding
    for number, blocks in enumerate(torch.arange(first_block, 9999)[: sum(counts)].split(counts)):
        tables[number + 1, : len(blocks)] = blocks
    slots = [slots_of(table, length)[-1] for table, length in zip(tables[1:], lens, strict=True)]
    size = len(lens) + num_padding
    return TokenBatch(
        token_ids=torch.arange(7, 7 + size).to(device),
        positions=torch.tensor([length - 1 for length in lens] + [1] * num_padding).to(device),
        query_lens=(1,) * size,
        context_lens=(*lens, *(1,) * num_padding),
        num_paged=size,
        slots=torch.tensor([*slots, *[1] * num_padding]).to(device),
        contexts=PagedContexts(
            tables=tables.to(device),
            rows=torch.tensor([*range(1, len(lens) + 1), *[0] * num_padding]).int().to(device),
            lens=torch.tensor([*lens, *[1] * num_padding]).int().to(device),
        ),
        table_rows=(*range(1, len(lens) + 1), *(0,) * num_padding),
    )


def random_cache(config):
    cache = LatentCache(config.text, 100, torch.float32, torch.device("cpu"))
    for number, layer in enumerate(cache.layers):
        layer[1:] = torch.randn(layer[1:].shape, generator=torch.Generator().manual_seed(number))
    return cache


@pytest.mark.parametrize("shape", [{}, MULTI_HEAD], ids=["latent", "multi-head"])
def test_a_filled_up_step_gives_the_numbers_of_the_step(shape):
    config = tiny_config(shape)
    model = tiny_model(config)
    for lens, first_block in ((LENS, 1), ((9, 33), 7), ((5 * PIECE_LEN,), 1)):
        cache, other = random_cache(config), random_cache(config)
        batch = decodes(lens, first_block)
        expected = model(batch, cache)
        filled = decodes(lens, first_block, num_padding=4 - len(lens))
        assert filled.contexts is not None
        step = StaticStep(4, filled.contexts.tables)
        step.fill(filled)
        found = model(step.batch(), other)[: len(lens)]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        for mine, theirs in zip(other.layers, cache.layers, strict=True):
            torch.testing.assert_close(mine[16:], theirs[16:], rtol=0, atol=1e-5)
            assert not mine[0].any()


def fake_model(config):
    """Give a model fake tensors on a GPU; torch cannot move or initialise fake ones."""
    with torch.device("meta"):
        model = KimiVL(config)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cuda"))
        for name, parameter in module.named_parameters(recurse=False):
            there = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cuda")
            module.register_parameter(name, nn.Parameter(there, requires_grad=False))
    return model


def test_a_step_computes_at_most_seven_sequences_too_many():
    assert graph_sizes(20) == [1, 2, 4, 8, 16, 24]
    config = tiny_config()
    graphs = DecodeGraphs(tiny_model(config), random_cache(config), 256)
    assert [graphs.size_for(count) for count in (1, 2, 3, 5, 9, 17, 256)] == [
        *(1, 2, 4, 8, 16, 24, 256)
    ]


def test_graphs_without_a_gpu_are_refused():
    with pytest.raises(ValueError, match="cuda_graphs needs a device=cuda, got device='cpu'"):
        EngineConfig(cuda_graphs=True)


def test_an_engine_replays_the_steps_that_only_decode(tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path)
    engine = Engine.from_checkpoint(tmp_path, EngineConfig())
    prompt = Processor.from_checkpoint(tmp_path).prompt(["a red circle"])
    engine.add("plain", prompt, SamplingParams(max_tokens=9))
    expected = finish(engine)["plain"].token_ids

    # On a CPU nothing is captured: the filled-up step itself is computed each time.
    calls = []
    monkeypatch.setattr(
        "model.engine.cuda_graphs.capture", lambda work, _: lambda: calls.append(1) or work()
    )
    engine._graphs = DecodeGraphs(engine.model, engine.cache, 32)
    engine.add("replayed", prompt, SamplingParams(max_tokens=9))
    assert finish(engine)["replayed"].token_ids == expected
    assert len(calls) == len(expected) - 1  # all but the first, which the prompt gives


def finish(engine):
    done = {}
    while engine.has_work:
        done |= dict(engine.step())
    return done


@pytest.mark.gpu
def test_replayed_steps_give_the_numbers_of_the_steps():
    config = tiny_config()
    model = tiny_model(config).bfloat16().cuda()
    cache = LatentCache(config.text, 100, torch.bfloat16, torch.device("cuda"))
    for layer in cache.layers:
        layer[1:].normal_()
    graphs = DecodeGraphs(model, cache, 8)
    for lens in (LENS, (9, 33, 17, 2), LENS):
        batch = decodes(lens, num_padding=4 - len(lens), device="cuda")
        expected = model(batch, cache)
        torch.testing.assert_close(graphs(batch), expected, rtol=0.02, atol=0.02)
