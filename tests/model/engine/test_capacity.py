"""What an engine chooses for a card: the arithmetic, the worst-case step, and its measuring."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.config import BLOCK_SIZE
from model.engine.blocks import blocks_for
from model.engine.config import EngineConfig
from model.engine.engine import Engine, own_turn
from model.engine.fit import device_fit
from model.engine.fit.capacity import (
    GIB,
    Capacity,
    StepMemory,
    cache_bytes,
    default_batch_size,
    kept_bytes,
)
from model.engine.fit.worst_case import measure, worst_prompts
from model.engine.sequence import SamplingParams
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache
from tests.tiny import tiny_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("card_gb", "expected"),
    [
        pytest.param(150.7, 256, id="more than 80 GB"),
        pytest.param(80.0, 256, id="80 GB"),
        pytest.param(79.0, 256, id="80 GB, of which some are not reported"),
        pytest.param(64.0, 128, id="64 GB"),
        pytest.param(47.0, 128, id="48 GB, of which some are not reported"),
        pytest.param(42.9, 64, id="40 GB"),
        pytest.param(23.0, 64, id="24 GB, of which some are not reported"),
        pytest.param(17.0, 32, id="16 GB"),
    ],
)
def test_the_batch_follows_the_card(card_gb, expected):
    assert default_batch_size("cuda", int(card_gb * 1e9)) == expected
    assert default_batch_size("cuda:3", int(card_gb * 1e9)) == expected


def test_the_batch_of_an_unknown_card_is_the_largest_and_that_of_cpus_stays():
    assert default_batch_size("cuda") == 256
    assert default_batch_size("cpu") == default_batch_size("cpu", 1 << 40) == 32


def test_the_cache_takes_what_is_left_of_nine_tenths_of_the_card():
    memory = StepMemory(card=100 * GIB, used=33 * GIB, step=7 * GIB)
    kept = kept_bytes(0.5, has_graphs=False)
    assert kept == GIB // 2
    assert kept_bytes(0.5, has_graphs=True) > kept
    assert cache_bytes(memory, kept, sequence_bytes=4 * GIB) == int(49.5 * GIB)


def test_a_card_without_room_for_one_sequence_is_refused_with_the_remedies():
    memory = StepMemory(card=24 * GIB, used=17 * GIB, step=2 * GIB)
    left = int(0.9 * 24 * GIB) - 19 * GIB
    assert cache_bytes(memory, 0, sequence_bytes=left) == left
    with pytest.raises(
        ValueError, match=r"2\.60 GiB are left .* takes 4\.00: 0\.9 of .* 24\.00"
    ) as error:
        cache_bytes(memory, 0, sequence_bytes=4 * GIB)
    text = str(error.value)
    for remedy in ("--cache-gib 2.59,", "--max-step-tokens", "--batch-size", "--expert-parallel"):
        assert remedy in text
    with pytest.raises(ValueError, match=r"-8\.40 GiB are left") as error:
        cache_bytes(replace(memory, used=28 * GIB), 0, sequence_bytes=GIB)
    assert "--cache-gib" not in str(error.value)  # no size of the cache helps


LIMITS = {"num_sequences": 8, "num_tokens": 256, "num_patches": 128, "max_model_len": 1024}


@pytest.mark.parametrize(
    ("changes", "num_prompts", "num_tokens", "num_patches"),
    [
        pytest.param({}, 8, 256, 128, id="texts and an image"),
        pytest.param({"num_patches": 1}, 8, 256, 0, id="no image is so small"),
        pytest.param(
            {"num_patches": 16384, "num_tokens": 8192, "max_model_len": 131072},
            8,
            8192,
            16384,
            id="the defaults",
        ),
        pytest.param({"num_sequences": 1}, 1, 256, 120, id="one sequence"),
        pytest.param({"num_sequences": 512}, 256, 254 + 34, 128, id="more sequences than tokens"),
        pytest.param({"max_model_len": 18}, 8, 8 * 17, 128, id="short contexts, two images"),
        pytest.param({"num_tokens": 1}, 1, 31, 120, id="one token, of an image"),
    ],
)
def test_the_prompts_of_the_worst_step_have_what_a_step_may_have(
    changes, num_prompts, num_tokens, num_patches
):
    limits = {**LIMITS, **changes}
    config = tiny_config()
    prompts = worst_prompts(config, **limits)
    lens = [len(prompt.token_ids) for prompt in prompts]
    assert len(prompts) == num_prompts
    assert max(lens) < limits["max_model_len"]
    assert sum(lens) == num_tokens
    assert sum(len(prompt.patches) for prompt in prompts) == num_patches
    for prompt in prompts:
        is_pad = prompt.token_ids == config.media_token_id
        assert is_pad.sum() == prompt.num_vision_tokens
        assert prompt.token_ids.max() < config.text.vocab_size


@pytest.fixture
def steps(monkeypatch):
    """The tokens, patches and rows of logits of every call of the network."""
    found = {"tokens": [], "patches": [], "rows": []}
    forward, encode, logits = KimiVL.forward, KimiVL.encode_images, KimiVL.logits

    def counted_forward(self, batch, *rest):
        found["tokens"].append(len(batch.token_ids))
        return forward(self, batch, *rest)

    def counted_encode(self, images, grid_hw):
        found["patches"].append(len(images))
        return encode(self, images, grid_hw)

    def counted_logits(self, hidden):
        found["rows"].append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(KimiVL, "forward", counted_forward)
    monkeypatch.setattr(KimiVL, "encode_images", counted_encode)
    monkeypatch.setattr(KimiVL, "logits", counted_logits)
    return found


def answers(engine, processor):
    for number, text in enumerate(["a", "red circle " * 12]):
        engine.add(str(number), processor.prompt([text]), SamplingParams(max_tokens=9))
    done = {}
    while engine.has_work:
        done |= dict(engine.step())
    return {name: found.token_ids for name, found in done.items()}


def test_the_worst_step_is_one_step_and_leaves_no_trace(checkpoint, processor, steps):
    config = EngineConfig(cache_gib=0.01, max_step_tokens=256, max_vision_patches=128)
    engine = Engine.from_checkpoint(checkpoint, config)
    cache = [layer.clone() for layer in engine.cache.layers]
    load = engine.expert_load()
    num_bytes = engine._worst_step(8, own_turn)
    assert steps == {"tokens": [256], "patches": [128], "rows": [8]}
    block_bytes = LatentCache.block_bytes(engine.model.config.text, engine.model.dtype)
    assert num_bytes % block_bytes == 0
    assert 256 // BLOCK_SIZE * block_bytes < num_bytes < 3 * 256 // BLOCK_SIZE * block_bytes
    for before, after in zip(cache, engine.cache.layers, strict=True):
        assert torch.equal(before.nan_to_num(), after.nan_to_num())
    assert engine.pool.num_available == engine.pool.num_blocks
    assert engine.stats()["steps"] == engine.stats()["step_s"] == 0
    assert not engine.has_work
    for layer, tokens in engine.expert_load().items():
        assert np.array_equal(tokens, load[layer])
        assert not tokens.any()
    fresh = Engine.from_checkpoint(checkpoint, config)
    assert answers(engine, processor) == answers(fresh, processor)


class Cuda:
    """What `measure` asks of `torch.cuda`, for a card of 80 GiB."""

    def __init__(self, *, weights, context, step, workspace):
        self.allocated, self.outside = weights, context
        self.step_bytes, self.workspace = step, workspace
        self.cached = 3 * GIB  # that torch keeps for itself after loading
        self.peak = 60 * GIB  # while it loaded

    def empty_cache(self):
        self.cached = 0

    def reset_peak_memory_stats(self, device):
        self.peak = self.allocated

    def step(self):
        own = GIB  # of the step's own cache
        self.peak = self.allocated + self.step_bytes + self.workspace + own
        self.allocated += self.workspace  # stays
        self.outside += GIB // 4  # the buffers of NCCL, which stay too
        self.cached = self.step_bytes + own
        return own

    def max_memory_allocated(self, device):
        return self.peak

    def memory_allocated(self, device):
        return self.allocated

    def mem_get_info(self, device):
        return 80 * GIB - self.allocated - self.outside - self.cached, 80 * GIB


def test_a_step_is_measured_by_its_peak_and_the_card_by_what_is_free_afterwards():
    cuda = Cuda(weights=32 * GIB, context=2 * GIB, step=5 * GIB, workspace=GIB // 2)
    memory = measure(cuda.step, CPU, cuda)
    assert memory == StepMemory(card=80 * GIB, used=int(34.75 * GIB), step=5 * GIB)


def test_a_worst_step_that_does_not_fit_is_refused_with_the_remedies():
    cuda = Cuda(weights=32 * GIB, context=2 * GIB, step=5 * GIB, workspace=0)

    def step():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    message = r"worst-case step does not fit .*: .* Tried to allocate 9 GiB\.; lower --max-step"
    with pytest.raises(ValueError, match=message):
        measure(step, CPU, cuda)


class CacheWithoutMemory:
    """A cache that knows its size only."""

    block_bytes = LatentCache.block_bytes

    def __init__(self, config, num_blocks, dtype, device):
        self.num_blocks = num_blocks


@pytest.fixture
def card(monkeypatch, checkpoint):
    """A GPU of 50 GB whose worst-case step leaves 3,000 blocks; call it with a configuration."""
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(cache_gib=0.01))
    block_bytes = LatentCache.block_bytes(engine.model.config.text, engine.model.dtype)
    card_bytes = 50_000_000_000
    left = 3000.5 * block_bytes
    on_card: Any = SimpleNamespace(
        config=engine.model.config,
        dtype=engine.model.dtype,
        device=torch.device("cuda", 0),
        never_waits=False,
    )
    tried = []

    def measured(step, device):
        tried.append(step())
        used = int(0.9 * card_bytes) - GIB - GIB // 2 - int(left)
        return StepMemory(card=card_bytes, used=used, step=GIB)

    monkeypatch.setattr(device_fit, "measure", measured)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, card_bytes))
    monkeypatch.setattr(device_fit, "LatentCache", CacheWithoutMemory)

    def fit(config, max_model_len=4096):
        fitted = device_fit.fit_device(on_card, config, max_model_len, lambda size: size)
        return *fitted, tried

    return fit


def test_without_options_batch_and_cache_follow_the_card(card):
    capacity, cache, tried = card(EngineConfig())
    assert tried == [128]  # the worst-case step has the batch of the card
    assert (capacity.batch_size, cache.num_blocks) == (128, 3000)
    assert (capacity.cache_tokens, capacity.step_tokens) == (3000 * BLOCK_SIZE, 8192)
    assert str(capacity).startswith("batches of 128 sequences (for a card of 46.6 GiB); cache of ")
    assert "48000 tokens (0.9 of the card, less " in str(capacity)
    assert "1.0 of a worst-case step and 0.5 for image features and CUDA graphs)" in str(capacity)
    assert str(capacity).endswith("steps of 8192 tokens; vision calls of 16384 patches")


def test_an_option_always_wins(card):
    capacity, _, tried = card(EngineConfig(max_batch_size=7))
    assert (capacity.batch_size, tried) == (7, [7])
    assert "batches of 7 sequences (as asked); cache" in str(capacity)
    capacity, cache, _ = card(EngineConfig(cache_gib=0.001))
    assert (capacity.batch_size, capacity.is_cache_given) == (128, True)
    assert cache.num_blocks < 3000
    assert "tokens (as asked)" in str(capacity)
    card(EngineConfig(cache_fraction=0.5))
    assert tried == [7]  # nothing is measured for a cache of given size


def test_a_cache_is_not_larger_than_all_sequences_can_fill(card):
    capacity, cache, _ = card(EngineConfig(max_batch_size=3), max_model_len=160)
    assert cache.num_blocks == 3 * blocks_for(160)
    assert capacity.cache_tokens == 480


def test_an_engine_on_cpus_is_as_before_and_says_so(checkpoint):
    capacity = Engine.from_checkpoint(checkpoint, EngineConfig(max_model_len=256)).capacity
    assert (capacity.batch_size, capacity.cache_tokens) == (32, 32 * 256)
    assert str(capacity).startswith("batches of 32 sequences (the default on CPUs); cache of ")
    assert "tokens (the default on CPUs); steps of 8192 tokens" in str(capacity)


def test_a_capacity_travels_as_numbers(checkpoint):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(cache_gib=0.01, max_batch_size=5))
    stats = engine.stats()
    assert all(isinstance(value, int | float) for value in stats.values())
    found = Capacity.of(stats)
    assert found is not None
    assert found == engine.capacity
    assert isinstance(found.batch_size, int)
    assert found.is_batch_given is True
    assert Capacity.of({"steps": 3.0}) is None


@pytest.mark.gpu
def test_on_a_gpu_everything_stays_within_its_share(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(device="cuda"))
    free, card = torch.cuda.mem_get_info()
    capacity = engine.capacity
    assert capacity.batch_size == default_batch_size("cuda", card)
    assert capacity.card_gib * GIB == pytest.approx(card)
    assert capacity.step_gib > 0
    assert card - free < 0.95 * card
    assert len(answers(engine, processor)) == 2
