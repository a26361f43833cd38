"""The cost model against numbers that can be had otherwise, and its table."""

import json
from dataclasses import replace

import pytest
import torch

from jobs.caption_videos import make_parser
from jobs.plan import main
from jobs.planning.group_layout import GroupLayout, Planner, Rows, best
from jobs.planning.hardware import GPUS, Hardware
from jobs.planning.network import Network
from jobs.planning.shapes import moonlight
from model.config import BLOCK_SIZE
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache
from model.network.moe import ExpertShard, LocalDispatcher
from tests.tiny import tiny_checkpoint, tiny_config

ROWS = Rows(
    visual_tokens=2048,
    text_tokens=64,
    generated_tokens=200,
    frame_tokens=256,
    step_tokens=8192,
    most_sequences=64,
    level=1.0,
    skew=1.0,
    num_copies=0,
)
FREE = Hardware(  # but for what a test sets
    tflops=1e12, memory_gbs=1e12, memory_gib=1e6, link_gbs=1e12, net_gbs=1e12, launch_us=0
)
PUBLISHED = Network(moonlight(27))


def planner(hardware: Hardware, rows: Rows = ROWS) -> Planner:
    return Planner(PUBLISHED, hardware, rows, gpus_per_node=8)


def test_the_published_network_has_its_parameters():
    assert PUBLISHED.num_parameters == 16_407_656_048


@pytest.mark.parametrize(("num_ranks", "num_copies"), [(1, 0), (2, 0), (4, 2)])
def test_a_rank_has_the_bytes_that_it_would_load(num_ranks, num_copies):
    config = tiny_config()
    held = range(16 // num_ranks + num_copies)
    share = ExpertShard(held, LocalDispatcher())
    loaded = sum(p.numel() for p in KimiVL(config, lambda _: share).parameters())
    assert Network(config).weights_bytes(num_ranks, num_copies) == 2 * loaded


@pytest.mark.parametrize("latent", [48, None])
def test_a_token_takes_the_cache_that_the_engine_reserves(latent):
    changes = (
        {} if latent else {"kv_lora_rank": None, "qk_rope_head_dim": 32, "qk_nope_head_dim": 0}
    )
    text = tiny_config(changes).text
    block_bytes = LatentCache.block_bytes(text, torch.bfloat16)
    assert Network(tiny_config(changes)).cache_bytes * BLOCK_SIZE == block_bytes


@pytest.mark.parametrize(("num_ranks", "rows"), [(2, 0.99), (4, 2.51), (8, 3.97)])
def test_rows_travel_as_often_as_was_counted(num_ranks, rows):
    assert PUBLISHED.rows_sent(num_ranks) == pytest.approx(rows, abs=0.01)


def test_products_and_reading_take_what_their_rates_say():
    step = planner(replace(FREE, tflops=100, product_share=0.5)).prefill_step(1, 8192)
    # About 2.2 billion parameters of the decoder compute for each token, beside attention.
    assert step.compute_s == pytest.approx(2 * 2.2e9 * 8192 / 50e12, rel=0.15)
    step = planner(replace(FREE, memory_gbs=1000, memory_share=1)).decode_step(1, 64)
    # 64 tokens choose nearly all experts: all weights but vision and embeddings are read.
    cache_s = 64 * 2212 * PUBLISHED.cache_bytes / 1e12
    assert step.compute_s - cache_s == pytest.approx(15.65e9 * 2 / 1e12, rel=0.02)


def test_exchanges_take_their_latencies_and_bytes():
    assert planner(FREE).exchange_s(1, 1000) == 0
    slow = planner(replace(FREE, link_latency_us=100, net_latency_us=200))
    assert slow.exchange_s(8, 1000) == pytest.approx((3 * 26 + 1) * 100e-6, rel=1e-3)
    assert slow.exchange_s(16, 1000) == pytest.approx((3 * 26 + 1) * 200e-6, rel=1e-3)
    quick = replace(FREE, link_latency_us=0, net_latency_us=0)
    by_link = planner(replace(quick, link_gbs=10, link_share=1)).exchange_s(2, 1000)
    assert by_link == pytest.approx(26 * 1000 * PUBLISHED.rows_sent(2) * (2 * 4096 + 48) / 10e9)
    by_net = planner(replace(quick, net_gbs=10, link_share=1)).exchange_s(16, 1000)
    assert by_net == pytest.approx(
        26 * 1000 * PUBLISHED.rows_sent(16) * (8 / 15) * (2 * 4096 + 48) / 10e9
    )


def test_a_layer_takes_its_launches_at_least():
    step = planner(replace(FREE, launch_us=100)).decode_step(1, 1)
    assert step.seconds == pytest.approx(27 * 100e-6)


def test_a_network_that_does_not_fit_one_gpu_is_shared():
    layouts = list(planner(GPUS["l4"]).layouts(8, (1, 2, 4, 8)))
    assert layouts[0].num_sequences == 0
    assert layouts[0].memory_gib > 24
    chosen = best(layouts)
    assert chosen is not None
    assert chosen.num_ranks > 1
    assert chosen.memory_gib <= 0.9 * 24
    assert best(layouts[:1]) is None


def test_of_nearly_equal_layouts_the_one_with_the_fewest_ranks_is_chosen():
    def layout(num_ranks: int, rows_per_day: float) -> GroupLayout:
        return GroupLayout(
            num_groups=1,
            num_ranks=num_ranks,
            memory_gib=1,
            num_sequences=1,
            rows_per_day=rows_per_day,
        )

    near, far, top = layout(2, 98.0), layout(1, 90.0), layout(4, 100.0)
    assert best([far, near, top]) is near


def test_ranks_that_do_not_divide_the_experts_are_left_out():
    assert [each.num_ranks for each in planner(GPUS["h100"]).layouts(64, (1, 3, 4, 128))] == [1, 4]


def test_the_table_ends_in_json_with_a_choice_for_each_number_of_gpus(capsys):
    assert main(["--gpus", "1,8,64,512"]) == 0
    lines = capsys.readouterr().out.splitlines()
    plans = json.loads(lines[-1])["plans"]
    assert [plan["gpus"] for plan in plans] == [1, 8, 64, 512]
    assert all(plan["groups"] * plan["expert_parallel"] <= plan["gpus"] for plan in plans)
    assert sum(line.endswith("<-") for line in lines) == 4
    assert "16.41 billion parameters" in lines[0]


def test_the_advice_is_options_of_the_job_whose_cache_holds_the_sequences(capsys):
    assert main(["--gpus", "8"]) == 0
    *_, advice, text = capsys.readouterr().out.splitlines()
    (plan,) = json.loads(text)["plans"]
    (chosen,) = (each for each in plan["layouts"] if each["num_ranks"] == plan["expert_parallel"])

    given = advice.removeprefix("choose ").split()
    options = make_parser().parse_args([*given, "--input", "i", "--output", "o", "--model", "demo"])

    assert (options.groups, options.expert_parallel or 1) == (plan["groups"], chosen["num_ranks"])
    assert options.batch_size == chosen["num_sequences"]
    blocks_of_row = -(-(2048 + 64 + 200) // BLOCK_SIZE)
    block_bytes = LatentCache.block_bytes(moonlight(27).text, torch.bfloat16)
    held = options.cache_gib * 2**30 // block_bytes // blocks_of_row
    assert options.batch_size <= held < 1.1 * options.batch_size


def test_sizes_come_from_a_checkpoint_and_rates_from_the_user(tmp_path, capsys):
    tiny_checkpoint(tmp_path)
    arguments = ["--model", str(tmp_path), "--gpus", "4", "--ranks", "2", "--memory-gbs", "5"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "0.00 billion parameters" in out
    assert "memory_gbs 5" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--model", "/nowhere"], "config.json is missing", id="no checkpoint"),
        pytest.param(["--tflops", "0"], "tflops must be positive, got 0", id="no rate"),
        pytest.param(["--launch-us", "-1"], "launch_us must be positive", id="negative"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_more_ranks_read_less_and_hold_less():
    held = [PUBLISHED.weights_bytes(num_ranks) for num_ranks in (1, 2, 4, 8)]
    assert held == sorted(held, reverse=True)
    assert held[0] == 2 * PUBLISHED.num_parameters
    experts = 26 * 64 * PUBLISHED.num_expert_parameters * 2
    assert held[0] - held[3] == experts * 7 // 8
