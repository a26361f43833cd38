import json
from dataclasses import replace

import pytest
import torch

from jobs.bench import engine
from jobs.bench.cases import session
from jobs.bench.cases.text import touched_experts
from jobs.bench.cases.workbench import Sizes, Workbench
from jobs.bench.measure.limits import BareProducts
from jobs.bench.measure.shapes import random_model
from jobs.bench.measure.turns import Others, Turns, take_turns
from jobs.cli.checkpoint import DEMO
from jobs.planning.products import Product, dense_products, expert_products, vision_products
from jobs.planning.shapes import moonlight
from model.network.moe import Router

EP_2 = ("--expert-parallel", "2")
TINY_SIZES = Sizes(
    num_rounds=1,
    prompt_len=8,
    prefill_prompts=2,
    num_sequences=(1, 3),
    decode_steps=1,
    image=(4, 6),
    frame=(2, 4),
    num_frames=2,
    contexts=(32, 128),
    context_sequences=2,
    num_questions=2,
    num_waiting=4,
    waiting_steps=12,
    num_clips=2,
    num_texts=2,
)


@pytest.fixture
def tiny_shape():
    config = moonlight(2)
    text = replace(
        config.text,
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
        moe_intermediate_size=32,
        n_routed_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=4096,
    )
    vision = replace(config.vision, hidden_size=64, num_attention_heads=4, intermediate_size=96)
    return replace(config, text=text, vision=vision, media_token_id=319)


@pytest.fixture
def bench(tiny_shape):
    threads = torch.get_num_threads()
    yield Workbench(
        config=tiny_shape,
        long_config=tiny_shape,
        checkpoint=DEMO,
        num_threads=1,
        compares=True,
        sizes=TINY_SIZES,
    )
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_all_parts_report_their_numbers(bench):
    parts = engine.default_parts(None)
    measured = json.loads(json.dumps(session.run(parts, bench)))
    by_sequences = {"1", "3"}
    for key in ("decode_tokens_per_s", "decode_of_limit", "decode_vs_transformers"):
        assert measured[key].keys() == by_sequences
    assert measured["decode_of_memory_read"].keys() == by_sequences
    for key in ("vision_patches_per_s", "vision_of_limit", "vision_vs_transformers"):
        assert measured[key].keys() == {"image", "frames"}
    for key in ("context_prefill_tokens_per_s", "context_decode_tokens_per_s"):
        assert measured[key].keys() == {"32", "128"}
    for key in (
        *("prefill_tokens_per_s", "prefill_of_limit", "prefill_vs_transformers"),
        *("questions_cost", "demo_questions_cost", "clips_per_s", "scheduler_share"),
    ):
        assert measured[key] > 0
    assert measured["others_share"].keys() == set(parts)
    assert measured["texts_changed_by_batch_size"].keys() == {"float32", "bfloat16"}


@pytest.mark.slow
def test_ranks_are_measured_beside_one_engine_and_beside_groups(bench):
    bench.sizes = replace(TINY_SIZES, num_sequences=(1, 2, 4))
    measured = json.loads(json.dumps(session.run(engine.default_parts(2), bench)))
    assert measured["ranks"] == 2
    assert measured["ranks_prefill_tokens_per_s"].keys() == {"one", "ranks", "groups"}
    assert measured["ranks_decode_tokens_per_s"].keys() == {"2", "4"}  # 1 cannot be divided
    assert 0 < measured["ranks_prefill_exchange_share"] < 1
    assert measured["ranks_prefill_vs_one"] > 0


@pytest.mark.parametrize("arguments", [["--only", "ranks"], ["--only", "decode", *EP_2]])
def test_ranks_need_their_number_and_the_number_needs_ranks(arguments, capsys):
    assert engine.main(arguments) == 2
    assert "ranks and --expert-parallel R go together" in capsys.readouterr().err


def test_an_unknown_part_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        engine.main(["--only", "prefil"])
    assert "unknown prefil; choose from prefill, decode, vision" in capsys.readouterr().err


def test_what_takes_turns_is_compared_within_its_round():
    assert Turns({"a": [1.0, 30.0, 2.0], "b": [2.0, 60.0, 4.0]}).quotient("a", "b") == 0.5


def test_works_take_turns_until_enough_rounds_were_quiet(monkeypatch):
    shares = iter([0.5, 0.01, 0.2, 0.0])
    monkeypatch.setattr("jobs.bench.measure.turns.Others.share", lambda _self: next(shares))
    calls = []
    works = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    turns = take_turns(works, 2)
    assert calls == ["a", "b"] * 5  # the first time warms up
    assert turns.seconds == {"a": [9.0, 5.0], "b": [10.0, 6.0]}


def test_the_least_disturbed_rounds_count_when_none_is_quiet(monkeypatch):
    shares = iter([0.5, 0.3])
    monkeypatch.setattr("jobs.bench.measure.turns.Others.share", lambda _self: next(shares))
    seconds = iter([0.0, 1.0, 2.0])
    assert take_turns({"a": lambda: next(seconds)}, 1).seconds == {"a": [2.0]}


def test_what_others_use_leaves_out_this_process(monkeypatch):
    clocks = iter([(100.0, 50.0, 7.0), (110.0, 62.0, 11.0)])  # wall, all that is busy, own
    monkeypatch.setattr("jobs.bench.measure.turns._clocks", lambda: next(clocks))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert Others().share() == (12 - 4) / (2 * 10)


def test_many_equal_products_are_scaled_from_some(monkeypatch):
    monkeypatch.setattr("jobs.bench.measure.limits.timed", lambda _work: 1.0)
    one, many = Product(2, 8, 8, count=3), Product(2, 8, 8, count=128)
    assert BareProducts([one]).seconds() == 1.0
    assert BareProducts([many]).seconds() == 2.0
    assert BareProducts([one, many]).flops == 2 * 2 * 8 * 8 * (3 + 128)


def test_the_products_of_a_step_touch_every_weight_of_the_layers(tiny_shape):
    model = random_model(tiny_shape)
    text = tiny_shape.text
    experts = text.n_routed_experts
    expected = sum(
        parameter.nbytes
        for name, parameter in model.language_model.model.layers.named_parameters()
        if parameter.ndim > 1 and "mlp.gate.weight" not in name
    )
    products = [*dense_products(text, 8), *expert_products(text, 8, experts)]
    assert sum(product.matrix_bytes for product in products) == expected


def test_the_products_of_images_touch_every_weight_of_the_tower(tiny_shape):
    model = random_model(tiny_shape)
    grid, attention = (4, 6), 2
    products = vision_products(tiny_shape.vision, tiny_shape.text.hidden_size, grid, 1)
    weights = [product for index, product in enumerate(products) if index // attention != 1]
    expected = sum(
        parameter.nbytes
        for module in (model.vision_tower, model.multi_modal_projector)
        for name, parameter in module.named_parameters()
        if parameter.ndim > 1 and "pos_emb" not in name
    )
    assert sum(product.matrix_bytes for product in weights) == expected


def test_the_experts_that_a_step_reads_are_counted_layer_by_layer(tiny_shape):
    router = Router(tiny_shape.text)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[2:4] = 1.0  # every token of ones chooses these two
    touched = touched_experts(router, lambda: router(torch.ones(5, 64)))
    assert touched == [2]
    assert touched_experts(router, lambda: None) == []
