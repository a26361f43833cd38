"""Measure MoonViT, and questions about images that share their past, on a device."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from jobs.bench.device.bench import DeviceBench
from jobs.bench.device.bounds import chosen_experts, decode_bytes, prefill_flops, vision_flops
from jobs.bench.measure.shapes import add_all, run_until_done
from jobs.bench.measure.turns import by_key, take_turns
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.image_cache import within_budget
from model.inputs.prompt import Prompt
from model.network.vision import Grid


def measure_vision(bench: DeviceBench) -> dict[str, object]:
    """Measure patches/s from uint8 patches on the device to features."""
    sizes = bench.sizes
    cases = {"image": [sizes.image], "frames": [sizes.frame] * sizes.num_frames}
    return by_key({name: _encode(bench, grids) for name, grids in cases.items()})


def _encode(bench: DeviceBench, grids: Sequence[Grid]) -> dict[str, object]:
    patches = torch.from_numpy(bench.prompts.patches(grids)).to(bench.device)
    flops = vision_flops(bench.network, grids)
    calls = list(within_budget(grids, EngineConfig().max_vision_patches))
    chunks = patches.split([sum(h * w for h, w in call) for call in calls])

    def ours() -> None:
        for chunk, call in zip(chunks, calls, strict=True):
            bench.model.encode_images(chunk, call)

    works: dict[str, Callable[[], float]] = {
        "limit": lambda: flops / bench.card.flops_per_s(),
        "ours": lambda: bench.timed(ours),
    }
    if reference := bench.reference:
        works["theirs"] = lambda: bench.timed(lambda: reference.encode_images(patches, grids))
    turns = take_turns(works, bench.sizes.num_rounds)
    return {
        **turns.rates("vision", "patches", len(patches)),
        "vision_ms": round(1e3 * turns.typical("ours"), 3),
    }


def measure_questions(bench: DeviceBench) -> dict[str, object]:
    """Measure the time until questions about a clip have a first token.

    `one` and `all` are about a clip that is new; `later` are as many questions as `all` about a
    clip that was asked about before, so that only the questions are computed.
    """
    sizes = bench.sizes
    grids = [sizes.frame] * sizes.num_frames
    number, length = sizes.num_questions, sizes.question_len
    past_len = sum(4 + height * width // 4 for height, width in grids)
    one_flops = vision_flops(bench.network, grids)
    one_flops += prefill_flops(bench.network, 1, past_len + length)
    with bench.engine(number, past_len + 2 * length) as engine:

        def about_new(questions: int) -> float:
            return _first_tokens_s(bench, engine, bench.prompts.about(grids, questions, length))

        def later() -> float:
            (first,) = bench.prompts.about(grids, 1, length)
            _first_tokens_s(bench, engine, [first])
            again = [_asked_again(first, bench.prompts.ids(length)) for _ in range(number)]
            return _first_tokens_s(bench, engine, again)

        works = {
            "limit": lambda: one_flops / bench.card.flops_per_s(),
            "one": lambda: about_new(1),
            "all": lambda: about_new(number),
            "later limit": lambda: _later_limit_s(bench, past_len),
            "later": later,
        }
        turns = take_turns(works, sizes.num_rounds)
    return {
        "questions": number,
        "one_question_ms": round(1e3 * turns.typical("one"), 3),
        "one_question_of_limit": round(turns.quotient("limit", "one"), 3),
        "questions_cost": round(turns.quotient("all", "one"), 3),
        "later_questions_ms": round(1e3 * turns.typical("later"), 3),
        "later_questions_of_limit": round(turns.quotient("later limit", "later"), 3),
    }


def _first_tokens_s(bench: DeviceBench, engine: Engine, prompts: Sequence[Prompt]) -> float:
    """Return the seconds of the steps; the hashing of pixels by `add` is left out."""
    add_all(engine, prompts, max_tokens=1)
    return bench.timed(lambda: run_until_done(engine))


def _asked_again(prompt: Prompt, question: "np.typing.NDArray[np.int32]") -> Prompt:
    """Replace the question at the end of a prompt."""
    kept = prompt.token_ids[: -len(question)]
    return replace(prompt, token_ids=np.concatenate((kept, question)))


def _later_limit_s(bench: DeviceBench, past_len: int) -> float:
    """Return the least seconds: the weights and the shared past are read once."""
    network, sizes = bench.network, bench.sizes
    num_tokens = sizes.num_questions * sizes.question_len
    weights = decode_bytes(network, num_tokens, 0, chosen_experts(network, num_tokens))
    return (weights + past_len * network.cache_bytes) / bench.card.bytes_per_s()
