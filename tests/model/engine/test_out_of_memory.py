"""A step that the memory does not suffice for is divided; only what is too large alone fails."""

import gc
import weakref

import numpy as np
import pytest
import torch

from model.config import BLOCK_SIZE
from model.engine import step_parts
from model.engine.batch_builder import BatchBuilder
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.scheduler import Chunk
from model.engine.sequence import Completion, SamplingParams, Sequence
from model.engine.step_parts import STEPS_UNTIL_FEWER, StepParts, divided
from model.inputs.prompt import Prompt, PromptError
from model.network.kimi_vl import KimiVL


def picture(seed, height=56, width=56):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def requests(processor):
    """Many prompts: some share beginnings, some have images, one has several samples."""
    shared = "red circle " * 12  # several blocks
    contents = {
        "short": ["a"],
        "shared": [shared],
        "shared too": [f"{shared}moves"],
        "shared and short": [f"{shared}left"],
        "image": [picture(1), "what moves?"],
        "same image": [picture(1), "how many?"],
        "frames": [*(part for n in range(4) for part in (f"{n}.0s ", picture(n + 2))), "why?"],
        "samples": ["blue square"],
    }
    found = {
        name: (processor.prompt(content), SamplingParams(max_tokens=5 + 3 * number))
        for number, (name, content) in enumerate(contents.items())
    }
    warm = SamplingParams(max_tokens=9, temperature=1.0, n=3, seed=7)
    return {**found, "samples": (found["samples"][0], warm)}


@pytest.fixture
def small_memory(monkeypatch):
    """Call with what a device can hold at most: tokens and patches of a call, rows of logits."""
    failed = []

    def limit(*, tokens=1 << 40, patches=1 << 40, rows=1 << 40):
        forward, encode, logits = KimiVL.forward, KimiVL.encode_images, KimiVL.logits

        def check(size, most, what):
            if size > most:
                failed.append(what)
                raise torch.OutOfMemoryError(f"CUDA out of memory. {size} {what}\nmore")

        def small_forward(self, batch, *rest):
            hidden = forward(self, batch, *rest)  # what it wrote into the cache stays
            check(len(batch.token_ids), tokens, "tokens")
            return hidden

        def small_encode(self, images, grid_hw):
            check(len(images), patches, "patches")
            return encode(self, images, grid_hw)

        def small_logits(self, hidden):
            check(len(hidden), rows, "rows")
            return logits(self, hidden)

        monkeypatch.setattr(KimiVL, "forward", small_forward)
        monkeypatch.setattr(KimiVL, "encode_images", small_encode)
        monkeypatch.setattr(KimiVL, "logits", small_logits)
        return failed

    return limit


def answer(checkpoint, requests, **config):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(cache_gib=0.05, **config))
    for name, (prompt, params) in requests.items():
        engine.add(name, prompt, params)
    done = {}
    while engine.has_work:
        done |= dict(engine.step())
    assert engine.pool.num_available == engine.pool.num_blocks  # nobody owns a block any more
    return done, engine


def tokens_of(done):
    return {
        name: [each.token_ids for each in (found, *found.others)]
        for name, found in done.items()
        if isinstance(found, Completion)
    }


def means_of(done):
    """The mean log-probabilities: a wrong context may give the same tokens, but not these."""
    means = {
        f"{name} {number}": each.mean_logprob
        for name, found in done.items()
        if isinstance(found, Completion)
        for number, each in enumerate((found, *found.others))
    }
    return means


@pytest.fixture(scope="module")
def answered(checkpoint, requests):
    return answer(checkpoint, requests)[0]


@pytest.fixture(scope="module")
def expected(answered):
    return tokens_of(answered)


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param({"tokens": 100}, id="layers: a few prompts at a time"),
        pytest.param({"tokens": 3}, id="layers: a few tokens at a time"),
        pytest.param({"patches": 64}, id="images: a prompt at a time"),
        pytest.param({"rows": 1}, id="logits: one row at a time"),
        pytest.param({"tokens": 40, "patches": 32, "rows": 2}, id="all"),
    ],
)
@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "a step ahead"])
def test_no_answer_changes_where_a_part_fits(
    checkpoint, requests, answered, small_memory, monkeypatch, limit, runs_ahead
):
    monkeypatch.setattr(step_parts, "LEAST_TOKENS", 1)  # these prompts are short
    failed = small_memory(**limit)
    done, engine = answer(checkpoint, requests, runs_ahead=runs_ahead)
    assert failed
    assert engine.stats()["out_of_memory"] == len(failed)
    assert tokens_of(done) == tokens_of(answered)
    assert means_of(done) == pytest.approx(means_of(answered), abs=1e-4)


@pytest.mark.parametrize("max_batch_size", [2, 32])
@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "a step ahead"])
def test_what_is_too_large_alone_fails_alone(
    checkpoint, processor, requests, expected, small_memory, max_batch_size, runs_ahead
):
    failed = small_memory(patches=64)
    large = {
        "large": (processor.prompt([picture(50, 140, 140), "?"]), SamplingParams(max_tokens=4)),
        "large too": (processor.prompt(["a ", picture(51, 112, 140)]), SamplingParams()),
    }
    names = list(requests)
    mixed = {name: requests[name] for name in names[:4]} | large
    mixed |= {name: requests[name] for name in names[4:]}
    config = {"max_batch_size": max_batch_size, "runs_ahead": runs_ahead}
    done, _ = answer(checkpoint, mixed, max_vision_patches=64, **config)
    assert failed
    assert tokens_of(done) == expected
    for name in large:
        error = done[name]
        assert isinstance(error, PromptError)
        assert error.code == "out_of_memory"
        assert "CUDA out of memory. " in error.message
        assert "more" not in error.message
        assert "--max-vision-patches" in error.message


def test_blocks_that_did_not_reach_the_device_are_sent_again(checkpoint, requests, monkeypatch):
    upload, calls = BatchBuilder.upload, []

    def fails_at_first(self, *args):
        calls.append(args)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("full")
        return upload(self, *args)

    monkeypatch.setattr(BatchBuilder, "upload", fails_at_first)
    monkeypatch.setattr(step_parts, "LEAST_TOKENS", 1)
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(cache_gib=0.05))
    engine.add("", *requests["shared"])
    engine.step()
    assert len(calls) == 3  # the whole, and two halves
    (sequence,) = engine.scheduler._running
    table = engine._builder.tables[sequence.table_row]
    assert table[: len(sequence.blocks)].tolist() == sequence.blocks
    assert len(sequence.blocks) > 1


def test_prompts_that_share_the_blocks_of_one_that_failed_are_computed_again(
    checkpoint, processor, monkeypatch
):
    # All begin with one image, so the first registers blocks that it never computes.
    contents = {name: [picture(3, 112, 112), f"what {name}?"] for name in ("moves", "stands", "is")}
    params = SamplingParams(max_tokens=6)
    requests = {name: (processor.prompt(each), params) for name, each in contents.items()}
    expected = tokens_of(answer(checkpoint, requests)[0])
    encode, calls = KimiVL.encode_images, []

    def fails_twice(self, *args):
        calls.append(len(args[0]))
        if len(calls) <= 3:  # all together, the first half of them, the first alone
            raise torch.OutOfMemoryError("full")
        return encode(self, *args)

    monkeypatch.setattr(KimiVL, "encode_images", fails_twice)
    done, _ = answer(checkpoint, requests)
    assert [name for name, found in done.items() if isinstance(found, PromptError)] == ["moves"]
    assert tokens_of(done) == {name: expected[name] for name in ("stands", "is")}


def test_a_request_of_several_samples_fails_once(checkpoint, processor, small_memory):
    small_memory(patches=64)
    params = SamplingParams(max_tokens=4, temperature=1.0, n=3)
    contents = {"large": [picture(50, 140, 140)], "small": [picture(1)]}
    requests = {name: (processor.prompt(each), params) for name, each in contents.items()}
    done, engine = answer(checkpoint, requests)
    assert done["large"].code == "out_of_memory"
    assert len(done["small"].others) == 2
    assert not engine.has_work


def test_another_error_still_ends_the_engine(checkpoint, requests, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(KimiVL, "logits", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        answer(checkpoint, requests)


def chunk(start, end, num_prompt=4000):
    prompt = Prompt(
        token_ids=np.zeros(num_prompt, np.int32),
        patches=np.zeros((0, 3, 14, 14), np.uint8),
        grid_hw=np.zeros((0, 2), np.int32),
    )
    sequence = Sequence("", prompt, SamplingParams(), 1, block_keys=[])
    sequence.blocks = [1]
    return Chunk(sequence, start, end)


def lens(parts):
    return [[each.end - each.start for each in part] for part in parts]


def test_parts_have_equally_many_tokens_in_their_order():
    chunks = [chunk(9, 10), chunk(0, 5), chunk(3, 9)]
    assert lens(divided(chunks, 1)) == [[1, 5, 6]]
    assert lens(divided(chunks, 2)) == [[1, 5], [6]]
    assert lens(divided(chunks, 3)) == [[1, 3], [2, 2], [4]]
    assert lens(divided(chunks, 99)) == [[1]] * 12
    assert divided([], 4) == [[]]
    first, second = divided([chunk(3, 9)], 2)
    assert (first[0].start, first[0].end, second[0].start, second[0].end) == (3, 6, 6, 9)


class Device:
    """Computes at most `most` tokens; `sizes` are those of all tries."""

    def __init__(self, most):
        self.most, self.sizes, self.given_up = most, [], []

    def compute(self, part):
        self.sizes.append(sum(each.end - each.start for each in part))
        if self.sizes[-1] > self.most:
            raise torch.OutOfMemoryError("full")
        return []

    def give_up(self, chunk, reason):
        self.given_up.append((chunk, reason))
        chunk.sequence.blocks = []
        return []

    def step(self, parts, chunks):
        self.sizes = []
        parts.compute(chunks, self.compute, self.give_up)
        return self.sizes


def test_the_steps_that_follow_are_divided_alike_and_later_less():
    parts, device = StepParts(list), Device(most=1000)
    assert device.step(parts, [chunk(0, 4000)]) == [4000, 2000, 1000, 1000, 2000, 1000, 1000]
    for _ in range(STEPS_UNTIL_FEWER):
        assert device.step(parts, [chunk(0, 4000)]) == [1000] * 4
    # One try of larger parts, and back.
    assert device.step(parts, [chunk(0, 4000)]) == [2000, 1000, 1000, 2000, 1000, 1000]
    assert device.step(parts, [chunk(0, 4000)]) == [1000] * 4
    device.most = 4000
    for _ in range(2 * STEPS_UNTIL_FEWER):
        device.step(parts, [chunk(0, 4000)])
    assert device.step(parts, [chunk(0, 4000)]) == [4000]
    assert not device.given_up


def test_one_sequence_is_not_divided_without_end_and_does_not_slow_the_others():
    parts, device = StepParts(list), Device(most=100)
    large, small = chunk(0, 700), chunk(0, 60)
    assert device.step(parts, [small, large])[0] == 760
    ((failed, reason),) = device.given_up
    assert failed.sequence is large.sequence
    assert reason == "full"
    # A part of the large one that is left over is not tried.
    assert sum(size for size in device.sizes if size <= 100) < 760
    assert device.step(parts, [small]) == [60]


def test_the_tensors_of_a_failed_try_are_free_before_the_next():
    alive, seen = [], []

    def compute(part):
        seen.append([each() is not None for each in alive])
        hidden = torch.zeros(3)
        alive.append(weakref.ref(hidden))
        if len(alive) == 1:
            raise torch.OutOfMemoryError("full")
        return []

    gc.disable()  # or it might free them by chance
    try:
        StepParts(list).compute([chunk(0, 2000)], compute, lambda *_: [])
    finally:
        gc.enable()
    assert seen == [[], [False], [False, False]]


def test_an_empty_step_is_one_part_also_when_steps_are_divided():
    parts, device = StepParts(list), Device(most=1000)
    device.step(parts, [chunk(0, 4000)])
    assert device.step(parts, []) == [0]


def test_abandoned_blocks_are_found_by_nobody(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(cache_gib=0.01))
    prompt = processor.prompt(["red circle " * 20])
    longer = processor.prompt(["red circle " * 20 + "moves left on black " * 5])
    engine.add("first", prompt, SamplingParams(max_tokens=2))
    engine.add("second", longer, SamplingParams(max_tokens=2))
    first, second = engine.scheduler.oldest_first(engine.scheduler.plan())
    assert second.start >= BLOCK_SIZE  # it shares what the first would have computed
    assert second.end - second.start >= 2 * BLOCK_SIZE  # and has blocks of its own
    engine.scheduler.abandon(first)
    assert not first.sequence.blocks
    assert not second.sequence.blocks
    assert engine.scheduler.num_waiting == 1
    assert engine.pool.num_available == engine.pool.num_blocks
    for sequence in (first.sequence, second.sequence):
        assert not engine.pool.find(sequence.block_keys)
        assert all(not engine.pool.find([key]) for key in sequence.block_keys)
    (again,) = engine.scheduler.plan()
    assert (again.sequence, again.start) == (second.sequence, 0)
