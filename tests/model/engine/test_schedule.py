"""For every schedule, the tokens are those of a forward pass over whole sequences."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import BLOCK_SIZE
from model.engine.blocks import BlockPool, block_keys
from model.engine.config import EngineConfig
from model.engine.engine import GIB, Engine
from model.engine.sequence import SamplingParams
from model.network.batch import whole_sequences
from model.network.kimi_vl import KimiVL

NUM_SCHEDULES = 12


def make_engine(checkpoint, num_blocks=None, **config):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(**config))
    if num_blocks is None:
        return engine
    per_block = sum(layer.nbytes for layer in engine.cache.layers) / (engine.pool.num_blocks + 1)
    return Engine.from_checkpoint(
        checkpoint, EngineConfig(cache_gib=(num_blocks + 0.5) * per_block / GIB, **config)
    )


def picture(seed, height=56, width=56):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clip(num_frames, seed=0):
    return [part for n in range(num_frames) for part in (f"{n}.0s ", picture(seed + n))]


def run(engine):
    done = {}
    while engine.has_work:
        done |= dict(engine.step())
    return done


def watch_plans(engine):
    """Record the plans of all steps that compute several chunks."""
    shared, plan = [], engine.scheduler.plan

    def plan_and_note(*args):
        chunks = plan(*args)
        if len(chunks) > 1:
            shared.append(chunks)
        return chunks

    engine.scheduler.plan = plan_and_note
    return shared


def count_tokens(monkeypatch):
    """Record the number of tokens of every step, and of patches of every vision call."""
    tokens, patches = [], []
    forward, encode = KimiVL.forward, KimiVL.encode_images

    def counted_forward(self, batch, cache=None, features=None):
        tokens.append(len(batch.token_ids))
        return forward(self, batch, cache, features)

    def counted_encode(self, images, grid_hw):
        patches.append(len(images))
        return encode(self, images, grid_hw)

    monkeypatch.setattr(KimiVL, "forward", counted_forward)
    monkeypatch.setattr(KimiVL, "encode_images", counted_encode)
    return tokens, patches


def greedy_without_cache(model, prompt, num_tokens):
    """Generate in the simplest way: compute the whole sequence again for every token."""
    grid_hw = [(int(h), int(w)) for h, w in prompt.grid_hw]
    features = model.encode_images(torch.from_numpy(prompt.patches), grid_hw)
    num_prompt = len(prompt.token_ids)
    ids = prompt.token_ids.tolist()
    media_rows = torch.from_numpy(np.flatnonzero(prompt.token_ids == model.config.media_token_id))
    while len(ids) < num_prompt + num_tokens and ids[-1] not in model.config.stop_token_ids:
        batch = whole_sequences([ids])
        embeddings = model.language_model.model.embed_tokens(batch.token_ids)
        embeddings = embeddings.index_copy(0, media_rows, features)
        hidden = model.language_model.model(embeddings, batch, None)
        ids.append(int(model.logits(hidden[-1:])[0].argmax()))
    return tuple(ids[num_prompt:])


@pytest.fixture(scope="module")
def questions(checkpoint, processor):
    """Prompts, some with the same beginning, and the tokens that answer them."""
    contents = [
        ["a"],
        ["red circle " * 12],
        ["red circle " * 12 + "moves"],
        [*clip(3), "what moves?"],
        [*clip(3), "how many?"],
        [*clip(2), "what moves?"],
        [*clip(3, seed=7), "what moves?"],
        [picture(0, 28, 84), "describe"],
    ]
    model = make_engine(checkpoint).model
    lengths = (9, 20, 6, 24, 5, 12, 18, 3)
    prompts = [processor.prompt(content) for content in contents]
    with torch.inference_mode():
        answers = [
            greedy_without_cache(model, prompt, length)
            for prompt, length in zip(prompts, lengths, strict=True)
        ]
    return list(zip(prompts, lengths, answers, strict=True))


@pytest.mark.parametrize("seed", range(NUM_SCHEDULES))
@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "one step ahead"])
def test_no_schedule_changes_a_token(checkpoint, questions, seed, runs_ahead):
    check_schedule(checkpoint, questions, seed, runs_ahead, own_steps=0.0)


@pytest.mark.parametrize("seed", range(NUM_SCHEDULES // 2))
@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "one step ahead"])
def test_sequences_that_have_steps_for_themselves_change_no_token(
    checkpoint, questions, seed, runs_ahead
):
    check_schedule(checkpoint, questions, seed, runs_ahead, own_steps=0.3)


def check_schedule(checkpoint, questions, seed, runs_ahead, own_steps):
    """Compare the tokens of a random schedule; a share of sequences has steps for themselves."""
    generator = np.random.default_rng(seed)
    longest = max(len(prompt.token_ids) + length for prompt, length, _ in questions)
    least = -(-longest // BLOCK_SIZE)
    engine = make_engine(
        checkpoint,
        num_blocks=int(generator.integers(least, 3 * least)),
        max_batch_size=int(generator.integers(1, 9)),
        max_step_tokens=int(generator.choice([1, 7, 16, 50, 1000])),
        max_vision_patches=int(generator.choice([1, 40, 1000])),
        runs_ahead=runs_ahead,
    )
    shared = watch_plans(engine)
    arrivals = generator.permutation(np.repeat(np.arange(len(questions)), 2)).tolist()
    done = {}
    while arrivals or engine.has_work:
        for _ in range(min(len(arrivals), int(generator.integers(0, 4)))):
            number = arrivals.pop()
            prompt, length, _ = questions[number]
            is_own = len(arrivals) / (2 * len(questions)) < own_steps
            params = SamplingParams(max_tokens=length)
            engine.add(f"{number}:{len(arrivals)}", prompt, params, own_step=is_own)
        if engine.has_work:
            done |= dict(engine.step())
    assert len(done) == 2 * len(questions)
    for name, completion in done.items():
        assert completion.token_ids == questions[int(name.split(":")[0])][2], name
    assert engine.pool.num_available == engine.pool.num_blocks
    assert not any(chunk.sequence.own_step for chunks in shared for chunk in chunks)


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "one step ahead"])
def test_a_step_for_itself_gives_the_same_logprobs_to_the_bit_whatever_else_runs(
    checkpoint, processor, runs_ahead
):
    engine = make_engine(checkpoint, max_batch_size=4, max_step_tokens=20, runs_ahead=runs_ahead)
    shared = watch_plans(engine)
    prompt, params = processor.prompt(["red circle"]), SamplingParams(max_tokens=3)
    asked = replace(prompt, token_ids=prompt.token_ids[: BLOCK_SIZE - 1])  # no block to share
    engine.add("own", asked, params, own_step=True)
    (quiet,) = run(engine).values()
    for number in range(6):  # two of them wait for a place
        prompt = processor.prompt([f"{number} blue square " * (number + 1)])
        engine.add(str(number), prompt, SamplingParams(max_tokens=12 + number))
    for _ in range(6):
        engine.step()
    engine.add("own", asked, params, own_step=True)
    done = []
    while engine.has_work:
        done += engine.step()
    names = [name for name, _ in done]
    assert names.index("own") < names.index("5")  # for which it does not wait
    busy = dict(done)["own"]
    assert (busy.mean_logprob, busy.token_ids) == (quiet.mean_logprob, quiet.token_ids)
    assert max(map(len, shared)) == 4
    assert not any(chunk.sequence.own_step for chunks in shared for chunk in chunks)


def test_a_step_for_itself_waits_until_prompts_may_begin(checkpoint, processor):
    engine = make_engine(checkpoint)
    prompt, params = processor.prompt(["red circle"]), SamplingParams(max_tokens=2)
    engine.add("other", prompt, params)
    engine.step()
    engine.add("own", processor.prompt(["blue square"]), params, own_step=True)
    (held,) = engine.scheduler.plan(max_new_tokens=0)
    assert held.sequence.request_id == "other"
    (begun,) = engine.scheduler.plan(max_new_tokens=1)
    assert begun.sequence.request_id == "own"


def test_a_sequence_that_finds_no_block_is_computed_again(checkpoint, questions):
    prompt, _, answer = questions[3]
    blocks = -(-(len(prompt.token_ids) + len(answer)) // BLOCK_SIZE)
    engine = make_engine(checkpoint, num_blocks=blocks + 2)
    others = [questions[6], questions[1]]
    engine.add("first", prompt, SamplingParams(max_tokens=24))
    for number, (other, length, _) in enumerate(others):
        engine.add(str(number), other, SamplingParams(max_tokens=length))
    done = run(engine)
    assert done["first"].token_ids == answer
    for number, (_, _, expected) in enumerate(others):
        assert done[str(number)].token_ids == expected


def test_youngest_sequences_give_way_when_blocks_run_out(checkpoint, processor):
    engine = make_engine(checkpoint, num_blocks=9)
    params = SamplingParams(max_tokens=40)
    prompts = [processor.prompt([text]) for text in ("one", "two", "three")]
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, params)
    together = {name: done.token_ids for name, done in run(engine).items()}
    assert engine.scheduler.num_preemptions > 0
    for number, prompt in enumerate(prompts):
        engine.add("alone", prompt, params)
        assert run(engine)["alone"].token_ids == together[str(number)]


def test_a_clip_is_encoded_and_prefilled_once_for_all_its_questions(
    checkpoint, processor, monkeypatch
):
    engine = make_engine(checkpoint)
    tokens, patches = count_tokens(monkeypatch)
    frames = clip(8)
    prompts = [processor.prompt([*frames, f"question {number}"]) for number in range(8)]
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, SamplingParams(max_tokens=1))
    run(engine)
    num_shared = len(processor.prompt(frames).token_ids)
    assert sum(patches) == 8 * 16
    assert sum(tokens) < num_shared + 8 * (2 * BLOCK_SIZE + 20)
    assert sum(tokens) < 0.4 * sum(len(prompt.token_ids) for prompt in prompts)


def test_prompts_that_differ_in_an_image_alone_share_nothing_after_it(checkpoint, processor):
    engine = make_engine(checkpoint)
    answers = []
    for seed in (0, 50):
        prompt = processor.prompt([picture(seed), "describe this picture in many words"])
        for _ in range(2):
            engine.add("x", prompt, SamplingParams(max_tokens=1))
            answers.append(run(engine)["x"].mean_logprob)
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    assert answers[2] == pytest.approx(answers[3], abs=1e-5)
    assert answers[0] != pytest.approx(answers[2], abs=1e-5)


def test_keys_tell_prompts_apart_where_they_differ(processor):
    def keys(*content):
        prompt = processor.prompt(list(content))
        return block_keys(prompt, processor.config.media_token_id)

    first = keys(picture(0), "describe this picture")
    assert keys(picture(0), "describe this picture") == first
    other_text = keys(picture(0), "describe this person!")
    assert other_text[:-2] == first[:-2]
    assert other_text != first
    turned = keys(picture(0).transpose(1, 0, 2).copy(), "describe this picture")
    assert not set(turned[4:]) & set(first[4:])
    tall, wide = picture(0, 56, 28), picture(0, 56, 28).reshape(28, 56, 3)
    assert keys(tall, "x" * 40)[-1] != keys(wide, "x" * 40)[-1]


def test_a_pool_keeps_named_blocks_until_room_is_needed():
    pool = BlockPool(3)
    first = pool.allocate(2)
    for block, key in zip(first, (b"a", b"b"), strict=True):
        pool.register(block, key)
    pool.release(first)
    assert pool.num_available == 3
    assert pool.find([b"a", b"b", b"c"]) == first
    assert pool.find([b"x", b"a"]) == []
    pool.add_owner(first[:1])
    assert pool.num_available == 2
    assert pool.num_available_beside(first) == 1
    taken = pool.allocate(2)  # the free one, then the registered one that nobody owns
    assert first[0] not in taken
    assert pool.find([b"a", b"b"]) == first[:1]
    pool.release(taken)
    pool.release(first[:1])
    assert pool.num_available == 3


def test_a_shared_block_is_free_when_its_last_owner_goes():
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.register(block, b"a")
    pool.add_owner([block])
    pool.release([block])
    assert pool.num_available == 0
    pool.release([block])
    assert pool.num_available == 1


def planned(engine, max_new_tokens):
    return [len(range(c.start, c.end)) for c in engine.scheduler.plan(max_new_tokens)]


def test_a_step_begins_about_as_many_new_tokens_as_it_is_told_and_one_prompt_at_least(
    checkpoint, processor
):
    engine = make_engine(checkpoint, max_batch_size=3)
    prompt = processor.prompt(["red circle"])
    length = len(prompt.token_ids)
    for number in range(5):
        engine.add(str(number), prompt, SamplingParams(max_tokens=4))
    assert engine.scheduler.num_waiting_tokens == 3 * length  # there are three places
    assert planned(engine, 0) == []
    assert planned(engine, 1) == [length]
    assert engine.scheduler.num_waiting_tokens == 2 * length
    rest = length - (length - 1) // BLOCK_SIZE * BLOCK_SIZE  # what the others do not share
    assert planned(engine, rest + rest // 2 - 1)[1:] == [rest]
    engine.cancel("1")
    assert planned(engine, 2 * rest - 1)[1:] == [rest] * 2
    assert engine.scheduler.num_waiting_tokens == 0


def test_a_prompt_for_which_there_is_no_memory_does_not_wait_to_begin(checkpoint, processor):
    engine = make_engine(checkpoint, num_blocks=6)
    prompt = processor.prompt(["red circle " * 8])
    assert 4 * BLOCK_SIZE < len(prompt.token_ids) < 5 * BLOCK_SIZE
    engine.add("first", prompt, SamplingParams(max_tokens=4))
    other = processor.prompt(["blue square " * 8])
    engine.add("second", other, SamplingParams(max_tokens=4))
    assert engine.scheduler.num_waiting_tokens == len(prompt.token_ids) + len(other.token_ids)
    assert len(engine.scheduler.plan()) == 1
    assert engine.scheduler.num_waiting_tokens == 0
