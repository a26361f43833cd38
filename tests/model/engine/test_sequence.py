import numpy as np
import pytest

from model.engine.sequence import SamplingParams, Sequence, split_reasoning
from model.inputs.prompt import Prompt


def sequence(**settings):
    prompt = Prompt(
        token_ids=np.array([7, 8], np.int32),
        patches=np.zeros((0, 3, 14, 14), np.uint8),
        grid_hw=np.zeros((0, 2), np.int32),
    )
    params = SamplingParams(**{"max_tokens": 10_000, **settings})
    return Sequence("x", prompt, params, params.max_tokens, [])


def write(seq, tokens):
    """Append tokens until the sequence ends; the text of each is its number and a space."""
    for token in tokens:
        seq.append(token, -1.0, b"%d " % token, is_stop_token=False)
        if seq.finish_reason is not None:
            return len(seq.generated)
    return None


@pytest.mark.parametrize("period", [1, 2, 5, 16, 31, 32])
def test_a_text_that_only_repeats_itself_ends(period):
    seq = sequence()
    head, loop = list(range(1000, 1020)), list(range(period))
    end = write(seq, head + loop * 200)
    assert end == len(head) + max(64, 4 * period)
    assert seq.finish_reason == "repetition"
    assert seq.completion().is_truncated


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(list(range(5000)), id="nothing repeats"),
        pytest.param([*range(40)] * 20, id="a piece that is too long"),
        pytest.param(([1, 2] * 20 + [3]) * 20, id="broken again and again"),
        pytest.param([5] * 63 + [6] + [5] * 63, id="one token short"),
    ],
)
def test_other_texts_go_on(tokens):
    assert write(sequence(), tokens) is None


def test_the_guard_can_be_set_and_switched_off():
    assert write(sequence(loop_guard=10), [1] * 50) == 10
    assert write(sequence(loop_guard=2), [1, 2] * 50) == 8  # four copies at least
    assert write(sequence(loop_guard=0), [1] * 500) is None


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("a red circle", None, "a red circle"),
        (
            "\u25c1think\u25b7 it is red \u25c1/think\u25b7\n\na red circle ",
            "it is red",
            "a red circle",
        ),
        ("it is red\u25c1/think\u25b7a red circle", "it is red", "a red circle"),
        ("\u25c1think\u25b7it is", "it is", None),
        ("\u25c1think\u25b7\u25c1/think\u25b7", "", ""),
    ],
)
def test_reasoning_is_cut_from_the_answer(text, reasoning, answer):
    assert split_reasoning(text) == (reasoning, answer)
    seq = sequence()
    seq.append(1, -1.0, text.encode(), is_stop_token=False)
    seq.append(2, -2.0, b"never shown", is_stop_token=True)
    done = seq.completion()
    assert (done.reasoning, done.text) == (reasoning, answer or "")
    assert done.is_truncated == (answer is None)
    assert done.finish_reason == "stop"
    assert (done.mean_logprob, done.min_logprob) == (-1.5, -2.0)


def test_tokens_are_cut_across_prompt_and_answer():
    seq = sequence()
    write(seq, [1, 2, 3])
    everything = [7, 8, 1, 2, 3]
    for start in range(6):
        for end in range(start, 6):
            assert seq.token_ids(start, end).tolist() == everything[start:end]
