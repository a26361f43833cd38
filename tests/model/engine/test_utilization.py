"""What the tokens of an engine would need in full steps, from steps of all sizes."""

import pytest

from model.engine.utilization import EngineTime


def step_s(num_tokens):
    return 0.010 + 0.001 * num_tokens


def decode(spent, num_tokens, times=1, *, is_full=False):
    for _ in range(times):
        spent.note(num_tokens, step_s(num_tokens), only_decodes=True, is_full=is_full)


def test_half_empty_steps_need_what_their_tokens_cost_in_full_ones():
    spent = EngineTime(max_batch_size=32)
    decode(spent, 1, times=64)
    decode(spent, 8, times=8)

    assert spent.step_s == pytest.approx(64 * step_s(1) + 8 * step_s(8))
    assert spent.needed_s == pytest.approx((64 + 64) / 32 * step_s(32))


def test_full_steps_and_prompts_need_what_they_took():
    spent = EngineTime(max_batch_size=4)
    decode(spent, 4, times=10)
    decode(spent, 2, times=10, is_full=True)  # for lack of memory, say
    spent.note(500, 0.7, only_decodes=False, is_full=False)

    assert spent.needed_s == pytest.approx(spent.step_s)


def test_no_step_needs_nothing():
    assert EngineTime(max_batch_size=4).needed_s == 0.0


def test_steps_of_one_size_are_taken_to_cost_the_same_at_any_size():
    spent = EngineTime(max_batch_size=10)
    decode(spent, 2, times=5)

    assert spent.needed_s == pytest.approx(spent.step_s * 2 / 10)


@pytest.mark.parametrize("slope", [-0.001, 0.5])
def test_noise_never_makes_the_need_negative_or_more_than_it_took(slope):
    spent = EngineTime(max_batch_size=8)
    for num_tokens in (1, 2, 3):
        seconds = 0.1 + slope * (num_tokens - 1)
        spent.note(num_tokens, seconds, only_decodes=True, is_full=False)

    assert 0 < spent.needed_s <= spent.step_s + 1e-9
