"""Measure prefill and decode of random tokens on a device."""

from collections.abc import Callable

import torch

from jobs.bench.device.bench import DeviceBench, NoRoomError
from jobs.bench.device.bounds import decode_bytes, prefill_flops
from jobs.bench.device.clock import activity, host_waits
from jobs.bench.device.decoding import Decoding, decoding
from jobs.bench.measure.shapes import add_all, run_until_done
from jobs.bench.measure.turns import by_key, take_turns
from jobs.planning.network import BF16_BYTES


def measure_prefill(bench: DeviceBench) -> dict[str, object]:
    """Measure prompt tokens/s without common prefixes, by tokens of a step."""
    sizes = bench.sizes
    return by_key(
        {number * sizes.prompt_len: _prefill(bench, number) for number in sizes.prefill_prompts}
    )


def _prefill(bench: DeviceBench, num_prompts: int) -> dict[str, object]:
    length, card = bench.sizes.prompt_len, bench.card
    flops = prefill_flops(bench.network, num_prompts, length)
    with bench.engine(num_prompts, length + 1) as engine:

        def ours() -> float:
            prompts = [bench.prompts.text(length) for _ in range(num_prompts)]
            add_all(engine, prompts, max_tokens=1)
            return bench.timed(lambda: run_until_done(engine))

        works: dict[str, Callable[[], float]] = {
            "limit": lambda: flops / card.flops_per_s(),
            "ours": ours,
        }
        if reference := bench.reference:
            shape, vocab_size = (num_prompts, length), bench.config.text.vocab_size
            ids = torch.randint(0, vocab_size, shape, device=bench.device)
            works["theirs"] = lambda: bench.timed(lambda: reference.prefill(ids))
        turns = take_turns(works, bench.sizes.num_rounds)
        return {
            **turns.rates("prefill", "tokens", num_prompts * length),
            "prefill_ms": round(1e3 * turns.typical("ours"), 3),
            "prefill_peak_gib": bench.peak_gib(),
        }


def measure_decode(bench: DeviceBench) -> dict[str, object]:
    """Measure generated tokens/s by number of sequences, each behind a context of its own."""
    found: dict[int, dict[str, object]] = {}
    for number in bench.sizes.num_sequences:
        try:
            found[number] = _decode(bench, number)
        except NoRoomError as reason:
            bench.skip(f"decode of {number} sequences", reason)
        else:
            rate, share = (found[number][f"decode_{name}"] for name in ("tokens_per_s", "of_limit"))
            print(f"  {number} sequences: {rate} tokens/s, {share} of the limit", flush=True)
    return by_key(found)


def _decode(bench: DeviceBench, num_sequences: int) -> dict[str, object]:
    with decoding(bench, num_sequences) as sequences:
        return _compare(bench, num_sequences, sequences)


def _compare(bench: DeviceBench, num_sequences: int, sequences: Decoding) -> dict[str, object]:
    network, card, num_steps = bench.network, bench.card, bench.sizes.decode_steps
    experts = sequences.experts_per_layer()

    def limit() -> float:
        must_read = decode_bytes(network, num_sequences, sequences.context_len, experts)
        return must_read / card.bytes_per_s()

    works = {"limit": limit, "ours": sequences.step_s, **_theirs(bench, num_sequences)}
    turns = take_turns(works, bench.sizes.num_rounds)
    step_s = turns.typical("ours")
    waits = host_waits(bench.device, sequences.round)
    busy = activity(bench.device, sequences.round)
    return {
        **turns.rates("decode", "tokens", num_sequences),
        "decode_step_ms": round(1e3 * step_s, 3),
        "decode_limit_ms": round(1e3 * turns.typical("limit"), 3),
        "decode_experts_per_layer": round(experts, 1),
        "decode_host_waits": None if waits is None else waits / num_steps,
        "decode_kernels": round(busy.num_kernels / num_steps),
        "decode_busy_share": round(busy.busy_s / num_steps / step_s, 3),
        "decode_peak_gib": bench.peak_gib(),
    }


def _theirs(bench: DeviceBench, num_sequences: int) -> dict[str, Callable[[], float]]:
    """Return a step of transformers, if it is compared and its cache of keys and values fits."""
    reference, text = bench.reference, bench.config.text
    if reference is None:
        return {}
    width = text.num_attention_heads * (text.qk_head_dim + text.v_head_dim)
    each = BF16_BYTES * text.num_hidden_layers * width  # it keeps the keys and values of all heads
    needed = 1.3 * each * num_sequences * bench.sizes.prompt_len  # some of it twice for a moment
    try:
        bench.require(needed)
    except NoRoomError as reason:
        bench.skip(f"transformers with {num_sequences} sequences", reason)
        return {}
    theirs = reference.decoding(bench.sizes.prompt_len, num_sequences)
    return {"theirs": lambda: bench.timed(theirs.step)}


def measure_eager(bench: DeviceBench) -> dict[str, object]:
    """Measure the decode of the fewest and of the most sequences without CUDA graphs."""
    step_ms: dict[int, float] = {}
    for number in sorted({min(bench.sizes.num_sequences), max(bench.sizes.num_sequences)}):
        try:
            step_ms[number] = _eager_step_ms(bench, number)
        except NoRoomError as reason:
            bench.skip(f"decode of {number} sequences without graphs", reason)
    return {"eager_step_ms": step_ms}


def _eager_step_ms(bench: DeviceBench, num_sequences: int) -> float:
    with decoding(bench, num_sequences, has_graphs=False) as sequences:
        turns = take_turns({"ours": sequences.step_s}, bench.sizes.num_rounds)
        return round(1e3 * turns.typical("ours"), 3)
