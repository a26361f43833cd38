"""Without a GPU: the step that graphs replay gives equal numbers, and never waits for the host."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from model.engine.config import EngineConfig
from model.engine.cuda_graphs import DecodeGraphs, StaticStep, above
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from model.network.batch import TokenBatch
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache, cache_width
from model.network.kv_pieces import PIECE_LEN, slots_of
from tests.model.fake_gpu import fake_gpu
from tests.tiny import tiny_checkpoint, tiny_config, tiny_model

LENS = (3, 2 * PIECE_LEN + 40, PIECE_LEN)
MULTI_HEAD = {"kv_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 32}


def decodes(lens=LENS, first_block=1):
    """Make a batch of one new token behind each of several random contexts."""
    counts = [-(-length // 16) for length in lens]
    tables = torch.zeros(len(lens), max(counts), dtype=torch.int64)
    for number, blocks in enumerate(torch.arange(first_block, 9999)[: sum(counts)].split(counts)):
        tables[number, : len(blocks)] = blocks
    slots = [slots_of(table, length)[-1] for table, length in zip(tables, lens, strict=True)]
    return TokenBatch(
        token_ids=torch.arange(7, 7 + len(lens)),
        positions=torch.tensor(lens) - 1,
        query_lens=(1,) * len(lens),
        context_lens=tuple(lens),
        num_decodes=len(lens),
        slots=torch.stack(slots),
        block_tables=tables,
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
    step = StaticStep(4, 16, model.device)
    for batch in (decodes(), decodes((9, 33), first_block=7), decodes((5 * PIECE_LEN,))):
        cache, other = random_cache(config), random_cache(config)
        expected = model(batch, cache)
        step.fill(batch)
        found = model(step.batch, other)[: len(batch.token_ids)]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        for mine, theirs in zip(other.layers, cache.layers, strict=True):
            torch.testing.assert_close(mine[16:], theirs[16:], rtol=0, atol=1e-5)
            assert not mine[0].any()


@pytest.mark.parametrize("shape", [{}, MULTI_HEAD], ids=["latent", "multi-head"])
def test_on_a_gpu_the_step_keeps_its_shapes_and_waits_for_nothing(shape):
    config = tiny_config(shape)
    # What would wait (`tolist`, `item`, `nonzero`, `bincount`) has no value to give here and fails.
    with fake_gpu():
        model = fake_model(config)
        width = cache_width(config.text)
        layers = [
            torch.empty(1616, width, dtype=torch.bfloat16, device="cuda")
            for _ in range(config.text.num_hidden_layers)
        ]
        cache = cast("LatentCache", SimpleNamespace(layers=layers))
        step = StaticStep(4, 16, torch.device("cuda"))
        hidden = model(step.batch, cache)
        logits = model.logits(hidden)
    assert hidden.shape == (4, config.text.hidden_size)
    assert hidden.dtype == torch.bfloat16
    assert logits.shape == (4, config.text.vocab_size)
    assert logits.dtype == torch.float32
    assert hidden.device.type == logits.device.type == "cuda"


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


def test_sizes_are_few_and_leave_room():
    assert [above(count) for count in (1, 2, 3, 4, 31, 32)] == [2, 4, 4, 8, 32, 64]


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
        "model.engine.cuda_graphs.capture", lambda work: lambda: calls.append(1) or work()
    )
    engine._graphs = DecodeGraphs(engine.model, engine.cache)
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
    graphs = DecodeGraphs(model, cache)
    for lens in (LENS, (9, 33), LENS):
        batch = on_gpu(decodes(lens))
        expected = model(batch, cache)
        torch.testing.assert_close(graphs(batch), expected, rtol=0.02, atol=0.02)


def on_gpu(batch):
    return TokenBatch(
        token_ids=batch.token_ids.cuda(),
        positions=batch.positions.cuda(),
        query_lens=batch.query_lens,
        context_lens=batch.context_lens,
        num_decodes=batch.num_decodes,
        slots=batch.slots.cuda(),
        block_tables=batch.block_tables.cuda(),
    )
