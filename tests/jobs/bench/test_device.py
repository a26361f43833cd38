"""What is measured on a GPU, tried on a CPU, and the work of which its limits follow."""

import json
import re
import warnings

import pytest
import torch

from jobs.bench import engine
from jobs.bench.cases.session import PARTS
from jobs.bench.device import clock
from jobs.bench.device.bench import DRY_SIZES, DeviceBench, NoRoomError
from jobs.bench.device.bounds import chosen_experts, decode_bytes, prefill_flops, vision_flops
from jobs.bench.device.decoding import decoding
from jobs.bench.device.session import DEVICE_PARTS, layers_that_fit
from jobs.bench.measure.shapes import narrow
from jobs.planning.measured import MeasuredGpu
from jobs.planning.network import Network
from jobs.planning.shapes import moonlight

DRY = ("--device", "cuda", "--dry-run")
RANKS = (*DRY, "--expert-parallel", "2")
CPU = torch.device("cpu")
PUBLISHED = Network(moonlight(27))


@pytest.fixture
def bench():
    return DeviceBench(config=narrow(), device=CPU, compares=False, sizes=DRY_SIZES)


def measure(capsys, *arguments):
    """The exit code, the text, and the object on its last line."""
    code = engine.main([*DRY, *arguments])
    out = capsys.readouterr().out
    return code, out, json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_a_dry_run_measures_all_parts_and_says_that_it_is_one(capsys):
    code, out, measured = measure(capsys)
    assert code == 0
    assert (measured["dry_run"], measured["device"], measured["shape"]) == (True, "cpu", "narrow")
    assert (measured["failed"], measured["skipped"]) == ({}, {})
    assert measured["others_share"].keys() == DEVICE_PARTS.keys()
    assert measured["torch"] == torch.__version__
    by_sequences = {"1", "3"}
    for key in (
        *("decode_tokens_per_s", "decode_of_limit", "decode_step_ms", "decode_limit_ms"),
        *("decode_experts_per_layer", "decode_kernels", "decode_busy_share", "eager_step_ms"),
    ):
        assert measured[key].keys() == by_sequences
        assert all(value > 0 for value in measured[key].values())
    assert measured["decode_host_waits"].keys() == measured["decode_peak_gib"].keys()
    assert measured["prefill_of_limit"].keys() == {"48", "192"}
    assert measured["vision_of_limit"].keys() == {"image", "frames"}
    for key in ("bf16_tflops", "copy_gbs", "questions_cost", "later_questions_ms", "rows_per_s"):
        assert measured[key] > 0
    for key in ("one_question_of_limit", "later_questions_of_limit", "rows_of_limit"):
        assert measured[key] > 0
    assert measured["rows_preemptions"] == 0
    assert MeasuredGpu.model_validate(measured | {"memory_gib": 80}).layers == 2
    assert re.search(r"^  prefill_ms +48: \d", out, re.MULTILINE)


@pytest.mark.slow
def test_the_same_work_is_done_by_transformers_in_turns(capsys):
    code, _, measured = measure(capsys, "--compare", "transformers", "--sequences", "2")
    assert code == 0
    assert measured["decode_vs_transformers"].keys() == {"2"}
    assert measured["prefill_vs_transformers"].keys() == {"48", "192"}
    assert measured["vision_vs_transformers"].keys() == {"image", "frames"}


@pytest.mark.slow
def test_ranks_share_a_copy_in_lockstep(capsys):
    code, _, measured = measure(capsys, "--expert-parallel", "2", "--sequences", "1,3")
    assert code == 0
    assert (measured["ranks"], measured["dry_run"]) == (2, True)
    assert measured["ranks_prefill_tokens_per_s"] > 0
    for key in ("tokens_per_s", "of_limit", "step_ms", "experts_per_layer"):
        assert measured[f"ranks_decode_{key}"].keys() == {"1", "3"}
    # Each rank holds 8 of the 16 experts of the narrow shape.
    assert all(0 < number <= 8 for number in measured["ranks_decode_experts_per_layer"].values())


def test_a_part_that_fails_is_named_and_does_not_cost_the_others(capsys, monkeypatch):
    def breaks(_bench):
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(DEVICE_PARTS, "decode", breaks)
    code, _, measured = measure(capsys, "--only", "decode,vision")
    assert code == 1
    assert measured["failed"] == {"decode": "RuntimeError: no kernel image"}
    assert measured["vision_of_limit"]["image"] > 0


def test_a_case_without_room_is_left_out_and_named(bench, capsys, monkeypatch):
    needed = []

    def require(_self, num_bytes):
        needed.append(num_bytes)
        if len(needed) > 1:
            raise NoRoomError("needs more")

    monkeypatch.setattr(DeviceBench, "require", require)
    step_ms = DEVICE_PARTS["decode"](bench)["decode_step_ms"]
    assert isinstance(step_ms, dict)
    assert step_ms.keys() == {1}
    assert bench.skipped == {"decode of 3 sequences": "needs more"}
    assert needed[1] == pytest.approx(3 * needed[0])
    assert "decode of 3 sequences is left out" in capsys.readouterr().out


def test_sequences_that_do_not_decode_together_are_no_measurement(bench):
    with (
        pytest.raises(RuntimeError, match="3 sequences did not decode together"),
        decoding(bench, 2) as sequences,
    ):
        sequences._num_sequences = 3
    with (
        pytest.raises(RuntimeError, match="a sequence ended before all were measured"),
        decoding(bench, 2) as sequences,
    ):
        sequences.steps(1000)


def test_the_names_of_the_parts_are_those_that_can_be_measured():
    assert tuple(PARTS) == engine.CPU_PARTS
    assert tuple(DEVICE_PARTS) == engine.GPU_PARTS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--dry-run"], "--dry-run tries what --device cuda measures", id="dry CPU"),
        pytest.param(["--only", "rows"], "rows: no part of --device cpu", id="part of a GPU"),
        pytest.param([*DRY, "--only", "clips"], "clips: no part of --device cuda", id="of a CPU"),
        pytest.param([*DRY, "--only", "ranks"], "ranks and --expert-parallel R go", id="ranks"),
        pytest.param([*RANKS, "--compare", "transformers"], "measured alone", id="ranks compared"),
        pytest.param([*RANKS, "--only", "ranks,rows"], "measured alone", id="ranks and parts"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(arguments, message, capsys):
    assert engine.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told_of_the_dry_run(capsys):
    assert engine.main(["--device", "cuda"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch sees no GPU on this machine; --dry-run" in line


def test_a_network_that_does_not_fit_is_refused_with_one_that_does(capsys):
    assert layers_that_fit(None, 79.0, compares=False) == 27
    assert layers_that_fit(None, 139.0, compares=True) == 27
    assert layers_that_fit(4, 139.0, compares=True) == 4
    with pytest.raises(ValueError, match=r"27 layers take 39 GiB .* 23 are free; --layers (\d+)"):
        layers_that_fit(None, 23.0, compares=False)
    with pytest.raises(ValueError, match="not even 2 layers fit"):
        layers_that_fit(None, 8.0, compares=False)
    fewer = layers_that_fit(None, 44.0, compares=True)
    assert 2 < fewer < 27
    assert f"so both have {fewer} layers" in capsys.readouterr().out


def test_a_decode_must_read_its_weights_once_and_every_context():
    """31.3 GB of weights and 31,104 bytes a token, as published for 27 layers."""
    weights = decode_bytes(PUBLISHED, 256, 0, experts_per_layer=64)
    assert weights == pytest.approx(31.3e9, rel=0.002)
    assert decode_bytes(PUBLISHED, 256, 2048, 64) - weights == 256 * 2048 * 31_104
    without = decode_bytes(PUBLISHED, 1, 0, 0)
    assert decode_bytes(PUBLISHED, 1, 0, 6) - without == 26 * 6 * 3 * 2048 * 1408 * 2


def test_few_tokens_choose_few_experts_and_many_choose_all():
    assert chosen_experts(PUBLISHED, 1) == pytest.approx(6)
    assert 60 < chosen_experts(PUBLISHED, 32) < 64
    assert chosen_experts(PUBLISHED, 256) == pytest.approx(64)


def test_a_prompt_computes_twice_its_active_weights_and_half_its_pairs():
    text = PUBLISHED.config.text
    one, two = (prefill_flops(PUBLISHED, number, 2048) for number in (1, 2))
    assert two == pytest.approx(2 * one)
    # Of the published 2.8 billion active parameters the embeddings compute nothing, and `lm_head`
    # computes for one token.
    head = text.vocab_size * text.hidden_size
    pairs = text.num_hidden_layers * text.num_attention_heads * 2048 * 2049 / 2
    attention = 2 * pairs * (text.qk_head_dim + text.v_head_dim)
    active = (one - attention - 2 * head) / 2 / 2048
    assert active + 2 * head == pytest.approx(2.9e9, rel=0.05)


def test_equal_images_cost_equally_and_large_ones_more_than_their_patches():
    small, large = (vision_flops(PUBLISHED, [grid]) for grid in ((64, 64), (128, 128)))
    assert vision_flops(PUBLISHED, [(64, 64)] * 3) == pytest.approx(3 * small)
    assert large > 4 * small


def test_a_card_is_busy_while_any_of_its_kernels_runs():
    assert clock.covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 4.0
    assert clock.covered([]) == 0.0


def test_waits_are_those_that_torch_warns_of(monkeypatch):
    modes = []
    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)

    def work():
        notice = "this mode is a prototype and does not detect all synchronizing operations"
        for text in ("called a synchronizing CUDA operation", notice) * 2:
            warnings.warn(text, stacklevel=1)

    assert clock.host_waits(torch.device("cuda"), work) == 2
    assert modes == ["warn", "default"]
    assert clock.host_waits(CPU, lambda: None) is None
