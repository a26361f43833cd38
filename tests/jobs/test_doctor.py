"""The doctor sees what a job would meet: rows, tokens, memory, hostile media, time."""

import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import doctor, parse_documents
from jobs.checks import attacks, trial, weights
from jobs.checks.sampled_rows import SampledRow
from jobs.cli import config_file
from jobs.cli.checkpoint import DEMO
from model.engine import dtype
from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from model.inputs.prompt import Prompt
from tests.clips import make_video
from tests.pipeline.pdfs import encrypted, make_pdf

GOOD = make_video(numbers=range(8))


@pytest.fixture
def clips(tmp_path):
    """Two files of several row groups; every third of 30 rows is broken."""
    rows = [{"n": n, "video": b"broken" if n % 3 == 0 else GOOD} for n in range(30)]
    for name, part in (("a", rows[:20]), ("b", rows[20:])):
        table = pa.Table.from_pylist(part)
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=7)
    return str(tmp_path)


def check(clips, capsys, *more):
    arguments = ["--input", clips, "--output", "/nowhere/out", "--model", "demo"]
    code = doctor.main([*arguments, "--threads", "1", "--frames", "2", "--cache-gib", "0.1", *more])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_it_says_what_a_job_would_meet(clips, capsys):
    code, out, err = check(clips, capsys, "--rows", "30", "--max-tokens", "4", "--temperature", "0")

    assert code == 0, err
    assert "30 rows in 2 file(s); used: n (int64), video (" in out
    assert re.search(r"ok +plan +30 rows new, 0 done, 0 failed; 30 to do", out)
    assert re.search(r"ok +checkpoint +244 tensors as .* says, 2,\d{3},\d{3} parameters", out)
    assert re.search(r"ok +memory +\d+\.\d GiB free on this machine, \d+\.\d needed", out)
    assert re.search(r"ok +attacks +all of 29 refused", out)
    assert "10 of 30 sampled rows fail: 10 media_" in out
    assert re.search(r"ok +decoding +0\.\d+ s a row", out)
    assert re.search(r"ok +tokens +(\d+) to \1 prompt tokens, median \1", out)
    assert re.search(
        r"2 prompts of 2 rows answered at once in .*: 30 rows take at most about \d+ s", out
    )
    counts = r"about [\d,]+ prompt tokens, [\d,]+ of them visual, and generate about \d+"
    assert re.search(counts, out)
    assert re.search(r"ok +memory +--cache-gib 0.1 holds [\d,]+ tokens: \d+ sequences like", out)


def test_several_questions_about_a_row_are_all_prepared_and_answered(clips, tmp_path, capsys):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("mood: What is the mood?\nnumber:\n  text: Of {n}?\n  max-tokens: 1\n")
    more = ("--prompts", str(prompts), "--rows", "6", "--max-tokens", "3", "--no-attacks")

    code, out, err = check(clips, capsys, *more)

    assert code == 0, err
    assert "sampled rows fail" in out
    assert "4 prompts of 2 rows answered at once" in out
    given = re.search(r"generate about (\d+) tokens", out)
    assert given is not None
    assert 30 * 2 <= int(given[1]) <= 30 * 4


def test_documents_are_drawn_and_asked_page_by_page_as_their_job_does(tmp_path, capsys):
    papers = [make_pdf(["One", "Two", "Three"]), make_pdf(["A"]), encrypted()]
    pq.write_table(pa.table({"paper": papers}), tmp_path / "papers.parquet")
    required = ["--input", str(tmp_path / "papers.parquet"), "--output", "/nowhere/out"]
    own = ["--model", "demo", "--document-column", "paper", "--max-tokens", "2", "--threads", "1"]
    config = tmp_path / "_run.yaml"
    config.write_text(config_file.parse(parse_documents.make_parser, [*required, *own]).run_yaml)

    job = ["--job", "parse_documents", "--no-attacks"]
    code = doctor.main([*job, "--config", str(config)])

    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "used: paper (" in printed.out
    assert "1 of 3 sampled rows fail: 1 media_encrypted; papers.parquet#2: " in printed.out
    assert re.search(r"ok +prompts +1 to 3 of a row", printed.out)
    assert "4 prompts of 2 rows answered at once" in printed.out
    given = re.search(r"3 rows .*\n.* generate about (\d+) tokens", printed.out)
    assert given is not None
    assert 3 * 2 <= int(given[1]) <= 3 * 4  # 2 prompts a row, 1 or 2 tokens each

    assert doctor.main([*job, "--config", str(config), "--pages-per-prompt", "max"]) == 0
    assert "2 prompts of 2 rows answered at once" in capsys.readouterr().out


def test_images_are_checked_at_their_own_size(tmp_path, capsys):
    file = io.BytesIO()
    Image.new("RGB", (112, 84)).save(file, "PNG")
    pq.write_table(pa.table({"image": [[file.getvalue()] * 2]}), tmp_path / "photos.parquet")
    required = ["--input", str(tmp_path), "--output", "/nowhere/out", "--model", "demo"]
    more = ["--job", "describe_images", "--no-attacks", "--answers", "1", "--max-tokens", "1"]

    code = doctor.main([*required, *more, "--threads", "1"])

    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "prompt tokens, 24 of them visual" in printed.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--job", "sweep"], "argument --job: invalid choice: 'sweep'"),
        (["--job", "parse_documents", "--frames", "8"], "unrecognized arguments: --frames 8"),
        (["--document-column", "x"], "unrecognized arguments: --document-column x"),
    ],
)
def test_options_of_another_job_are_refused_in_one_line(clips, capsys, more, message):
    with pytest.raises(SystemExit) as refused:
        doctor.main(["--input", clips, "--output", "/nowhere/out", "--model", "demo", *more])

    err = capsys.readouterr().err
    assert refused.value.code == 2
    assert err.startswith("doctor: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_output_of_another_recipe_is_bad(clips, tmp_path, capsys):
    output = tmp_path / "_out"  # readers of the input skip it
    output.mkdir()
    (output / "_recipe.json").write_text('{"prompt": "What moves?"}')
    rows = pa.table(
        {"row_id": ["a"], "status": ["ok"], "error_code": pa.array([None], pa.string())}
    )
    pq.write_table(rows, output / "part-0.parquet")

    more = ("--output", str(output), "--rows", "3", "--answers", "0", "--no-attacks")
    code, out, err = check(clips, capsys, *more)

    assert code == 1, err
    assert re.search(r'BAD +plan +the output was begun under another recipe: prompt: "What m', out)


def test_a_cache_that_holds_no_row_is_bad(clips, capsys):
    more = ("--cache-gib", "0.00001", "--rows", "6", "--answers", "0", "--no-attacks")

    code, out, _ = check(clips, capsys, *more)

    assert code == 1
    assert re.search(r"BAD +memory +--cache-gib 1e-05 holds 16 tokens: 0 sequences like", out)


def test_rows_are_drawn_over_the_whole_input_and_the_draw_has_a_seed(clips, capsys):
    drawn = [
        check(clips, capsys, "--rows", "4", "--answers", "0", "--no-attacks", "--seed", str(seed))
        for seed in (1, 1, 2, 3, 4)
    ]

    assert all("of 4 sampled rows" in out for _, out, _ in drawn)
    errors = [re.findall(r"\w\.parquet#\d+", out) for _, out, _ in drawn]
    assert errors[0] == errors[1]
    assert len({tuple(each) for each in errors}) > 1
    assert "forecast" not in drawn[0][1]


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_where_no_whole_copy_fits_there_is_a_note_and_no_forecast(
    clips, capsys, monkeypatch, ranks
):
    engine = EngineConfig(cache_gib=0.1)
    footprint = weights.read_footprint(DEMO, engine)
    free = (footprint.rank_gib(1, engine) + footprint.rank_gib(2, engine)) / 2
    monkeypatch.setattr(weights, "free_bytes", lambda _device: free * 2**30)

    code, out, err = check(clips, capsys, "--rows", "4", "--no-attacks", "--expert-parallel", ranks)

    assert (code, err) == (1 if ranks == "1" else 0, "")
    assert re.search(r"note +forecast +none: .* one whole copy, .*; --answers 0 leaves", out)
    assert "answered at once" not in out


def test_gpus_that_are_not_here_are_noted(clips, capsys):
    more = ("--device", "cuda", "--rows", "6", "--answers", "0", "--no-attacks")

    code, out, err = check(clips, capsys, *more)

    assert code == 0, err
    assert "this machine has no GPU for --device cuda" in out


def measured(**changes):
    """A trial that answered two rows."""
    numbers = {"num_threads": 1, "num_rows": 2, "num_prompts": 2, "num_generated_tokens": 2}
    return trial.Trial(**{**numbers, "seconds": 1.0, "load_s": 1.0, "peak_gib": 1.0, **changes})


def test_the_forecast_is_for_the_copies_that_the_job_would_have(
    clips, capsys, monkeypatch, unset_allocator
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(weights, "free_bytes", lambda _device: 2**40)
    done = measured(num_threads=0)
    monkeypatch.setattr(trial, "run_trial", lambda _config, _rows: done)

    for more, expected in (
        ([], "with 8 group(s)"),
        (["--expert-parallel", "4"], "with 2 group(s)"),
        (["--groups", "1"], "needed for a rank of 8"),
    ):
        _, out, _ = check(clips, capsys, "--rows", "6", "--no-attacks", *more)
        assert expected in out


def test_an_input_without_a_usable_row_is_bad(tmp_path, capsys):
    pq.write_table(pa.table({"video": [b"x"] * 3}), tmp_path / "x.parquet")

    code, out, _ = check(str(tmp_path), capsys, "--no-attacks")

    assert code == 1
    assert re.search(r"BAD +rows +3 of 3 sampled rows fail: 3 media_", out)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--video-column", "clip"], "no media column 'clip'"),
        (["--model", "/nowhere"], "--model /nowhere: there is no such directory"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_what_a_job_would_refuse_is_refused_in_one_line(clips, capsys, more, message):
    code, _, err = check(clips, capsys, *more)

    assert code == 2
    assert err.startswith("doctor: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_attack_that_succeeds_is_bad(monkeypatch):
    processor = Processor.from_checkpoint(DEMO)
    monkeypatch.setattr(attacks, "attacks", lambda folder, port: {"a good video": GOOD})
    (finding,) = attacks.findings(processor)
    assert finding.level == "BAD"
    assert "a good video was decoded" in finding.text


def test_a_knock_at_the_port_is_counted():
    import socket

    with attacks._listener() as (port, connections):
        socket.create_connection(("127.0.0.1", port), 5).close()
    assert len(connections) == 1
    refused = attacks.Answer(error_code="media_corrupt", seconds=0.1, num_connections=0)
    assert refused.is_refused
    assert not attacks.Answer(error_code="media_corrupt", seconds=0.1, num_connections=1).is_refused


def test_a_rank_holds_the_shared_part_whole_and_its_share_of_the_experts(monkeypatch):
    monkeypatch.setattr(dtype, "has_bfloat16_products", lambda: True)
    footprint = weights.read_footprint(DEMO, EngineConfig())
    assert footprint.dtype == "BF16"
    files = sum(file.stat().st_size for file in DEMO.glob("*.safetensors"))

    assert footprint.rank_bytes(1) == pytest.approx(files, rel=0.02)  # but for the headers
    halves = footprint.rank_bytes(2) - footprint.shared_bytes
    assert halves == footprint.expert_bytes // 2
    wide = weights.read_footprint(DEMO, EngineConfig(dtype="float32"))
    assert wide.rank_bytes(4) == pytest.approx(2 * footprint.rank_bytes(4), rel=1e-4)
    found = list(weights.findings(footprint, EngineConfig(cache_gib=1e6), (2, 4)))
    monkeypatch.setattr(dtype, "has_bfloat16_products", lambda: False)
    assert weights.read_footprint(DEMO, EngineConfig()).dtype == "float32"
    assert found[-1].level == "BAD"
    assert "1000001.5 needed for a rank of 2" in found[-1].text


def test_the_cache_of_a_gpu_that_nobody_sized_is_what_is_left():
    footprint = weights.read_footprint(DEMO, EngineConfig())
    text = footprint.config.text
    sequence_gib = text.max_position_embeddings * footprint.token_bytes() / 2**30
    assert footprint.cache_gib(EngineConfig(device="cuda")) == pytest.approx(sequence_gib)
    assert footprint.cache_gib(EngineConfig(device="cuda", cache_gib=3.0)) == 3.0
    assert footprint.cache_gib(EngineConfig()) == 4.0
    (_, memory, _) = weights.findings(footprint, EngineConfig(), (1,))
    assert "its weights, 4 for the cache and 1.5 of working memory" in memory.text


def test_the_cache_of_a_gpu_is_not_compared_with_rows_before_it_is_known():
    footprint = weights.read_footprint(DEMO, EngineConfig())
    finding = trial.cache_finding([], footprint, EngineConfig(device="cuda"))
    assert (finding.level, finding.subject) == ("note", "memory")
    assert "only once a worst-case step has been measured" in finding.text
    finding = trial.cache_finding([], footprint, EngineConfig(cache_fraction=0.5))
    assert "only once the weights are loaded" in finding.text


@pytest.mark.parametrize(
    ("num_threads", "decode_s", "engine_s", "expected"),
    [
        (0, 2.0, 0.4, "50 s with 1 group(s), bound by decoding"),
        (0, 2.0, 0.6, "60 s with 1 group(s), bound by answering"),
        (1, 2.0, 1.0, "100 s with 1 group(s), bound by answering"),
        (1, 2.0, 0.4, "60 s with 1 group(s), bound by the processors, which both need"),
    ],
)
def test_the_forecast_counts_the_slower_half_or_what_both_do_on_the_same_processors(
    num_threads, decode_s, engine_s, expected
):
    text, image = np.zeros(1, np.int32), np.zeros((0, 3, 14, 14), np.uint8)
    prompt = Prompt(token_ids=text, patches=image, grid_hw=np.zeros((0, 2), np.int32))
    asked = ((prompt, SamplingParams()),)
    row = SampledRow(row_id="a", seconds=decode_s, asked=asked, error_code=None, error=None)
    done = measured(num_threads=num_threads, seconds=2 * engine_s)

    first, _ = trial.forecast(done, [row, row], num_rows=100, num_groups=1, num_cpus=4)

    assert f"100 rows take at most about {expected}" in first.text


def test_answers_of_the_trial_are_shown_in_a_line_each():
    answers = [("a", "A red\ncross\x1b[31m."), ("b", "long " * 100)]

    findings = trial.answer_findings(measured(answers=answers))

    first, second = [str(finding) for finding in findings]

    assert first == "ok    answer      a: A red\ufffdcross\ufffd[31m."
    assert second.endswith("long ...")
    assert len(second) < 240
