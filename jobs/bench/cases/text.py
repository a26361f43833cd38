"""Measure prefill and decode of random tokens."""

from collections.abc import Callable
from statistics import mean

import torch
from torch import Tensor, nn

from jobs.bench.cases.workbench import Workbench
from jobs.bench.measure.limits import BareProducts, MemoryRead
from jobs.bench.measure.shapes import add_all, engine_for, run_until_done
from jobs.bench.measure.turns import MOST_TRIES, by_key, take_turns, timed
from jobs.planning.products import dense_products, expert_products, head_product
from model.network.moe import Router

_CACHE_GIB = 1.0


def measure_prefill(bench: Workbench) -> dict[str, object]:
    """Measure prompt tokens/s of prompts without common prefixes, compared with bare products."""
    sizes, text = bench.sizes, bench.config.text
    engine = engine_for(bench.model, sizes.prefill_prompts, bench.num_threads, _CACHE_GIB)
    num_tokens = sizes.prefill_prompts * sizes.prompt_len
    limit = BareProducts(
        [
            *dense_products(text, num_tokens),
            *expert_products(text, num_tokens, text.n_routed_experts),
            head_product(text, sizes.prefill_prompts),
        ]
    )

    def ours() -> float:
        prompts = [bench.prompts.text(sizes.prompt_len) for _ in range(sizes.prefill_prompts)]
        add_all(engine, prompts, max_tokens=1)
        return timed(lambda: run_until_done(engine))

    works: dict[str, Callable[[], float]] = {"limit": limit.seconds, "ours": ours}
    if reference := bench.reference:
        ids = torch.randint(0, text.vocab_size, (sizes.prefill_prompts, sizes.prompt_len))
        works["theirs"] = lambda: timed(lambda: reference.prefill(ids))
    turns = take_turns(works, sizes.num_rounds)
    gflops = round(limit.flops / turns.typical("limit") / 1e9, 1)
    return {**turns.rates("prefill", "tokens", num_tokens), "prefill_products_gflops": gflops}


def measure_decode(bench: Workbench) -> dict[str, object]:
    """Measure generated tokens/s by number of sequences, compared with limits of the weights."""
    read = MemoryRead()
    return by_key({number: _decode(bench, number, read) for number in bench.sizes.num_sequences})


def _decode(bench: Workbench, num_sequences: int, read: MemoryRead) -> dict[str, float]:
    sizes, text = bench.sizes, bench.config.text
    engine = engine_for(bench.model, num_sequences, bench.num_threads, _CACHE_GIB)
    prompts = [bench.prompts.text(sizes.prompt_len) for _ in range(num_sequences)]
    most_rounds = MOST_TRIES * sizes.num_rounds + 1  # the first one warms up
    add_all(engine, prompts, sizes.decode_steps * most_rounds + 3)
    engine.step()  # the prompts fit into one step
    touched = mean(touched_experts(bench.model, engine.step))
    of_weights = [
        *expert_products(text, num_sequences, touched),
        head_product(text, num_sequences),
    ]
    must_read = sum(
        product.matrix_bytes for product in (*of_weights, *dense_products(text, num_sequences))
    )

    def ours() -> float:
        seconds = timed(lambda: [engine.step() for _ in range(sizes.decode_steps)])
        return seconds / sizes.decode_steps

    works: dict[str, Callable[[], float]] = {
        "limit": BareProducts(of_weights).seconds,
        "ours": ours,
        "read": lambda: must_read / read.bytes_per_s(),
    }
    if reference := bench.reference:
        decoding = reference.decoding(sizes.prompt_len, num_sequences)
        works["theirs"] = lambda: timed(decoding.step)
    turns = take_turns(works, sizes.num_rounds)
    return {
        **turns.rates("decode", "tokens", num_sequences),
        "decode_experts_per_layer": round(touched, 1),
        "decode_of_memory_read": round(turns.quotient("read", "ours"), 3),
    }


def touched_experts(model: nn.Module, step: Callable[[], object]) -> list[int]:
    """Return how many experts of each layer one step reads."""
    touched: list[int] = []

    def count(_router: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
        touched.append(len(output[0].unique()))

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, Router)
    ]
    step()
    for hook in hooks:
        hook.remove()
    return touched
