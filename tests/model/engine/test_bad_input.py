"""Odd and broken input works or is refused with a reason, and never affects its neighbours."""

import json
from dataclasses import replace

import numpy as np
import pytest

from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import Completion, SamplingParams
from model.inputs.processor import Processor
from model.inputs.prompt import Prompt, PromptError
from tests.tiny import IMAGE, tiny_checkpoint

PATCH = (3, 14, 14)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Small widths, and the image limit of Kimi-VL-A3B-Thinking-2506."""
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory, image={**IMAGE, "in_token_limit": 16384})
    return directory


@pytest.fixture(scope="module")
def processor(checkpoint):
    return Processor.from_checkpoint(checkpoint)


@pytest.fixture
def engine(checkpoint):
    return Engine.from_checkpoint(checkpoint, EngineConfig(max_batch_size=4))


def picture(height_px, width_px, seed=0):
    shape = (height_px, width_px, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def neighbours(processor):
    return {
        "text": (processor.prompt(["a red circle"]), SamplingParams(max_tokens=9)),
        "image": (
            processor.prompt([picture(56, 84, seed=1), "what moves?"]),
            SamplingParams(max_tokens=9, temperature=1.0, seed=5),
        ),
    }


def answers(engine, requests):
    """Answer all prompts together; a refusal counts as an answer."""
    done = {}
    for name, (prompt, params) in requests.items():
        try:
            engine.add(name, prompt, params)
        except PromptError as error:
            done[name] = error
    while engine.has_work:
        done |= dict(engine.step())
    assert engine.pool.num_available == engine.pool.num_blocks
    return done


def beside_neighbours(engine, processor, prompt, params):
    """Return the outcome of a prompt between two others, whose answers must not change."""
    good = neighbours(processor)
    alone = answers(engine, good)
    together = answers(engine, {"text": good["text"], "odd": (prompt, params), **good})
    after = answers(engine, good)
    for name in good:
        assert isinstance(alone[name], Completion)
        assert together[name].token_ids == alone[name].token_ids
        assert after[name].token_ids == alone[name].token_ids
    return together["odd"]


@pytest.mark.parametrize(
    ("height_px", "width_px", "grid_hw"),
    [
        pytest.param(1, 1, [2, 2], id="1x1"),
        pytest.param(1792, 1792, [128, 128], id="1792x1792", marks=pytest.mark.slow),
        pytest.param(40, 6000, [4, 430], id="6000x40"),
        pytest.param(6000, 40, [430, 4], id="40x6000"),
    ],
)
def test_an_image_of_an_odd_size_is_answered(engine, processor, height_px, width_px, grid_hw):
    prompt = processor.prompt([picture(height_px, width_px), "what is it?"])
    assert prompt.grid_hw.tolist() == [grid_hw]
    found = beside_neighbours(engine, processor, prompt, SamplingParams(max_tokens=3))
    assert isinstance(found, Completion)
    assert np.isfinite(found.min_logprob)
    assert found.num_prompt_tokens > grid_hw[0] * grid_hw[1] // 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param([], "needs text or an image, got neither", id="nothing"),
        pytest.param(["", ""], "needs text or an image, got neither", id="empty texts"),
        pytest.param([np.zeros((0, 28, 3), np.uint8)], "needs pixels, got 28x0", id="no rows"),
        pytest.param([picture(30, 8000)], "fewer than 512; crop or shrink it", id="8000x30"),
    ],
)
def test_content_that_makes_no_prompt_is_refused(processor, content, message):
    with pytest.raises(PromptError, match=message) as error:
        processor.prompt(content)
    assert error.value.code == "bad_prompt"


@pytest.mark.parametrize(
    ("token_ids", "num_patches", "grid_hw", "message"),
    [
        pytest.param([], 0, [], "a prompt needs tokens", id="no tokens"),
        pytest.param([[1]], 0, [], "a prompt needs tokens", id="two dimensions"),
        pytest.param([1], 0, [[0, 2]], "grid sides must be even", id="an empty grid"),
        pytest.param([1], 3, [[1, 3]], "grid sides must be even", id="an odd grid"),
        pytest.param([1], 3, [[2, 2]], "the grids ask for 4 patches", id="too few patches"),
        pytest.param([1], 4, [], "the grids ask for 0 patches", id="no grid"),
    ],
)
def test_arrays_that_are_no_prompt_are_refused(token_ids, num_patches, grid_hw, message):
    with pytest.raises(PromptError, match=message) as error:
        Prompt(
            token_ids=np.array(token_ids, np.int32),
            patches=np.zeros((num_patches, *PATCH), np.uint8),
            grid_hw=np.array(grid_hw, np.int32).reshape(-1, 2),
        )
    assert error.value.code == "bad_prompt"


@pytest.mark.parametrize(
    "patches",
    [
        pytest.param(np.zeros((4, 3 * 14 * 14), np.uint8), id="flat"),
        pytest.param(np.zeros((4, 1, 14, 14), np.uint8), id="grey"),
        pytest.param(np.zeros((4, 14, 14, 3), np.uint8), id="channels last"),
        pytest.param(np.zeros((4, 3, 14, 28), np.uint8), id="not square"),
        pytest.param(np.zeros((4, *PATCH), np.float32), id="floats"),
        pytest.param(np.zeros((4, *PATCH), np.int8), id="signed"),
    ],
)
def test_patches_that_are_no_pixels_are_refused(patches):
    with pytest.raises(PromptError, match=r"must be uint8 \[P, 3, side, side\], got") as error:
        Prompt(
            token_ids=np.ones(1, np.int32), patches=patches, grid_hw=np.array([[2, 2]], np.int32)
        )
    assert error.value.code == "bad_prompt"


def test_digests_that_are_not_those_of_the_images_are_refused(processor):
    prompt = processor.prompt([picture(28, 28), picture(56, 56), "what is it?"])
    with pytest.raises(PromptError, match="1 digests for 2 images") as error:
        replace(prompt, image_digests=prompt.image_digests[:1])
    assert error.value.code == "bad_prompt"


def test_patches_of_another_network_are_refused(engine, processor):
    prompt = processor.prompt([picture(28, 28), "what is it?"])
    odd = replace(prompt, patches=np.zeros((4, 3, 16, 16), np.uint8))
    found = beside_neighbours(engine, processor, odd, SamplingParams())
    assert isinstance(found, PromptError)
    assert found.code == "bad_prompt"
    assert found.message == "patches must be 14 pixels wide, got 16"


def test_no_frames_leave_a_prompt_of_text(engine, processor):
    prompt = processor.prompt([*picture(56, 56)[None][:0], "describe"])
    assert prompt.grid_hw.shape == (0, 2)
    found = beside_neighbours(engine, processor, prompt, SamplingParams(max_tokens=3))
    assert isinstance(found, Completion)


@pytest.mark.parametrize("num_pads", [0, 1, 3, 5, 8])
def test_images_that_do_not_fit_the_pads_are_refused(engine, processor, num_pads):
    prompt = processor.prompt([picture(56, 56), "what is it?"])
    is_pad = prompt.token_ids == processor.config.media_token_id
    assert is_pad.sum() == 4
    pads = np.full(num_pads, processor.config.media_token_id, np.int32)
    odd = Prompt(
        token_ids=np.append(prompt.token_ids[~is_pad], pads),
        patches=prompt.patches,
        grid_hw=prompt.grid_hw,
    )
    found = beside_neighbours(engine, processor, odd, SamplingParams())
    assert isinstance(found, PromptError)
    assert found.code == "bad_prompt"
    assert found.message == f"{num_pads} media pads for 4 vision tokens"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 1.0, "n": 3},
        {"temperature": 1.0, "schema": json.dumps({"type": "array", "items": {"type": "integer"}})},
        {"repetition_penalty": 1.3},
    ],
)
def test_a_token_whose_embedding_is_damaged_fails_its_sequence(engine, processor, more):
    (broken,) = engine.tokenizer.encode("z")
    engine.model.language_model.model.embed_tokens.weight[broken] = float("nan")
    # Longer than the neighbours, so that they get its blocks when it is gone.
    prompt = processor.prompt(["zz top " * 12])
    found = beside_neighbours(engine, processor, prompt, SamplingParams(max_tokens=5, **more))
    assert isinstance(found, PromptError)
    assert found.code == "engine_error"
    assert "is not a number after" in found.message


def test_a_damaged_vision_tower_fails_prompts_with_images_alone(engine, processor):
    good = neighbours(processor)
    alone = answers(engine, {"text": good["text"]})
    engine.model.vision_tower.patch_embed.proj.bias[0] = float("inf")
    engine._features._cached.clear()
    picture_of_its_own = processor.prompt([picture(28, 28, seed=9), "what?"])
    odd = (picture_of_its_own, SamplingParams(max_tokens=2))
    done = answers(engine, {"odd": odd, "text": good["text"]})
    assert done["odd"].code == "engine_error"
    assert done["text"].token_ids == alone["text"].token_ids


def test_damage_that_reaches_every_token_fails_all_and_nothing_hangs(engine, processor):
    engine.model.language_model.model.norm.weight[0] = float("nan")
    done = answers(engine, neighbours(processor))
    assert {error.code for error in done.values()} == {"engine_error"}
