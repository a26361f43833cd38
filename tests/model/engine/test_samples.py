"""Several samples of one prompt: one prefill, one answer."""

import json

import numpy as np
import pytest

from model.engine.config import EngineConfig
from model.engine.engine import GIB, Engine
from model.engine.sequence import Answer, Completion, SamplingParams
from model.inputs.prompt import PromptError
from model.network.kimi_vl import KimiVL


def run(engine):
    done = {}
    while engine.has_work:
        done |= dict(engine.step())
    return done


def answer(engine, prompt, params):
    engine.add("x", prompt, params)
    return run(engine)["x"]


def clip(processor, num_frames=4):
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, 56, 56, 3), dtype=np.uint8)
    return processor.prompt([*frames, "what moves in this clip?"])


def test_samples_are_those_of_single_requests_with_their_seeds(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(max_batch_size=3))
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=7, n=5)
    together = answer(engine, clip(processor), params)
    texts = [each.token_ids for each in (together, *together.others)]
    alone = [
        answer(
            engine,
            clip(processor),
            SamplingParams(max_tokens=12, temperature=1.0, seed=params.of_sample(number).seed),
        ).token_ids
        for number in range(5)
    ]
    assert texts == alone
    assert len(set(texts)) == 5
    assert params.of_sample(0).seed == 7
    assert engine.pool.num_available == engine.pool.num_blocks


@pytest.mark.parametrize("max_step_tokens", [16, 50, 8192])
def test_all_samples_share_one_prefill(checkpoint, processor, monkeypatch, max_step_tokens):
    num_tokens, num_patches = [], []
    forward, encode = KimiVL.forward, KimiVL.encode_images

    def counted_forward(self, batch, *more, **named):
        num_tokens.append(len(batch.token_ids))
        return forward(self, batch, *more, **named)

    def counted_encode(self, patches, grid_hw):
        num_patches.append(len(patches))
        return encode(self, patches, grid_hw)

    monkeypatch.setattr(KimiVL, "forward", counted_forward)
    monkeypatch.setattr(KimiVL, "encode_images", counted_encode)
    prompt = clip(processor)
    config = EngineConfig(max_batch_size=8, max_step_tokens=max_step_tokens)
    engine = Engine.from_checkpoint(checkpoint, config)
    answer(engine, prompt, SamplingParams(max_tokens=1, temperature=1.0, n=8))
    assert sum(num_patches) == prompt.num_patches
    assert sum(num_tokens) <= len(prompt.token_ids) + 7 * 16


def test_samples_that_lose_their_blocks_are_the_same(checkpoint, processor):
    prompt = processor.prompt(["red circle " * 5])
    params = SamplingParams(max_tokens=40, temperature=1.0, n=6, loop_guard=0)
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    expected = answer(engine, prompt, params)
    per_block = sum(layer.nbytes for layer in engine.cache.layers) / (engine.pool.num_blocks + 1)
    gib = 15.5 * per_block / GIB
    small = Engine.from_checkpoint(checkpoint, EngineConfig(cache_gib=gib))
    found = answer(small, prompt, params)
    assert small.scheduler.num_preemptions > 0
    assert [each.token_ids for each in (found, *found.others)] == [
        each.token_ids for each in (expected, *expected.others)
    ]


def test_samples_follow_a_schema_each(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 4}
    params = SamplingParams(max_tokens=60, temperature=1.0, n=6, schema=json.dumps(schema))
    found = answer(engine, processor.prompt(["count"]), params)
    texts = [each.text for each in (found, *found.others) if each.finish_reason == "stop"]
    assert len(set(texts)) > 1
    assert all(isinstance(json.loads(text), list) for text in texts)


def test_a_cancelled_request_takes_all_its_samples_along(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(max_batch_size=2))
    params = SamplingParams(max_tokens=9, temperature=1.0, n=4)
    engine.add("gone", clip(processor), params)
    engine.add("stays", clip(processor), params)
    engine.step()
    engine.cancel("gone")
    assert run(engine).keys() == {"stays"}
    assert engine.pool.num_available == engine.pool.num_blocks


def test_a_sample_that_failed_fails_the_answer():
    good = Completion(
        text="a",
        token_ids=(1,),
        finish_reason="stop",
        num_prompt_tokens=1,
        num_generated_tokens=1,
        mean_logprob=-1.0,
        min_logprob=-1.0,
    )
    bad = PromptError("schema_failed", "too much")
    collected = Answer(3)
    assert collected.take(2, good) is None
    assert collected.take(1, bad) is None
    assert collected.take(0, good) is bad
    collected = Answer(2)
    assert collected.take(1, good) is None
    both = collected.take(0, good)
    assert isinstance(both, Completion)
    assert both.others == (good,)


def test_every_token_has_a_log_probability_if_asked_for(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    prompt = clip(processor)
    params = SamplingParams(max_tokens=8, temperature=1.0, n=2, token_logprobs=True)
    found = answer(engine, prompt, params)
    for each in (found, *found.others):
        assert each.token_logprobs is not None
        assert len(each.token_logprobs) == len(each.token_ids)
        assert min(each.token_logprobs) == each.min_logprob
        assert np.mean(each.token_logprobs) == pytest.approx(each.mean_logprob)
    assert answer(engine, prompt, SamplingParams(max_tokens=2)).token_logprobs is None


def test_impossible_numbers_of_samples_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        SamplingParams(n=0)
    with pytest.raises(ValueError, match="n=3 samples at temperature 0 would all be the same"):
        SamplingParams(n=3)
