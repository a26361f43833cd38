"""A plan with what was measured on a GPU."""

import json

import pytest

from jobs.plan import main
from jobs.planning.hardware import GPUS
from jobs.planning.measured import MeasuredGpu

# Invented, in the format of `jobs.bench.engine --device cuda`.
MEASURED = {
    "device": "cuda",
    "dry_run": False,
    "card": "NVIDIA H200",
    "torch": "2.13.0",
    "layers": 27,
    "memory_gib": 139.8,
    "bf16_tflops": 700.0,
    "copy_gbs": 4000.0,
    "prefill_of_limit": {"2048": 0.4, "8192": 0.6},
    "decode_of_limit": {"1": 0.2, "32": 0.5, "256": 0.45},
    "decode_step_ms": {"1": 5.4, "32": 14.0, "256": 27.0},
    "eager_step_ms": {"1": 9.45, "256": 30.0},
    "vision_of_limit": {"image": 0.5, "frames": 0.3},
}


@pytest.fixture
def plan(tmp_path, capsys):
    """Plan with a measurement; return the printed lines and the object on the last one."""

    def run(changes, *arguments):
        path = tmp_path / "gpu.txt"
        last = json.dumps(MEASURED | changes)
        path.write_text(f'{{"an": "earlier run"}}\ndecode ...\n{last}\na late warning\n')
        assert main(["--gpus", "1", "--measured", str(path), *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        return lines, json.loads(lines[-1])

    return run


def test_what_was_measured_takes_the_place_of_guesses(plan):
    lines, planned = plan({})
    hardware = planned["hardware"]
    assert (planned["gpu"], planned["measured"]) == ("h200", "NVIDIA H200")
    assert (hardware["tflops"], hardware["memory_gbs"]) == (700.0, 4000.0)
    assert hardware["memory_gib"] == 139.8
    assert (hardware["product_share"], hardware["vision_share"]) == (0.6, 0.3)
    assert hardware["memory_share"] == 0.45  # that of 256 sequences
    assert (hardware["replay_us"], hardware["launch_us"]) == (200.0, 350.0)
    assert hardware["link_gbs"] == GPUS["h200"].link_gbs
    assert lines[2].startswith("measured on NVIDIA H200 with torch 2.13.0 and 27 layers;")
    assert lines[2].endswith("links as in the data sheet of h200")


def test_a_plan_repeats_the_decode_that_was_measured(plan):
    """31.3 GB of weights and 256 contexts of some 2,212 tokens, by 0.45 of 4,000 GB/s."""
    (layout,) = plan({})[1]["plans"][0]["layouts"]
    read = 31.3e9 + 256 * 2212 * 31_104
    assert layout["num_sequences"] == 256
    assert layout["decode_ms"] == pytest.approx(1e3 * read / (0.45 * 4e12), rel=0.01)


def test_the_nearest_number_of_sequences_counts(plan):
    assert plan({}, "--batch-size", "40")[1]["hardware"]["memory_share"] == 0.5


def test_fewer_layers_are_scaled_and_named(plan):
    lines, planned = plan({"layers": 4, "decode_step_ms": {"1": 1.0}})
    assert planned["hardware"]["replay_us"] == 250.0
    assert lines[3].startswith("27 layers are scaled from 4;")


def test_what_the_user_gives_wins_over_what_was_measured(plan):
    _, planned = plan({}, "--gpu", "h100", "--tflops", "500")
    assert (planned["gpu"], planned["hardware"]["tflops"]) == ("h100", 500.0)


@pytest.mark.parametrize(
    ("card", "preset"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_card_is_known_by_its_name(card, preset, plan):
    assert MeasuredGpu.model_validate(MEASURED | {"card": card}).preset == preset
    assert plan({"card": card})[1]["gpu"] == (preset or "h100")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("no JSON\n", "has no line with a JSON object", id="no object"),
        pytest.param("[1]", "has no line with a JSON object", id="a list"),
        pytest.param('{"shape": "moonlight-4l"}', "not a measurement of a GPU", id="of a CPU"),
        pytest.param(
            json.dumps(MEASURED | {"device": "cpu", "dry_run": True}),
            "not a measurement of a GPU",
            id="dry run",
        ),
        pytest.param(
            json.dumps({k: v for k, v in MEASURED.items() if k not in ("torch", "copy_gbs")}),
            "torch: Field required; copy_gbs: Field required; measure all parts with",
            id="missing keys",
        ),
        pytest.param(
            json.dumps(MEASURED | {"decode_step_ms": {"1": -1.0}}),
            "decode_step_ms.1: Input should be greater than 0",
            id="negative",
        ),
        pytest.param(
            json.dumps(MEASURED | {"decode_of_limit": {}}),
            "decode_of_limit: Dictionary should have at least 1 item",
            id="nothing fitted",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    path.write_text(text)
    assert main(["--measured", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert message in line


def test_a_file_that_is_not_there_is_refused(capsys):
    assert main(["--measured", "/nowhere.txt"]) == 2
    assert "/nowhere.txt cannot be read" in capsys.readouterr().err
