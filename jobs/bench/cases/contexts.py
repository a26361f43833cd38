"""Measure the cost of longer contexts, on a network that is small enough to wait for.

The operations on weights grow with the number of tokens, those of attention with tokens times
context. If no other cost grows, operations per second stay constant while tokens per second fall.
"""

import numpy as np
from numpy.typing import NDArray

from jobs.bench.cases.workbench import Workbench
from jobs.bench.measure.shapes import (
    RandomPrompts,
    add_all,
    engine_for,
    random_model,
    run_until_done,
    text_prompt,
)
from jobs.bench.measure.turns import timed
from jobs.planning.products import dense_products, expert_products, head_product
from model.config import TextConfig
from model.engine.engine import Engine
from model.malloc import keep_freed_memory
from model.network.kimi_vl import KimiVL
from model.network.onednn import prepack

_OWN_TOKENS = 16  # of each sequence, after the context that all share
_DECODE_STEPS = 8


def measure_contexts(bench: Workbench) -> dict[str, object]:
    """Measure tokens/s of prefill and decode by the length of the context."""
    model = random_model(bench.long_config)
    prepack(model)
    keep_freed_memory()
    prompts = RandomPrompts(bench.long_config)
    prefills: dict[int, float] = {}
    decodes: dict[int, float] = {}
    for length in bench.sizes.contexts:
        prefills[length], decodes[length] = _at_length(bench, model, prompts, length)
        print(f"  context {length}: {prefills[length]:.0f} tokens/s of prompt, ", end="")
        print(f"{decodes[length]:.0f} of {bench.sizes.context_sequences} answers", flush=True)
    text = bench.long_config.text
    return {
        "context_prefill_tokens_per_s": {n: round(rate, 1) for n, rate in prefills.items()},
        "context_prefill_gflops": {
            n: round(rate * flops_per_token(text, n) / 1e9, 1) for n, rate in prefills.items()
        },
        "context_decode_tokens_per_s": {n: round(rate, 1) for n, rate in decodes.items()},
    }


def _at_length(
    bench: Workbench, model: KimiVL, prompts: RandomPrompts, length: int
) -> tuple[float, float]:
    """Return tokens/s of prefill and of decode at one length of the context."""
    num_sequences = bench.sizes.context_sequences
    bytes_a_token = 2 * 2 * 576 * (length + num_sequences * 1024)
    engine = engine_for(model, num_sequences, bench.num_threads, 4 * bytes_a_token / 2**30)
    repeats = max(1, max(bench.sizes.contexts) // 4 // length)
    contexts = [prompts.ids(length) for _ in range(repeats)]
    seconds = 0.0
    for context in contexts:
        add_all(engine, [text_prompt(context)], max_tokens=1)
        seconds += timed(lambda: run_until_done(engine))
    return repeats * length / seconds, _decode_rate(engine, contexts[-1], num_sequences, prompts)


def _decode_rate(
    engine: Engine, shared: NDArray[np.int32], num_sequences: int, prompts: RandomPrompts
) -> float:
    """Return tokens/s of sequences with a common prefix, so that their prompts cost little."""
    together = [
        text_prompt(np.concatenate((shared, prompts.ids(_OWN_TOKENS))))
        for _ in range(num_sequences)
    ]
    add_all(engine, together, max_tokens=_DECODE_STEPS + 2)
    engine.step()
    engine.step()
    seconds = sorted(timed(engine.step) for _ in range(_DECODE_STEPS))
    return num_sequences / seconds[len(seconds) // 2]


def flops_per_token(text: TextConfig, length: int) -> float:
    """Return the mean operations per prompt token: on weights, and attention to half the length."""
    products = [
        *dense_products(text, length),
        *expert_products(text, length, text.n_routed_experts),
        head_product(text, 1),
    ]
    attended = text.num_attention_heads * (text.qk_head_dim + text.v_head_dim) * length / 2
    return sum(each.flops for each in products) / length + 2 * text.num_hidden_layers * attended
