from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from model.engine import sampling
from model.engine.sampling import Draws, uniform
from model.engine.sequence import SamplingParams, Sequence


def sample(logits, params, num_sampled, seen=None, allowed_bits=None):
    """Sample one token for each row, as a step of the engine does; return lists."""
    sequences = [
        SimpleNamespace(params=each, num_sampled=count)
        for each, count in zip(params, num_sampled, strict=True)
    ]
    draws = Draws.of(cast("list[Sequence]", sequences))
    penalties = {
        row: (each.repetition_penalty, ids)
        for row, (each, ids) in enumerate(zip(params, seen or (), strict=False))
        if each.repetition_penalty != 1.0
    }
    found = sampling.sample(
        logits, torch.from_numpy(draws.numbers), draws.num_free, penalties, allowed_bits
    )
    return tuple(part.tolist() for part in found)


def test_zero_temperature_takes_the_best_token_and_its_log_probability():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, -5.0, 0.0]])
    tokens, logprobs = sample(logits, [SamplingParams()] * 2, [0, 0])
    assert tokens == [1, 0]
    expected = logits.log_softmax(-1)
    assert logprobs == pytest.approx([expected[0, 1].item(), expected[1, 0].item()], abs=1e-6)


def test_tokens_are_drawn_as_often_as_their_probability_says():
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = 4000
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(draws)]
    tokens, _ = sample(probs.log().expand(draws, -1), params, [0] * draws)
    shares = torch.bincount(torch.tensor(tokens), minlength=4) / draws
    torch.testing.assert_close(shares, probs, rtol=0, atol=0.03)


def test_temperature_sharpens():
    logits = torch.tensor([0.0, 1.0]).expand(1000, -1)
    params = [SamplingParams(temperature=0.25, seed=seed) for seed in range(1000)]
    tokens, _ = sample(logits, params, [0] * 1000)
    expected = (torch.tensor([0.0, 1.0]) / 0.25).softmax(-1)[1]
    assert sum(tokens) / 1000 == pytest.approx(expected.item(), abs=0.03)


@pytest.mark.parametrize(
    ("top_p", "allowed"),
    [(0.4, {0}), (0.5, {0}), (0.51, {0, 1}), (0.8, {0, 1}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, allowed):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(500, -1)
    params = [SamplingParams(temperature=1.0, top_p=top_p, seed=seed) for seed in range(500)]
    tokens, _ = sample(logits, params, [0] * 500)
    assert set(tokens) == allowed


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.5, "top_p": 0.4}, {0}),
        ({"top_k": 2, "min_p": 0.01}, {0, 1}),
    ],
)
def test_top_k_and_min_p_keep_only_the_likeliest(settings, allowed):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(500, -1)
    params = [SamplingParams(temperature=1.0, seed=seed, **settings) for seed in range(500)]
    assert set(sample(logits, params, [0] * 500)[0]) == allowed


def test_a_repetition_penalty_makes_seen_tokens_less_likely_and_leaves_logprobs():
    logits = torch.tensor([[2.0, 1.5, -1.0], [2.0, 1.5, -1.0], [-1.0, -1.1, -9.0]])
    params = [SamplingParams(repetition_penalty=x) for x in (1.0, 2.0, 2.0)]
    tokens, logprobs = sample(logits, params, [0] * 3, [np.array([0, 0, 2])] * 3)
    assert tokens == [0, 1, 1]
    expected = logits.log_softmax(-1)
    assert logprobs == pytest.approx([expected[row, tokens[row]].item() for row in range(3)])


def test_what_is_not_a_number_stays_with_its_row():
    logits = torch.tensor([[float("nan")] * 3, [0.0, 9.0, 0.0]])
    for temperature in (0.0, 1.0):
        params = [SamplingParams(temperature=temperature, top_p=0.5)] * 2
        tokens, logprobs = sample(logits, params, [0, 0])
        assert logprobs[0] != logprobs[0]
        assert tokens[1] == 1


def test_neighbours_do_not_change_what_is_drawn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator)
    params = [SamplingParams(temperature=t, seed=s) for s, t in enumerate((0.7, 0, 1, 0.2, 3, 0))]
    together, _ = sample(logits, params, [3, 1, 4, 1, 5, 9])
    alone = [
        sample(logits[row : row + 1], [params[row]], [count])[0][0]
        for row, count in enumerate((3, 1, 4, 1, 5, 9))
    ]
    assert together == alone


def test_random_numbers_depend_on_seed_and_place_only():
    numbers = {uniform(seed, place) for seed in range(20) for place in range(20)}
    assert len(numbers) == 400
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert uniform(2**63 - 1, 7) == uniform(2**63 - 1, 7)


def test_a_tiny_temperature_does_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 1e4 - 1]])
    assert sample(logits, [SamplingParams(temperature=1e-6)], [0])[0] == [0]


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"loop_guard": -1},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": ("fine", "caf\udce9")},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SamplingParams(**change)


def allowed_by_sorting(probs, params):
    """Sample in the simplest way: sort all tokens, and keep them one by one."""
    kept, mass = set(), 0.0
    for token in sorted(range(len(probs)), key=lambda token: -probs[token]):
        is_over = mass >= params.top_p or probs[token] < params.min_p * max(probs)
        if kept and (is_over or (params.top_k and len(kept) >= params.top_k)):
            break
        kept.add(token)
        mass += probs[token]
    return kept


@pytest.mark.parametrize(
    "limited",
    [
        SamplingParams(temperature=1.0, top_p=0.5),
        SamplingParams(temperature=1.0, top_p=0.99),
        SamplingParams(temperature=1.0, top_k=3),
        SamplingParams(temperature=1.0, top_k=2500),
        SamplingParams(temperature=1.0, min_p=0.3),
        SamplingParams(temperature=1.0, top_p=0.9, top_k=1500, min_p=0.001),
    ],
)
@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_tokens_come_from_those_that_sorting_all_would_allow(limited, spread):
    vocab_size = 3000  # more than are looked at before all are sorted
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(1)) * spread
    params = [replace(limited, seed=seed) for seed in range(300)]
    tokens, _ = sample(logits.expand(300, -1), params, [0] * 300)
    allowed = allowed_by_sorting(logits.double().softmax(-1).tolist(), params[0])
    assert set(tokens) <= allowed
    assert len(set(tokens)) >= min(len(allowed), 60) / 3


def test_a_row_draws_the_same_whatever_its_neighbours_ask_for():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, 3000, generator=generator) * torch.tensor([0.1, 1, 2, 4, 8])[:, None]
    params = [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_p=0.95),
        SamplingParams(temperature=1.0, top_k=2000),
        SamplingParams(temperature=1.0, min_p=0.01),
        SamplingParams(),
    ]
    params = [replace(each, seed=row) for row, each in enumerate(params)]
    together, _ = sample(logits, params, [3] * 5)
    alone = [sample(logits[row : row + 1], [params[row]], [3])[0][0] for row in range(5)]
    assert together == alone


def test_impossible_tokens_are_never_drawn():
    logits = torch.zeros(200, 64)
    bits = np.packbits(np.arange(64) % 7 == 0, bitorder="little")
    for setting in (
        SamplingParams(temperature=5.0),
        SamplingParams(temperature=5.0, top_p=0.9),
        SamplingParams(temperature=5.0, top_k=60),
        SamplingParams(temperature=5.0, repetition_penalty=3.0),
    ):
        params = [replace(setting, seed=seed) for seed in range(200)]
        seen = [np.arange(3)] * 200
        tokens, logprobs = sample(logits, params, [0] * 200, seen, dict.fromkeys(range(200), bits))
        assert {token % 7 for token in tokens} == {0}
        assert logprobs == pytest.approx([-np.log(64)] * 200)
