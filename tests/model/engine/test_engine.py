import re
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from model.engine.config import EngineConfig
from model.engine.engine import Engine, StepTurn
from model.engine.sequence import SamplingParams
from model.inputs.prompt import Prompt, PromptError
from model.json_values import CheckpointError
from model.network.batch import whole_sequences
from model.network.kimi_vl import KimiVL


@pytest.fixture
def engine(checkpoint):
    return Engine.from_checkpoint(checkpoint, EngineConfig(max_batch_size=4))


def picture(seed, height=56, width=84):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def text_prompt(processor, text):
    return processor.prompt([text])


def run(engine) -> dict[str, Any]:
    done = {}
    while engine.has_work:
        done |= dict(engine.step())
    return done


def answer(engine, prompt, params):
    engine.add("x", prompt, params)
    return run(engine)["x"]


def greedy_without_cache(engine, prompt, num_tokens):
    """Generate in the simplest way: compute the whole sequence again for every token."""
    model = engine.model
    features = None
    if len(prompt.patches):
        grid_hw = [(int(h), int(w)) for h, w in prompt.grid_hw]
        features = model.encode_images(torch.from_numpy(prompt.patches), grid_hw)
    ids = prompt.token_ids.tolist()
    for _ in range(num_tokens):
        hidden = model(whole_sequences([ids], model.config.media_token_id), features=features)
        ids.append(int(model.logits(hidden[-1:])[0].argmax()))
    return tuple(ids[len(prompt.token_ids) :])


def test_choices_are_told_as_the_whole_sequence_forward_has_them(engine, processor):
    prompt = processor.prompt([picture(3), "A or B?"])
    choices = ("A", "B", "C")
    warm = SamplingParams(max_tokens=3, temperature=2.0, n=2, choices=choices)

    found = answer(engine, prompt, warm)

    features = engine.model.encode_images(
        torch.from_numpy(prompt.patches), [(int(h), int(w)) for h, w in prompt.grid_hw]
    )
    batch = whole_sequences([prompt.token_ids.tolist()], engine.model.config.media_token_id)
    logits = engine.model.logits(engine.model(batch, features=features)[-1:])[0]
    ids = [processor.tokenizer.encode(choice)[0] for choice in choices]
    expected = logits.log_softmax(-1)[ids].tolist()
    for each in (found, *found.others):
        assert each.choice_logprobs == pytest.approx(expected, abs=1e-4)
    assert answer(engine, prompt, SamplingParams(max_tokens=2)).choice_logprobs is None


def test_choices_that_begin_alike_are_refused(engine, processor):
    with pytest.raises(PromptError, match="begin with one token"):
        engine.add("x", processor.prompt(["a"]), SamplingParams(choices=("A" * 40, "A" * 41)))
    with pytest.raises(ValueError, match="choices must be different texts"):
        SamplingParams(choices=("A", "A"))


def test_many_sequences_of_different_length_equal_the_whole_sequence_forward(engine, processor):
    prompts = {
        "short": processor.prompt(["a"]),
        "image": processor.prompt([picture(0), "what is it?"]),
        "video": processor.prompt([part for s in range(5) for part in (f"{s}s", picture(s))]),
        "two sizes": processor.prompt([picture(1, 28, 28), picture(2, 140, 30), "compare"]),
        "long": processor.prompt(["red circle " * 40]),
        "late": processor.prompt(["blue"]),
    }
    assert len(prompts) > engine.capacity.batch_size
    lengths = dict(zip(prompts, (3, 20, 9, 17, 12, 5), strict=True))
    for name, prompt in prompts.items():
        engine.add(name, prompt, SamplingParams(max_tokens=lengths[name]))
    done = run(engine)
    assert done.keys() == prompts.keys()
    for name, prompt in prompts.items():
        expected = greedy_without_cache(engine, prompt, lengths[name])
        stops = [i for i, t in enumerate(expected) if t in engine.model.config.stop_token_ids]
        expected = expected[: stops[0] + 1] if stops else expected
        assert done[name].token_ids == expected, name
        assert done[name].finish_reason == ("stop" if stops else "length")
        assert done[name].num_prompt_tokens == len(prompt.token_ids)
        assert done[name].num_generated_tokens == len(expected)
        assert done[name].min_logprob <= done[name].mean_logprob <= 0
    assert engine.pool.num_available == engine.pool.num_blocks


def test_the_answer_does_not_depend_on_neighbours_or_on_the_order(engine, processor):
    prompts = [processor.prompt([picture(seed), "caption"]) for seed in range(6)]
    params = [SamplingParams(max_tokens=12, temperature=1.0, top_p=0.9, seed=s) for s in range(6)]
    for place in (5, 2, 4, 0, 1, 3):
        engine.add(str(place), prompts[place], params[place])
    together = run(engine)
    for place in range(6):
        engine.add("alone", prompts[place], params[place])
        assert run(engine)["alone"].token_ids == together[str(place)].token_ids


def test_seeds_give_different_answers_and_the_same_again(engine, processor):
    prompt = text_prompt(processor, "draw")
    answers = []
    for seed in (1, 2, 1):
        engine.add("x", prompt, SamplingParams(max_tokens=16, temperature=1.0, seed=seed))
        answers.append(run(engine)["x"].token_ids)
    assert answers[0] == answers[2] != answers[1]


def test_a_stop_string_ends_the_text_before_it_even_across_tokens(engine, processor):
    prompt = text_prompt(processor, "describe")
    for seed in range(50):
        free = answer(engine, prompt, SamplingParams(max_tokens=40, temperature=1.0, seed=seed))
        plain = re.search(r"[ -~]{2,}", free.text[5:])
        if plain:
            break
    else:
        pytest.fail("no seed gives two printable characters in a row")
    stop = plain[0]
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=seed, stop=("never there", stop))
    engine.add("stopped", prompt, params)
    stopped = run(engine)["stopped"]
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.num_generated_tokens < free.num_generated_tokens


def test_a_stop_token_ends_the_sequence_and_gives_no_text(engine, processor):
    prompt = text_prompt(processor, "describe")
    engine.add("free", prompt, SamplingParams(max_tokens=8))
    free = run(engine)["free"]
    stop = free.token_ids[4]
    first = free.token_ids.index(stop)
    engine.add("stopped", prompt, SamplingParams(max_tokens=8, stop_token_ids=(stop,)))
    stopped = run(engine)["stopped"]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.text == engine.tokenizer.decode(stopped.token_ids[:-1])


def test_a_prompt_that_cannot_be_run_is_refused_alone(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(max_model_len=80))
    good = text_prompt(processor, "a")
    engine.add("good", good, SamplingParams(max_tokens=4))
    with pytest.raises(PromptError, match="room for 80") as error:
        engine.add("long", processor.prompt(["red circle " * 40]), SamplingParams())
    assert error.value.code == "prompt_too_long"
    vocab_size = engine.model.config.text.vocab_size
    for token_ids, message in (
        ([5, vocab_size], "token ids must be in"),
        ([-1], "token ids must be in"),
        ([engine.model.config.media_token_id], "1 media pads for 0 vision tokens"),
    ):
        bad = Prompt(
            token_ids=np.array(token_ids, np.int32), patches=good.patches, grid_hw=good.grid_hw
        )
        with pytest.raises(PromptError, match=message):
            engine.add("bad", bad, SamplingParams())
    assert run(engine).keys() == {"good"}


def test_the_context_limits_the_answer(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(max_model_len=70))
    prompt = text_prompt(processor, "a")
    engine.add("x", prompt, SamplingParams(max_tokens=500, temperature=1.0))
    done = run(engine)["x"]
    assert done.finish_reason == "length"
    assert done.num_prompt_tokens + done.num_generated_tokens == 70


def test_a_small_cache_makes_sequences_wait_and_loses_none(checkpoint, processor):
    gib = 1 << 30
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    per_block = sum(layer.nbytes for layer in engine.cache.layers) / (engine.pool.num_blocks + 1)
    small = Engine.from_checkpoint(checkpoint, EngineConfig(cache_gib=5.5 * per_block / gib))
    assert small.pool.num_blocks == 5
    prompts = {str(n): text_prompt(processor, "circle " * n) for n in range(1, 7)}
    for name, prompt in prompts.items():
        small.add(name, prompt, SamplingParams(max_tokens=10))
        engine.add(name, prompt, SamplingParams(max_tokens=10))
    expected = {name: done.token_ids for name, done in run(engine).items()}
    assert {name: done.token_ids for name, done in run(small).items()} == expected


def test_the_cache_takes_its_fraction_of_what_is_free(checkpoint, monkeypatch):
    whole = Engine.from_checkpoint(checkpoint, EngineConfig())
    per_block = sum(layer.nbytes for layer in whole.cache.layers) // (whole.pool.num_blocks + 1)
    monkeypatch.setattr("model.engine.fit.device_fit.free_bytes", lambda device: 21 * per_block)
    half = Engine.from_checkpoint(checkpoint, EngineConfig(cache_fraction=0.5))
    assert half.pool.num_blocks == 10
    message = r"cache_fraction=0.01 of 0.00 GiB free is too small for one block"
    with pytest.raises(ValueError, match=message):
        Engine.from_checkpoint(checkpoint, EngineConfig(cache_fraction=0.01))


def test_a_cache_that_the_machine_has_no_room_for_is_refused(checkpoint):
    config = EngineConfig(cache_gib=1e7, max_batch_size=1 << 40)
    with pytest.raises(ValueError, match=r"cache_gib=1e\+07 cannot be reserved on cpu: "):
        Engine.from_checkpoint(checkpoint, config)
    message = r"cache_gib=1e-09 is too small for one block of \d+ bytes"
    with pytest.raises(ValueError, match=message):
        Engine.from_checkpoint(checkpoint, EngineConfig(cache_gib=1e-9))


def test_a_cancelled_request_gives_its_memory_back(engine, processor):
    for name in "abcdef":
        engine.add(name, text_prompt(processor, name), SamplingParams(max_tokens=5))
    engine.step()
    engine.cancel("a")  # running
    engine.cancel("f")  # waiting
    engine.cancel("unknown")
    assert run(engine).keys() == set("bcde")
    assert engine.pool.num_available == engine.pool.num_blocks


def test_a_device_that_does_not_exist_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU"):
        Engine.from_checkpoint(checkpoint, EngineConfig(device="cuda"))


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Engine.from_checkpoint(tmp_path, EngineConfig())


def test_image_order_and_content_reach_the_text(engine, processor):
    first, second = picture(1), picture(2)
    answers = []
    for images in ((first, second), (second, first), (first, first)):
        prompt = processor.prompt([*images, "describe"])
        engine.add("x", prompt, SamplingParams(max_tokens=1))
        answers.append(run(engine)["x"].mean_logprob)
    assert len(set(answers)) == 3


def test_prompts_that_cannot_be_written_to_are_run(engine, processor):
    prompt = processor.prompt([picture(0), "what is it?"])
    for array in (prompt.token_ids, prompt.patches, prompt.grid_hw):
        array.flags.writeable = False  # as they come out of Ray's object store
    engine.add("x", prompt, SamplingParams(max_tokens=2))
    assert run(engine)["x"].num_generated_tokens == 2


def test_a_sequence_whose_numbers_break_fails_alone(engine, processor):
    broken = engine.tokenizer.encode("z")[0]
    table = engine.model.language_model.model.embed_tokens.weight
    table[broken] = float("nan")
    engine.add("broken", text_prompt(processor, "zz top"), SamplingParams(max_tokens=4))
    engine.add("whole", text_prompt(processor, "a red circle"), SamplingParams(max_tokens=4))
    done = run(engine)
    assert done["broken"].code == "engine_error"
    assert "is not a number" in done["broken"].message
    assert done["whole"].num_generated_tokens == 4
    assert engine.pool.num_available == engine.pool.num_blocks
    engine.add("again", text_prompt(processor, "a red circle"), SamplingParams(max_tokens=4))
    assert run(engine)["again"].token_ids == done["whole"].token_ids


def test_vision_calls_respect_the_budget_and_give_the_same(checkpoint, processor, monkeypatch):
    prompt = processor.prompt([*(picture(seed, 56, 56) for seed in range(5)), "describe"])
    calls = []

    def encode_and_count(self, patches, grid_hw):
        calls.append(len(patches))
        return encode(self, patches, grid_hw)

    encode = KimiVL.encode_images
    monkeypatch.setattr(KimiVL, "encode_images", encode_and_count)
    texts = []
    for budget in (1, 16, 40, 16384):
        engine = Engine.from_checkpoint(checkpoint, EngineConfig(max_vision_patches=budget))
        engine.add("x", prompt, SamplingParams(max_tokens=6))
        texts.append(run(engine)["x"].token_ids)
        assert max(calls) <= max(budget, 16)  # a picture has 16 patches and is not cut
        assert sum(calls) == 80
        calls.clear()
    assert len(set(texts)) == 1


def test_a_turn_is_told_the_step_and_decides_whether_it_is_computed(engine, processor):
    told = []

    @contextmanager
    def turn(num_tokens, is_decode):
        told.append((num_tokens, is_decode))
        yield StepTurn(num_tokens, may_replay=False)

    prompt = processor.prompt(["red"])
    engine.add("a", prompt, SamplingParams(max_tokens=3))
    while engine.has_work:
        engine.step(turn)
    assert engine.step(turn) == []
    decodes = [(1, True)] * (len(told) - 2)
    assert told == [(len(prompt.token_ids), False), *decodes, (0, True)]


def test_a_rank_without_work_takes_no_tokens_through_every_expert_layer(engine):
    visited = []
    for layer in engine.model.language_model.model.layers:
        layer.mlp.register_forward_hook(lambda _, args, out: visited.append(len(out)))
    assert engine.step(lambda *_: nullcontext(StepTurn(1, may_replay=False))) == []
    assert visited == [0] * len(engine.model.language_model.model.layers)
