"""How fast the engine prefills and decodes, and how much of this machine that is.

    python -m jobs.bench_engine [--sequences 1,8,32] [--compare transformers]

The shape is `moonlight-4l`: the published widths of Kimi-VL's decoder (hidden 2048, 64 experts x
1408, top-6, 2 shared, latent attention, vocabulary 163,840) with 4 layers and random bf16 weights,
5.6 GB of them. Prompts are random tokens; nothing ends a text early.

Prefill is bound by arithmetic: its limit is the rate of bare bf16 products of the same widths.
Decode is bound by memory: a step must read every expert that any of its tokens chose, and the head;
its limit is the time of the bare products over just those matrices. Limits and engine are measured
in the same run on a machine that does nothing else; take the fractions, not the absolute numbers.

The last line of the output is one JSON object.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import EngineConfig, ImageConfig, KimiVLConfig, TextConfig, VisionConfig
from model.engine import Engine
from model.kimi_vl import KimiVL
from model.moe import MoE
from model.packed import pack
from model.prompt import Prompt
from model.sequence import SamplingParams
from model.tokenizer import Tokenizer
from model.weights import empty_model

PROMPT_LEN = 128
NEW_TOKENS = 16
PREFILL_PROMPTS = 8


@dataclass(frozen=True)
class Decode:
    """Decoding `num_sequences` at the same time."""

    num_sequences: int
    tokens_per_s: float
    limit_tokens_per_s: float


def main() -> int:
    """Measure, print a table and a JSON object."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench_engine", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sequences", default="1,8,32", help="numbers of sequences to decode")
    parser.add_argument("--layers", type=int, default=4, help="layers, the first of them dense")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--compare", choices=("transformers",), help="do the same work with it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    numbers = [int(number) for number in options.sequences.split(",")]
    model = moonlight(options.layers)
    # Limits and comparison need the plain weights, which packing takes away.
    matmul_flops = matmul_rate(model)
    flops_per_token = prefill_flops_per_token(model)
    limits = {number: number / bare_step(model, number) for number in numbers}
    theirs = transformers_rates(model, numbers) if options.compare else {}
    pack(model)
    engine = make_engine(model, max(numbers), options.threads)
    prefill = prefill_rate(engine)
    decodes = [Decode(n, decode_rate(engine, n), limits[n]) for n in numbers]
    result: dict[str, object] = {
        "shape": f"moonlight-{options.layers}l",
        "threads": options.threads,
        "matmul_gflops": round(matmul_flops / 1e9, 1),
        "prefill_tokens_per_s": round(prefill, 1),
        "prefill_of_limit": round(prefill * flops_per_token / matmul_flops, 3),
        "decode_tokens_per_s": {d.num_sequences: round(d.tokens_per_s, 2) for d in decodes},
        "decode_of_limit": {
            d.num_sequences: round(d.tokens_per_s / d.limit_tokens_per_s, 3) for d in decodes
        },
    }
    print(f"bf16 products      {matmul_flops / 1e9:8.1f} GFLOP/s")
    print(f"prefill            {prefill:8.1f} tokens/s, {result['prefill_of_limit']} of the limit")
    for each in decodes:
        print(
            f"decode {each.num_sequences:4d} seq.   {each.tokens_per_s:8.2f} tokens/s, "
            f"the limit is {each.limit_tokens_per_s:.2f}"
        )
    if options.compare:
        result["decode_vs_transformers"] = {
            each.num_sequences: round(each.tokens_per_s / theirs[each.num_sequences], 2)
            for each in decodes
        }
    print(json.dumps(result))
    return 0


def moonlight(num_layers: int) -> KimiVL:
    """The published decoder with fewer layers and random bf16 weights, and a token vision tower."""
    text = TextConfig(
        vocab_size=163840, hidden_size=2048, intermediate_size=11264, num_hidden_layers=num_layers,
        num_attention_heads=16, num_key_value_heads=16, rms_norm_eps=1e-5, rope_theta=800000.0,
        max_position_embeddings=131072, kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128,
        qk_rope_head_dim=64, v_head_dim=128, moe_intermediate_size=1408, n_routed_experts=64,
        num_experts_per_tok=6, n_shared_experts=2, first_k_dense_replace=1, moe_layer_freq=1,
        scoring_func="sigmoid", topk_method="noaux_tc", n_group=1, topk_group=1,
        norm_topk_prob=True, routed_scaling_factor=2.446,
    )  # fmt: skip
    config = KimiVLConfig(
        text=text,
        vision=VisionConfig(
            num_attention_heads=2, num_hidden_layers=1, hidden_size=16, intermediate_size=16
        ),
        image=ImageConfig(
            in_token_limit=4096, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5)
        ),
        media_token_id=163605,
        stop_token_ids=(),
        dtype="bfloat16",
    )
    model = empty_model(config, torch.bfloat16, torch.device("cpu"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.uniform_(-(parameter.shape[-1] ** -0.5), parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(requires_grad=False)


def make_engine(model: KimiVL, max_batch_size: int, num_threads: int) -> Engine:
    """An engine with room for all sequences; its tokenizer gives no text, which is not measured."""
    bytes_alone = {bytes([byte]): byte for byte in range(256)}
    tokenizer = Tokenizer(bytes_alone, {}, vocab_size=model.config.text.vocab_size)
    config = EngineConfig(
        max_batch_size=max(max_batch_size, PREFILL_PROMPTS), cache_gib=1.0, num_threads=num_threads
    )
    return Engine(model, tokenizer, config)


def prefill_rate(engine: Engine) -> float:
    """Prompt tokens per second, of prompts that share nothing."""
    add_prompts(engine, PREFILL_PROMPTS, max_tokens=1)
    seconds = timed(lambda: drain(engine))
    return PREFILL_PROMPTS * PROMPT_LEN / seconds


def decode_rate(engine: Engine, num_sequences: int) -> float:
    """Generated tokens per second after all prompts are prefilled."""
    add_prompts(engine, num_sequences, max_tokens=NEW_TOKENS + 1)
    engine.step()
    return num_sequences * NEW_TOKENS / timed(lambda: drain(engine))


def bare_step(model: KimiVL, num_tokens: int) -> float:
    """Seconds of the bare products of a decode step over the matrices that it must read.

    The products run on weights that were reordered once, the fastest that this machine has; one
    kind of matrix is measured on 16 of them in turn, so that they do not sit in a cache.
    """
    text = model.config.text
    chosen = num_tokens * text.num_experts_per_tok
    miss = (1 - text.num_experts_per_tok / text.n_routed_experts) ** num_tokens
    num_touched = round(text.n_routed_experts * (1 - miss))
    num_rows = max(1, round(chosen / num_touched))
    experts = moe_layers(model)[0].experts
    gate_up = seconds_per_product(list(experts.gate_up_proj[:16]), num_rows)
    down = seconds_per_product(list(experts.down_proj[:16]), num_rows)
    head = seconds_per_product(list(model.language_model.lm_head.weight.chunk(16)), num_tokens)
    return len(moe_layers(model)) * num_touched * (gate_up + down) + 16 * head


def matmul_rate(model: KimiVL) -> float:
    """Floating point operations per second of bf16 products with 512 rows."""
    weights = list(moe_layers(model)[0].experts.gate_up_proj[:16])
    return 2 * 512 * weights[0].numel() / seconds_per_product(weights, 512)


def seconds_per_product(weights: list[Tensor], num_rows: int) -> float:
    """The best time of a product of `num_rows` rows with one of `weights`, taken in turn."""
    rows = torch.randn(num_rows, weights[0].shape[1]).bfloat16()
    ops = torch.ops.mkldnn  # internal to torch, and only a yardstick here
    packed = [ops._reorder_linear_weight(weight.contiguous()) for weight in weights]
    ways = (
        lambda: [F.linear(rows, weight) for weight in weights],
        lambda: [ops._linear_pointwise(rows, each, None, "none", [], "") for each in packed],
    )
    return min(timed(way) for way in ways for _ in range(4)) / len(weights)


def moe_layers(model: KimiVL) -> list[MoE]:
    """The layers with routed experts."""
    return [module for module in model.modules() if isinstance(module, MoE)]


def prefill_flops_per_token(model: KimiVL) -> float:
    """Of the products with weights; attention itself is small at this length."""
    text = model.config.text
    per_token = 0
    for name, parameter in model.language_model.model.layers.named_parameters():
        if parameter.ndim < 2 or name.endswith("gate.weight"):
            continue
        is_routed = ".mlp.experts." in name
        share = text.num_experts_per_tok / text.n_routed_experts if is_routed else 1
        per_token += 2 * parameter.numel() * share
    return per_token


def add_prompts(engine: Engine, count: int, max_tokens: int) -> None:
    """Queue random prompts that differ from their first token on."""
    generator = torch.Generator().manual_seed(count * 1000 + max_tokens)
    ids = torch.randint(0, 163_000, (count, PROMPT_LEN), generator=generator, dtype=torch.int32)
    params = SamplingParams(max_tokens=max_tokens, loop_guard=0)
    for number, row in enumerate(ids):
        engine.add(str(number), text_prompt(row), params)


def text_prompt(ids: Tensor) -> Prompt:
    """A prompt without images."""
    none = torch.zeros(0, 3, 14, 14, dtype=torch.uint8).numpy()
    no_grid = torch.zeros(0, 2, dtype=torch.int32).numpy()
    return Prompt(token_ids=ids.numpy(), patches=none, grid_hw=no_grid)


def transformers_rates(model: KimiVL, numbers: list[int]) -> dict[int, float]:
    """Generated tokens per second of transformers' DeepSeek-V3 with the same weights."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    text = model.config.text
    names = """vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers
    num_attention_heads num_key_value_heads n_shared_experts n_routed_experts kv_lora_rank
    q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim n_group topk_group num_experts_per_tok
    first_k_dense_replace norm_topk_prob routed_scaling_factor rms_norm_eps
    max_position_embeddings""".split()
    config = DeepseekV3Config(
        **{name: getattr(text, name) for name in names},
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        reference = DeepseekV3ForCausalLM(config)
    state = model.language_model.state_dict()
    reference.load_state_dict(state, strict=True, assign=True)  # shares the memory
    rotary = type(reference.model.rotary_emb)(config)
    reference.model.rotary_emb = rotary
    reference.eval()
    rates: dict[int, float] = {}
    for number in numbers:
        ids = torch.randint(0, 163_000, (number, PROMPT_LEN))
        rates[number] = number * NEW_TOKENS / transformers_decode_seconds(reference, ids)
        print(f"transformers {number:4d}   {rates[number]:8.2f} tokens/s decode")
    return rates


@torch.inference_mode()
def transformers_decode_seconds(reference: torch.nn.Module, ids: Tensor) -> float:
    """Seconds of NEW_TOKENS greedy steps after the prefill of `ids` [sequences, length]."""
    output = reference(ids, use_cache=True, logits_to_keep=1)
    started = time.perf_counter()
    for _ in range(NEW_TOKENS):
        output = reference(
            output.logits[:, -1:].argmax(-1),
            past_key_values=output.past_key_values,
            use_cache=True,
        )
    return time.perf_counter() - started


def drain(engine: Engine) -> None:
    """Step until nothing is left."""
    while engine.has_work:
        engine.step()


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    gc.collect()
    started = time.perf_counter()
    with torch.inference_mode():
        work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
